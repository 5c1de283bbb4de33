"""`fsmerge compare`: finished runs in one table, with paired differences on the same test images."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from fsmerge_cli.common.atomic import FINISHED
from fsmerge_cli.common.changed_files import changed, sentence
from fsmerge_cli.common.errors import ConfigError, OutputError, unknown
from fsmerge_cli.common.foreign_files import read_json_object
from fsmerge_cli.common.separation import Input, expanded
from fsmerge_cli.common.shown import shown
from fsmerge_cli.common.wording import Word
from fsmerge_cli.evaluation.metrics import Z
from fsmerge_cli.evaluation.metrics import interval as wilson
from fsmerge_cli.evaluation.predictions import CORRECT, read_correct
from fsmerge_cli.reporting.plots import Point
from fsmerge_cli.reporting.schema import read_evaluation
from fsmerge_cli.reporting.summary import PROTOCOLS
from fsmerge_cli.runs.finetuned import METHOD
from fsmerge_cli.runs.run_metrics import EMPTY, JOINT, metrics_of, row_of, scores_of

T = TypeVar("T")

LOWER_IS_BETTER = (
    *("seconds", "steps", "images", "peak_memory_gb", "trained_parameters"),
    *("loss", "calibration_error", "feature_error"),
)
"""Metrics for which lower is better; of metrics of one task, the part before `.TASK`."""

ANOTHER = "Run the command again, or leave out this folder."


@dataclass(frozen=True)
class RunEntry:
    """A finished run: folder, content of evaluation.json, metrics by name, and which predictions are correct."""

    folder: Path
    evaluation: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    correct: Mapping[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """The mean accuracy of a run minus that of a reference run, paired over images, with its 95 % interval."""

    value: float
    low: float
    high: float


def read_runs(patterns: Sequence[str]) -> list[RunEntry]:
    """The runs in the given folders, globs and sweep folders. Raises OutputError where a pattern has no run."""
    folders: dict[Path, None] = {}
    for pattern in patterns:
        found = [folder for match in sorted(glob.glob(str(expanded(pattern)))) for folder in _runs_in(Path(match))]
        if not found:
            raise OutputError(
                f"{shown(pattern)} is no finished run (a folder with {FINISHED}). Give folders that `fsmerge "
                "merge` or `fsmerge finetune` wrote, a glob of them, or the folder of a sweep."
            )
        folders |= dict.fromkeys(found)
    return [_read(folder) for folder in folders]


def inputs(patterns: Sequence[str], runs: Sequence[RunEntry]) -> list[Input]:
    """The folders of the runs, and the records of their sweeps."""
    matches = [Path(match) for pattern in patterns for match in sorted(glob.glob(str(expanded(pattern))))]
    jobs = [folder for match in matches for folder in (match / "jobs", *match.glob("*/jobs")) if folder.is_dir()]
    return [
        *(Input("one of the compared runs", run.folder) for run in runs),
        *(Input("the recorded jobs of a sweep", folder) for folder in jobs),
    ]


def usual_metric(runs: Sequence[RunEntry]) -> str:
    """The metric that runs are ordered by: the accuracy; where none has one, what is relative to the sources."""
    known = {name for run in runs for name, value in run.metrics.items() if value is not None}
    return "relative" if "relative" in known and "mean" not in known else "mean"


def counted(runs: Sequence[RunEntry]) -> Word | None:
    """What the test counts of all runs count: images, texts, or words; None where they differ."""
    found: set[Word] = {e.get("counted") or e.get("inputs", "image") for e in (run.evaluation for run in runs)}
    return found.pop() if len(found) == 1 else None


def ordered(runs: Sequence[RunEntry], metric: str) -> list[RunEntry]:
    """The runs, best first; those without the metric last. Raises ConfigError for a metric that no run has."""
    known = dict.fromkeys(name for run in runs for name in run.metrics)
    if metric not in known:
        raise ConfigError(f"--sort: {unknown('metric', metric, known)}")
    return best_first(runs, metric, lambda run: run.metrics.get(metric))


def best_first(entries: Sequence[T], metric: str, value_of: Callable[[T], float | None]) -> list[T]:
    """The entries by a metric, best first; those without a value last."""
    sign = 1 if metric.partition(".")[0] in LOWER_IS_BETTER else -1

    def place(entry: T) -> float:
        value = value_of(entry)
        return math.inf if value is None else sign * value

    return sorted(entries, key=place)


def difference(run: RunEntry, first: RunEntry) -> Difference | None:
    """The difference in accuracy, averaged over tasks; None where the test images are not the same."""
    tasks = [name for name in first.correct if name.startswith("task.")]
    if not tasks or [n for n in run.correct if n.startswith("task.")] != tasks:
        return None
    if any(run.correct[name].shape != first.correct[name].shape for name in tasks):
        return None
    seen = [own.evaluation["provenance"].get("tests_sha256") for own in (run, first)]
    if seen[0] is None or seen[0] != seen[1]:  # None: written by a version that did not record it
        return None
    gaps = [run.correct[name].double() - first.correct[name].double() for name in tasks]
    value = sum(gap.mean().item() for gap in gaps) / len(gaps)
    error = math.sqrt(sum(gap.var(correction=0).item() / len(gap) for gap in gaps)) / len(gaps)
    return Difference(value, value - Z * error, value + Z * error)


def paired(runs: Sequence[RunEntry]) -> list[Difference | None]:
    """For each run the difference to the first run on the same tasks and test images; None for that first run."""
    found: list[Difference | None] = []
    for i, run in enumerate(runs):
        gaps = (difference(run, other) for other in runs[:i])
        found.append(next((gap for gap in gaps if gap is not None), None))
    return found


def interval(run: RunEntry, metric: str) -> tuple[float, float] | None:
    """The 95 % interval of an accuracy; None for other metrics, or where the predictions were not recorded.

    For the accuracy of one task, and joint accuracy, Wilson's interval as in evaluation.json; for the mean over
    tasks the normal approximation.
    """
    names = [n for n in run.correct if n.startswith("task.")] if metric == "mean" else [_tensor_name(metric)]
    value = run.metrics.get(metric)
    if value is None or not names or not set(names) <= run.correct.keys():
        return None
    correct = [run.correct[name].double() for name in names]
    if len(correct) == 1:
        return wilson(int(correct[0].sum()), len(correct[0]))
    error = math.sqrt(sum(own.var(correction=0).item() / len(own) for own in correct)) / len(correct)
    return max(0.0, value - Z * error), min(1.0, value + Z * error)


def points(runs: Sequence[RunEntry], names: Sequence[str], metric: str) -> list[Point]:
    """The points of a plot of accuracy over seconds, for runs that have the accuracy. names: label of each run."""
    found = []
    for run, name in zip(runs, names):
        value, seconds = run.metrics.get(metric), run.metrics["seconds"]
        if value is not None and seconds:
            method = str(run.evaluation["method"])
            low, high = interval(run, metric) or (None, None)
            found.append(Point(short_name(name, method), method, seconds, value, low, high))
    return found


def short_name(name: str, method: str) -> str:
    """A label without the method, which the colour of its point states."""
    return " ".join(part for part in name.split() if part != f"method={method}") or method


def title(metric: str) -> str:
    """The name of an accuracy on an axis."""
    words = {"mean": "mean over tasks"}
    words |= {name: f"joint, {PROTOCOLS[protocol]}" for name, protocol in JOINT.items()}
    return f"top-1 accuracy, {words.get(metric, metric.removeprefix('top1.'))}"


def bound(runs: Sequence[RunEntry], metric: str) -> float | None:
    """The accuracy of the ensemble of all sources, where it is the same in all runs; else None."""
    rows = [scores_of(run.evaluation["rows"].get("ensemble", EMPTY)).get(metric) for run in runs]
    return rows[0] if rows and len(set(rows)) == 1 else None


def labels(runs: Sequence[RunEntry], but: str | None = None) -> list[str]:
    """A label for each run: the options in which the runs differ (without `but`), else its folder."""
    options = [dict(flat(run.evaluation["config"])) for run in runs]
    if any("method.name" in own for own in options):  # a fine-tuned source has none
        options = [{"method.name": METHOD, **own} for own in options]
    keys = dict.fromkeys(key for own in options for key in own)
    shared = [key for key in keys if all(key in own for own in options) and not _ignored(key) and key != but]
    different = [key for key in shared if len({str(own[key]) for own in options}) > 1]
    names = [" ".join(f"{key.removesuffix('.name')}={own[key]}" for key in different) for own in options]
    return [name if names.count(name) == 1 and name else str(run.folder) for name, run in zip(names, runs)]


def _ignored(key: str) -> bool:
    return key.startswith(("hardware.", "models."))


def _runs_in(path: Path) -> list[Path]:
    """The run in a folder; else the runs of its sweep or of all sweeps in it; else the runs one level below."""
    if (path / FINISHED).is_file():
        return [path]
    records = sorted(path.glob("jobs/*.json")) or sorted(path.glob("*/jobs/*.json"))
    swept = [folder for record in records if (folder := _recorded(record)) is not None]
    inside = sorted(child.parent for child in path.glob(f"*/{FINISHED}")) if path.is_dir() else []
    return swept or inside


def _recorded(record: Path) -> Path | None:
    """The folder of a recorded job; None where it holds no run.

    A record may come from somebody else and name any folder: OutputError where the run there has other scores.
    """
    job = read_json_object(record, ANOTHER)
    folder = Path(str(job.get("folder") or "-"))
    if not (folder / FINISHED).is_file():
        return None
    metrics = _read(folder).metrics
    if any(metrics[name] != job.get(name) for name in ("mean", "joint", "seconds")):
        raise OutputError(
            f"{record} names the run {folder}, but that run has other scores or seconds: it was replaced, or "
            "the sweep was made elsewhere. Give the folders of the runs instead."
        )
    return folder


def _read(folder: Path) -> RunEntry:
    evaluation = read_evaluation(folder / FINISHED, ANOTHER)
    correct = read_correct(folder, row_of(evaluation), ANOTHER)
    return RunEntry(folder, evaluation, metrics_of(evaluation), correct)


def notes(runs: Sequence[RunEntry]) -> list[str]:
    """What the user should know about the files of the runs: those that are not as they were written."""
    found = [sentence(run.folder, changed(run.folder, (FINISHED, CORRECT))) for run in runs]
    return [text for text in found if text]


def _tensor_name(metric: str) -> str:
    """The name of the tensor of correct predictions that belongs to an accuracy."""
    return f"joint.{JOINT[metric]}" if metric in JOINT else metric.replace("top1.", "task.", 1)


def flat(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """The entries of nested mappings, with dotted keys."""
    if isinstance(value, Mapping):
        return [pair for name, entry in value.items() for pair in flat(entry, f"{key}.{name}".lstrip("."))]
    return [(key, value)]
