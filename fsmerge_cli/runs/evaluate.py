"""`fsmerge evaluate`: evaluate a written model on any data, with the rows of a merge; the model is not changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fsmerge_cli.checkpoints.api import load_all
from fsmerge_cli.checkpoints.stated import stated_accuracy
from fsmerge_cli.common.errors import ConfigError, DataError, SourceError
from fsmerge_cli.common.hardware import Hardware, peak_memory
from fsmerge_cli.common.notes import WARNING
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.common.separation import Input
from fsmerge_cli.common.shown import brief
from fsmerge_cli.common.timing import Clock
from fsmerge_cli.data import DataConfig, ImageSet, Task, auxiliary_images
from fsmerge_cli.data.base import Transform
from fsmerge_cli.data.draw import Images
from fsmerge_cli.data.pools import build_sets
from fsmerge_cli.data.readers import reader, require_same_kind
from fsmerge_cli.data.sampling import TestImages, no_images, read_test_images, sample_images
from fsmerge_cli.evaluation.class_results import class_results, joint_confusion
from fsmerge_cli.evaluation.forward import Outputs, merged_forward
from fsmerge_cli.evaluation.joint import Decision
from fsmerge_cli.evaluation.plausibility import worded_note
from fsmerge_cli.evaluation.predictions import Example, examples, predictions_by_task
from fsmerge_cli.evaluation.scorer import Scorer
from fsmerge_cli.evaluation.scoring import Score, single_task_rows
from fsmerge_cli.methods import METHODS
from fsmerge_cli.models.head import of_classes
from fsmerge_cli.models.source import Source
from fsmerge_cli.reporting.terminal import reported
from fsmerge_cli.runs.from_run import (
    FROM_RUN,
    Data,
    described,
    described_sources,
    given_data,
    group,
    recorded_hashes,
    required_data,
    run_folder,
    run_options,
)
from fsmerge_cli.runs.inputs import cache_inputs, checkpoint_inputs, data_inputs
from fsmerge_cli.runs.merged import Merged, Reading, load_merged, reworded_for_model
from fsmerge_cli.runs.provenance import images_sha256, versions
from fsmerge_cli.runs.reevaluation import Reevaluation
from fsmerge_cli.runs.request import chosen_hardware, source_specs


def evaluate(
    folder: str | Path | Merged,
    *,
    data: Data | None = None,
    hardware: str | Mapping[str, Any] | Hardware = "auto",
    seed: int | None = None,
    tasks: Sequence[str] | None = None,
    reading: Reading | Mapping[str, Any] | None = None,
    sources: bool = False,
    progress: Progress | bool = False,
    command: str | None = None,
    more_inputs: Sequence[Input] = (),
) -> Reevaluation:
    """Evaluate a written model: accuracy per task, and joint accuracy (task not given, labels of all tasks).

    folder: of a run, its merged/, a timm folder, a checkpoint file, or a model from `load_merged`. data: as in
    `merge`, or `from_run` for the data set that the run's config.yaml names, which is not followed unasked: the
    folder may come from somebody else. The test images are evaluated; on training images, sampled with `seed`
    (None: 0, with `from_run` that of the run), the temperatures of the calibrated predictions are fitted, where
    there are any. tasks: which tasks of the model (None: all). reading: what the files of a third-party model do
    not state. sources: whether to read and evaluate the sources that config.yaml names and their ensemble as well;
    where a task has no images, their predictions on the other images serve to fit the temperatures.
    more_inputs: other paths that must not change.

    Raises SourceError where there is no model, ConfigError where a key is wrong, DataError where images or labels
    do not fit.
    """
    machine = chosen_hardware(hardware)
    if machine.distributed:
        raise ConfigError("an evaluation runs in one process. Pass hardware.distributed=false, or hardware=gpu.")
    clock = Clock()
    with clock.phase("sources"):
        model = (folder if isinstance(folder, Merged) else load_merged(folder, reading, data)).with_heads()
        model = model if tasks is None else model.only(tuple(tasks))
    run = run_options(model.folder)
    seed = _seed(seed, run if data == FROM_RUN else {})
    if not model.tasks:
        raise ConfigError("tasks=[] leaves nothing to evaluate. List one or more tasks, or pass null for all.")
    images = required_data(model.folder, data)
    require_same_kind(images, model.tasks, model)
    notes = [*model.notes]
    with reported(progress) as report, machine.session() as device:
        if data == FROM_RUN:
            report(Event(f"data={FROM_RUN}: {described(images)}", 1, 1))
        with clock.phase("data"):
            tests = _tests(model, images, machine.workers, report)
            notes += tests.notes
            fit_images = _calibration_images(model, images, tests, seed, machine.workers, notes, sources)
        scorer = Scorer.of(model.heads, tests.sets, fit_images, machine, device, report)
        if not bool((scorer.truth[1] >= 0).any()) and bool(scorer.values.isnan().all()):
            raise DataError(
                "no test image has a label, so there is no accuracy to compute. Put the images into class folders."
            )
        rows: dict[str, Score] = {}
        reference: Outputs | None = None
        if sources:
            with clock.phase("load sources"):
                originals = _sources(model, run, report)
                notes += _changed(model, originals)
            with clock.phase("evaluate sources"):
                ensemble, reference = scorer.sources(originals)
                notes = [*scorer.warnings(reference, {}), *notes]
            rows = {**single_task_rows(ensemble, model.tasks), "ensemble": ensemble}
        with clock.phase("evaluate"):
            heads = [head.to(device) for head in model.heads.values()]
            forward = merged_forward(model.backbone.to(device), (), heads)
            rows["merged"], outputs = scorer.row("merged", forward, reference, _decision(model))
        model.backbone.to("cpu")
        stated = {name: stated_accuracy(model.folder, name) for name in model.tasks}
        found = scorer.warnings(outputs, {name: own for name, own in stated.items() if own})
        notes = [*dict.fromkeys([*found, *notes])]
    predictions: dict[str, dict[str, Any]] = {}
    shown: tuple[Example, ...] = ()
    if reference:
        compared = outputs.logits, reference.logits, scorer.truth, scorer.heads
        predictions = predictions_by_task(*compared, rows["merged"].agreement)
        shown = examples(tests.sets, *compared, seed)
    cost = {
        "seconds": clock.seconds,
        "steps": 0,
        "trained_parameters": 0,
        "merged_parameters": sum(t.numel() for t in model.backbone.state_dict().values()),
        "images": 0 if fit_images is None else len(fit_images),
        "images_per_second": None,
        "peak_memory_bytes": peak_memory(device),
        "serving": None,
    }
    provenance = {
        "command": command or "fsmerge.evaluate(...)",
        "seed": seed,
        "device": str(device),
        "processes": 1,
        "threads": machine.threads or torch.get_num_threads(),
        "versions": versions(),
        "sources": [{"name": "merged", "origin": str(model.folder), "sha256": model.sha256}],
        "images_sha256": images_sha256(fit_images or no_images()),
        "tests_sha256": tests.sha256,
    }
    options = {
        "model": str(model.folder),
        "tasks": list(model.tasks),
        "data": images.options(),
        "hardware": asdict(machine),
        "seed": seed,
    }
    method = str(group(run, "method").get("name"))
    if run_folder(model.folder) is None:  # no entry of models.sources, but keys of this command
        notes = [reworded_for_model(note, "") for note in notes]
    notes = [worded_note(note, model.family.kind) for note in notes]
    return Reevaluation(
        model, rows, predictions, outputs, scorer.truth, method if method in METHODS else "unknown",
        cost, provenance, options, tuple(notes), shown, (*evaluate_inputs(model, images, sources), *more_inputs),
        class_results(outputs.logits, reference.logits if reference else None, scorer.truth, scorer.heads),
        joint_confusion(outputs.logits, scorer.truth, scorer.heads, rows["merged"].decision),
    )  # fmt: skip


def evaluate_inputs(model: Merged, data: Data | None, sources: bool) -> list[Input]:
    """Every path that an evaluation of this model reads; data and sources as in `evaluate`."""
    found = checkpoint_inputs("the evaluated model", model.folder)
    if (run := run_folder(model.folder)) is not None:
        found.append(Input("the run of the evaluated model", run))
    if sources:
        specs = source_specs(group(run_options(model.folder), "models").get("sources") or [])
        given = [(s.name, path) for s in specs for path in (s.checkpoint, s.base)]
        found += [i for name, path in given for i in checkpoint_inputs(f"source '{name}'", path)]
    return [*found, *data_inputs(given_data(model.folder, data), model.tasks), *cache_inputs()]


def _decision(model: Merged) -> Decision | None:
    """The joint decision that a merge chose for its heads; None for a third-party model."""
    heads = of_classes(model.heads).values()
    found = Decision(tuple(head.temperature for head in heads), tuple(head.shift for head in heads))
    return found if run_folder(model.folder) is not None and len(heads) > 1 else None


def _seed(given: int | None, run: Mapping[str, Any]) -> int:
    value = run.get("seed", 0) if given is None else given
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"seed: should be a whole number from 0 on, got {brief(value)}.")
    return value


def _tests(model: Merged, data: DataConfig, workers: int, progress: Progress) -> TestImages:
    tasks, pixels = _tasks_and_transform(model)
    found = [_build_set(model, data, "test", task, pixels) for task in tasks]
    if not any(found):
        raise DataError(
            f"data={data.name} has no test images for {', '.join(model.tasks)}. "
            + (
                "Pass data=NAME with test images."
                if data.auxiliary_only
                else "Put some into TASK/test/, in class folders."
            )
        )
    return read_test_images(found, tasks, workers, progress)


def _calibration_images(
    model: Merged,
    data: DataConfig,
    tests: TestImages,
    seed: int,
    workers: int,
    notes: list[str],
    sources: bool,
) -> Images | None:
    """The images that the temperatures are fitted on; None, with a note, where there are none.

    Where a task has no images, the others can only be used with the predictions of the sources.
    """
    tasks, pixels = _tasks_and_transform(model)
    known = [task for task in tasks if data.of(task.name).images_per_task != 0]
    if len(tasks) < 2 or not (known or data.auxiliary):
        return None
    if len(known) < len(tasks) and not sources:
        notes.append(
            "not calibrated: some task has no images. With --sources the predictions of the sources are used "
            "instead"
        )
        return None
    try:
        for task in known:
            _build_set(model, data, "train", task, pixels)
        auxiliary_images(data, pixels)
    except DataError as error:  # the data set is valid, for it has test images; it only lacks these
        notes.append(f"not calibrated, which needs images besides the test images: {error}")
        return None
    images, found = sample_images(data, tasks, pixels, tests, seed, workers)
    notes += [note for note in found if note not in notes]
    return images


def _tasks_and_transform(model: Merged) -> tuple[list[Task], Transform]:
    tasks = [Task.of(name, model.heads[name]) for name in model.tasks]
    return tasks, reader(model)


def _build_set(model: Merged, data: DataConfig, split: Any, task: Task, pixels: Transform) -> ImageSet | None:
    try:
        return build_sets(data, split, [task], pixels, data.is_mixed(model.tasks))[0]
    except DataError as error:
        raise DataError(reworded_for_model(str(error), task.name)) from None


def _changed(model: Merged, sources: Sequence[Source]) -> list[str]:
    """Warnings for sources whose files have changed since the run."""
    folder = run_folder(model.folder)
    recorded = recorded_hashes(folder) if folder is not None else {}
    return [
        f"{WARNING}{source.name}: {source.origin} has other weights than the source that was merged"
        for source in sources
        if recorded.get(source.name, source.sha256) != source.sha256
    ]


def _sources(model: Merged, run: Mapping[str, Any], progress: Progress) -> list[Any]:
    """The sources of the run that belong to the model's tasks, in their order."""
    entries = group(run, "models").get("sources")
    if not entries:
        raise ConfigError(
            f"--sources: {model.folder} is in no run's folder (config.yaml), so its sources are unknown. "
            "Leave out --sources."
        )
    specs = {spec.name: spec for spec in source_specs(entries)}
    missing = [name for name in model.tasks if name not in specs]
    if missing:
        raise ConfigError(f"--sources: the run's config.yaml has no source for {', '.join(missing)}.")
    chosen = [specs[name] for name in model.tasks]
    progress(Event(f"--sources: {described_sources(chosen)}", 1, 1))
    found = load_all(chosen, progress)
    without_head = [source.name for source in found if source.head is None]
    if without_head:
        raise SourceError(f"--sources: {', '.join(without_head)} has no head. Leave out --sources.")
    return found
