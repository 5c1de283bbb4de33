"""A written model on data of one's choice: the same rows as a merge has, and nothing of the model is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from fsmerge_cli.checkpoints.api import load_all
from fsmerge_cli.common.atomic import check_file, whole, write_json, write_tensors, write_text
from fsmerge_cli.common.errors import ConfigError, DataError, SourceError
from fsmerge_cli.common.hardware import Hardware, peak_memory
from fsmerge_cli.common.progress import Progress, silent
from fsmerge_cli.common.timing import Clock
from fsmerge_cli.data import DataConfig, ImageSet, Task, auxiliary_images
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.draw import Images
from fsmerge_cli.data.sampling import Tests, built, drawn, looked_at, nothing
from fsmerge_cli.evaluation.predictions import Example, compared, examples
from fsmerge_cli.evaluation.score_table import Bench, alone
from fsmerge_cli.evaluation.scoring import Outputs, Score, merged_forward
from fsmerge_cli.reporting.html import page
from fsmerge_cli.reporting.schema import validate
from fsmerge_cli.runs.merged import Merged, Reading, in_own_words, load_merged, run_folder
from fsmerge_cli.runs.request import chosen_data, chosen_hardware, source_specs
from fsmerge_cli.runs.result import document, images_sha256, versions

Data = str | Mapping[str, Any] | DataConfig


@dataclass(frozen=True)
class Reevaluation:
    """How good a written model is on some data.

    model: as it was read. scores: rows by name, `merged` and, on request, the sources and their `ensemble`.
    answers: by task, compared with the sources' (see `answers.compared`), and examples of them.
    outputs: logits of every head on all test images. truth: their task [n] and class [n] (-1: unknown). method:
    key of the method that made it (`unknown`: made elsewhere). cost, provenance, options, notes: as those of a
    merge.
    """

    model: Merged
    scores: Mapping[str, Score]
    answers: Mapping[str, Mapping[str, Any]]
    outputs: Outputs
    truth: tuple[Tensor, Tensor]
    method: str
    cost: Mapping[str, Any]
    provenance: Mapping[str, Any]
    options: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())
    examples: tuple[Example, ...] = ()

    def evaluation(self) -> dict[str, Any]:
        """The content of an evaluation.json; what only a merge can say is empty."""
        answers = {name: dict(values) for name, values in self.answers.items()}
        return document(self, self.method, self.model.tasks, answers=answers)

    def save(self, file: str | Path, overwrite: bool = False) -> None:
        """Write the evaluation as JSON, whole or not at all. Raises OutputError."""
        path = check_file(Path(file), self.model.folder, overwrite, "output.file")
        evaluation = self.evaluation()
        validate(evaluation)
        with whole(path, "output.file") as temporary:
            write_json(temporary, evaluation)

    def save_report(self, file: str | Path, overwrite: bool = False) -> None:
        """Write the evaluation as a page to look at, whole or not at all. Raises OutputError."""
        path = check_file(Path(file), self.model.folder, overwrite, "output.report")
        with whole(path, "output.report") as temporary:
            write_text(temporary, page(self.evaluation(), self.examples))

    def save_logits(self, file: str | Path, overwrite: bool = False) -> None:
        """Write `logits.TASK` [n, classes], `task` [n] and `label` [n] of all test images as safetensors."""
        path = check_file(Path(file), self.model.folder, overwrite, "output.logits")
        tensors = {f"logits.{name}": own for name, own in zip(self.model.tasks, self.outputs.logits)}
        with whole(path, "output.logits") as temporary:
            write_tensors(temporary, {**tensors, "task": self.truth[0], "label": self.truth[1]})


def evaluate(
    folder: str | Path | Merged,
    *,
    data: Data | None = None,
    hardware: str | Mapping[str, Any] | Hardware = "auto",
    seed: int | None = None,
    tasks: Sequence[str] | None = None,
    reading: Reading | Mapping[str, Any] | None = None,
    sources: bool = False,
    progress: Progress = silent,
    command: str | None = None,
) -> Reevaluation:
    """Measure a written model: per task, and among the labels of all its tasks.

    folder: that of a run, its merged/, a timm folder, a checkpoint file, or what `load_merged` gave. data: as in
    `merge` (None: the data of the run). Its test images are measured on; its training images, drawn with `seed`
    (None: the run's), give the temperatures of the calibrated answers, where there are some. tasks: which of the
    model's (None: all). reading: what a model made elsewhere does not say. sources: the sources of the run, and
    their ensemble, beside it; where a task has no images, their answers to the others give the temperatures.

    Raises SourceError where there is no model, ConfigError where a key is wrong, DataError where images or labels
    do not fit.
    """
    machine = chosen_hardware(hardware)
    if machine.distributed:
        raise ConfigError("an evaluation runs in one process. Pass hardware.distributed=false, or hardware=gpu.")
    clock = Clock()
    with clock.phase("sources"):
        model = folder if isinstance(folder, Merged) else load_merged(folder, reading, data)
        model = model if tasks is None else model.only(tuple(tasks))
    run = _run_options(model.folder)
    images, seed = chosen_data(run.get("data") if data is None else data), _seed(seed, run)
    if not model.tasks:
        raise ConfigError("tasks=[] leaves nothing to evaluate. Name one or more, or null for all.")
    if images is None:
        raise DataError(
            f"no data: {model.folder} says none of its own. Pass data=NAME (data.root=PATH for your own folder)."
        )
    notes = [*model.notes]
    with machine.session() as device:
        with clock.phase("data"):
            tests = _tests(model, images, machine.workers, progress)
            notes += tests.notes
            queries = _drawn(model, images, tests, seed, machine.workers, notes, sources)
        bench = Bench.of(model.heads, tests.sets, queries, machine, device, progress)
        if not bool((bench.truth[1] >= 0).any()):
            raise DataError(
                "no test image has a label, so there are no answers to count. Put the images into class folders."
            )
        rows: dict[str, Score] = {}
        reference: Outputs | None = None
        if sources:
            with clock.phase("load sources"):
                beside = _sources(model, run, progress)
            with clock.phase("evaluate sources"):
                ensemble, reference = bench.sources(beside)
            rows = {**alone(ensemble, model.tasks), "ensemble": ensemble}
        with clock.phase("evaluate"):
            heads = [head.to(device) for head in model.heads.values()]
            forward = merged_forward(model.backbone.to(device), (), heads)
            rows["merged"], outputs = bench.row("merged", forward, reference)
        model.backbone.to("cpu")
    answers: dict[str, dict[str, Any]] = {}
    shown: tuple[Example, ...] = ()
    if reference:
        given = outputs.logits, reference.logits, bench.truth, bench.heads
        answers, shown = compared(*given), examples(tests.sets, *given, seed)
    cost = {
        "seconds": clock.seconds,
        "steps": 0,
        "trained_parameters": 0,
        "merged_parameters": sum(t.numel() for t in model.backbone.state_dict().values()),
        "images": 0 if queries is None else len(queries),
        "images_per_second": None,
        "peak_memory_bytes": peak_memory(device),
    }
    provenance = {
        "command": command or "fsmerge.evaluate(...)",
        "seed": seed,
        "device": str(device),
        "processes": 1,
        "threads": machine.threads or torch.get_num_threads(),
        "versions": versions(),
        "sources": [{"name": "merged", "origin": str(model.folder), "sha256": model.sha256}],
        "images_sha256": images_sha256(queries or nothing()),
        "tests_sha256": tests.sha256,
    }
    options = {
        "model": str(model.folder),
        "tasks": list(model.tasks),
        "data": asdict(images),
        "hardware": asdict(machine),
        "seed": seed,
    }
    method = str((run.get("method") or {}).get("name", "unknown"))
    return Reevaluation(
        model, rows, answers, outputs, bench.truth, method, cost, provenance, options, tuple(notes), shown
    )


def _seed(given: int | None, run: Mapping[str, Any]) -> int:
    value = run.get("seed", 0) if given is None else given
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"seed: should be a whole number from 0 on, got {value!r}.")
    return value


def _run_options(path: Path) -> dict[str, Any]:
    """The options of the run that the model lies in; none for a model made elsewhere."""
    folder = run_folder(path)
    if folder is None:
        return {}
    try:
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{folder / 'config.yaml'} cannot be read ({str(error).splitlines()[0]}). Give {folder / 'merged'} a "
            "folder of its own, and data=..."
        ) from None
    return found if isinstance(found, dict) else {}


def _tests(model: Merged, data: DataConfig, workers: int, progress: Progress) -> Tests:
    tasks, pixels = _asked(model)
    found = [_own(model, data, "test", task, pixels) for task in tasks]
    if not any(found):
        raise DataError(
            f"data={data.name} has no test images for {', '.join(model.tasks)}. "
            + (
                "Pass data=NAME with test images."
                if data.taskless
                else "Put some into TASK/test/, in class folders."
            )
        )
    return looked_at(found, tasks, workers, progress)


def _drawn(
    model: Merged,
    data: DataConfig,
    tests: Tests,
    seed: int,
    workers: int,
    notes: list[str],
    sources: bool,
) -> Images | None:
    """The images that the temperatures are fitted on; None where there are none, which is noted.

    Where a task has none, the others say something only beside the sources.
    """
    tasks, pixels = _asked(model)
    known = [task for task in tasks if data.of(task.name).images_per_task != 0]
    if len(tasks) < 2 or not (known or data.auxiliary):
        return None
    if len(known) < len(tasks) and not sources:
        notes.append(
            "not calibrated: some task has no images. With --sources the sources' answers take their place"
        )
        return None
    try:
        for task in known:
            _own(model, data, "train", task, pixels)
        auxiliary_images(data, pixels)
    except DataError as error:  # the test images were found, so these are simply not there
        notes.append(f"not calibrated, which takes images beside those for the test: {error}")
        return None
    images, found = drawn(data, tasks, pixels, tests, seed, workers)
    notes += [note for note in found if note not in notes]
    return images


def _asked(model: Merged) -> tuple[list[Task], ToPixels]:
    tasks = [Task(name, model.heads[name].labels) for name in model.tasks]
    return tasks, ToPixels(model.arch.input_size, model.preprocessing)


def _own(model: Merged, data: DataConfig, split: Any, task: Task, pixels: ToPixels) -> ImageSet | None:
    try:
        return built(data, split, [task], pixels)[0]
    except DataError as error:
        raise DataError(in_own_words(str(error), task.name)) from None


def _sources(model: Merged, run: Mapping[str, Any], progress: Progress) -> list[Any]:
    """The sources of the run that belong to the model's tasks, in their order."""
    entries = (run.get("models") or {}).get("sources")
    if not entries:
        raise ConfigError(
            f"--sources: {model.folder} does not say what it was made of, for it lies in no run's folder "
            "(config.yaml). Leave out --sources."
        )
    specs = {spec.name: spec for spec in source_specs(entries)}
    missing = [name for name in model.tasks if name not in specs]
    if missing:
        raise ConfigError(f"--sources: the run's config.yaml has no source for {', '.join(missing)}.")
    found = load_all([specs[name] for name in model.tasks], progress)
    headless = [source.name for source in found if source.head is None]
    if headless:
        raise SourceError(f"--sources: {', '.join(headless)} has no head. Leave out --sources.")
    return found
