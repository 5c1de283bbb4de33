"""Several finished runs side by side: the same numbers of each, and differences on the same test images."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fsmerge_cli.common.atomic import FINISHED
from fsmerge_cli.common.errors import ConfigError, OutputError, unknown
from fsmerge_cli.evaluation.metrics import Z
from fsmerge_cli.evaluation.metrics import interval as wilson
from fsmerge_cli.evaluation.predictions import CORRECT
from fsmerge_cli.reporting.plots import Point
from fsmerge_cli.reporting.summary import PROTOCOLS
from fsmerge_cli.runs.finetuned import METHOD

LOWER_IS_BETTER = (
    *("seconds", "steps", "images", "peak_memory_gb", "trained_parameters"),
    *("loss", "calibration_error", "feature_error"),
)
"""Metrics, or what stands before `.TASK`, of which less is better."""

JOINT = {"joint": "softmax", "joint_calibrated": "softmax_calibrated", "joint_logits": "logits"}
"""Metrics of the joint answers, and their protocols."""

TASK = ("top1", "top5", "loss", "calibration_error", "relative")
"""What is measured of one task."""

EMPTY: Mapping[str, Any] = {"tasks": {}, "mean_top1": None, "mean_relative": None, "joint_top1": {}}
"""The row of a run that evaluated nothing."""


@dataclass(frozen=True)
class RunEntry:
    """A finished run: its folder, its evaluation, its metrics by name, and which answers were right."""

    folder: Path
    evaluation: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    correct: Mapping[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """Of a run's mean accuracy to the first run's, paired over images, with its 95 % interval."""

    value: float
    low: float
    high: float


def read_runs(patterns: Sequence[str]) -> list[RunEntry]:
    """The runs that folders, globs and folders of sweeps name; raises OutputError where one names none."""
    folders: dict[Path, None] = {}
    for pattern in patterns:
        found = [folder for match in sorted(glob.glob(pattern)) for folder in _runs_in(Path(match))]
        if not found:
            raise OutputError(
                f"{pattern} names no finished run (a folder with {FINISHED}). Give folders that `fsmerge merge` "
                "or `fsmerge finetune` wrote, a glob of them, or the folder of a sweep."
            )
        folders |= dict.fromkeys(found)
    return [_read(folder) for folder in folders]


def ordered(runs: Sequence[RunEntry], metric: str) -> list[RunEntry]:
    """The runs, best first; those without the number last. Raises ConfigError for a metric that no run has."""
    known = dict.fromkeys(name for run in runs for name in run.metrics)
    if metric not in known:
        raise ConfigError(f"--sort: {unknown('metric', metric, known)}")
    sign = 1 if metric.partition(".")[0] in LOWER_IS_BETTER else -1

    def place(run: RunEntry) -> float:
        value = run.metrics.get(metric)
        return math.inf if value is None else sign * value

    return sorted(runs, key=place)


def difference(run: RunEntry, first: RunEntry) -> Difference | None:
    """Mean over tasks of the difference in right answers; None where the test images are not the same."""
    tasks = [name for name in first.correct if name.startswith("task.")]
    if not tasks or [n for n in run.correct if n.startswith("task.")] != tasks:
        return None
    if any(run.correct[name].shape != first.correct[name].shape for name in tasks):
        return None
    seen = [own.evaluation["provenance"].get("tests_sha256") for own in (run, first)]
    if seen[0] is None or seen[0] != seen[1]:  # None: an earlier version did not say it
        return None
    gaps = [run.correct[name].double() - first.correct[name].double() for name in tasks]
    value = sum(gap.mean().item() for gap in gaps) / len(gaps)
    error = math.sqrt(sum(gap.var(correction=0).item() / len(gap) for gap in gaps)) / len(gaps)
    return Difference(value, value - Z * error, value + Z * error)


def paired(runs: Sequence[RunEntry]) -> list[Difference | None]:
    """Of every run to the first one with the same tasks and test images; None for that one itself."""
    found: list[Difference | None] = []
    for i, run in enumerate(runs):
        gaps = (difference(run, other) for other in runs[:i])
        found.append(next((gap for gap in gaps if gap is not None), None))
    return found


def interval(run: RunEntry, metric: str) -> tuple[float, float] | None:
    """The 95 % interval of an accuracy, from the answers; None where they are not there, or it is none.

    Of one share Wilson's, as in evaluation.json; of a mean over tasks the normal one.
    """
    names = [n for n in run.correct if n.startswith("task.")] if metric == "mean" else [_answers(metric)]
    value = run.metrics.get(metric)
    if value is None or not names or not set(names) <= run.correct.keys():
        return None
    right = [run.correct[name].double() for name in names]
    if len(right) == 1:
        return wilson(int(right[0].sum()), len(right[0]))
    error = math.sqrt(sum(own.var(correction=0).item() / len(own) for own in right)) / len(right)
    return max(0.0, value - Z * error), min(1.0, value + Z * error)


def points(runs: Sequence[RunEntry], names: Sequence[str], metric: str) -> list[Point]:
    """The runs that have an accuracy, for a picture of it against seconds; names: what tells them apart."""
    found = []
    for run, name in zip(runs, names):
        value, seconds = run.metrics.get(metric), run.metrics["seconds"]
        if value is not None and seconds:
            method = str(run.evaluation["method"])
            rest = " ".join(part for part in name.split() if part != f"method={method}")
            low, high = interval(run, metric) or (None, None)
            found.append(Point(rest or method, method, seconds, value, low, high))
    return found


def title(metric: str) -> str:
    """An accuracy in words, for an axis."""
    words = {"mean": "mean over tasks"}
    words |= {name: f"among all labels, {PROTOCOLS[protocol]}" for name, protocol in JOINT.items()}
    return f"right answers, {words.get(metric, metric.removeprefix('top1.'))}"


def bound(runs: Sequence[RunEntry], metric: str) -> float | None:
    """The same accuracy of the ensemble of all sources, where it is the same in all runs."""
    rows = [_scores(run.evaluation["rows"].get("ensemble", EMPTY)).get(metric) for run in runs]
    return rows[0] if rows and len(set(rows)) == 1 else None


def labels(runs: Sequence[RunEntry]) -> list[str]:
    """What tells the runs apart: the options in which they differ, else their folders."""
    options = [dict(_flat(run.evaluation["config"])) for run in runs]
    if any("method.name" in own for own in options):  # a training has none
        options = [{"method.name": METHOD, **own} for own in options]
    keys = dict.fromkeys(key for own in options for key in own)
    everywhere = [key for key in keys if all(key in own for own in options) and not _inner(key)]
    different = [key for key in everywhere if len({str(own[key]) for own in options}) > 1]
    made = [" ".join(f"{key.removesuffix('.name')}={own[key]}" for key in different) for own in options]
    return [label if made.count(label) == 1 and label else str(run.folder) for label, run in zip(made, runs)]


def _inner(key: str) -> bool:
    return key.startswith(("hardware.", "models."))


def _runs_in(path: Path) -> list[Path]:
    """A run itself; the runs of a sweep, or of all sweeps in a folder; else the runs directly below."""
    if (path / FINISHED).is_file():
        return [path]
    records = sorted(path.glob("jobs/*.json")) or sorted(path.glob("*/jobs/*.json"))
    jobs = [json.loads(record.read_text()) for record in records]
    swept = [Path(job["folder"]) for job in jobs if (Path(job.get("folder") or "-") / FINISHED).is_file()]
    inside = sorted(child.parent for child in path.glob(f"*/{FINISHED}")) if path.is_dir() else []
    return swept or inside


def _read(folder: Path) -> RunEntry:
    try:
        evaluation = json.loads((folder / FINISHED).read_text())
        answers = folder / CORRECT
        right = load_file(answers) if answers.is_file() else {}
        metrics = _metrics(evaluation)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise OutputError(f"{folder}: {FINISHED} is not that of a run of this version ({error!r}).") from None
    return RunEntry(folder, evaluation, metrics, right)


def _metrics(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    rows = evaluation["rows"]
    made = evaluation["tasks"][0] if evaluation["method"] == METHOD else "merged"  # a source has its own row
    row = rows.get(made, EMPTY)
    cost = evaluation["cost"]
    memory = cost["peak_memory_bytes"]
    scores = _scores(row)
    return {
        **{f"top1.{task}": scores.get(f"top1.{task}") for task in evaluation["tasks"]},
        **{name: scores[name] for name in ("mean", "relative", *JOINT)},
        "seconds": sum(cost["seconds"].values()),
        "trained_parameters": cost["trained_parameters"],
        "peak_memory_gb": None if memory is None else memory / 1e9,
        **{name: cost.get(name) for name in ("steps", "images", "images_per_second")},
        **{name: value for name, value in scores.items() if "." in name and not name.startswith("top1.")},
    }


def _scores(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Everything that a row of the table measures, by name: of all tasks, and as NAME.TASK of one."""
    joint = row["joint_top1"]
    found = {
        "mean": row["mean_top1"],
        "relative": row["mean_relative"],
        **{name: joint.get(protocol) for name, protocol in JOINT.items()},
    }
    for task, values in row["tasks"].items():
        found |= {f"{name}.{task}": values.get(name) for name in TASK}
    for name in ("feature_error", "feature_cosine", "feature_cka"):
        found |= {f"{name}.{task}": value for task, value in row.get(name, {}).items()}
    return found


def _answers(metric: str) -> str:
    """The name under which the answers of an accuracy are kept."""
    return f"joint.{JOINT[metric]}" if metric in JOINT else metric.replace("top1.", "task.", 1)


def _flat(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [pair for name, entry in value.items() for pair in _flat(entry, f"{key}.{name}".lstrip("."))]
    return [(key, value)]
