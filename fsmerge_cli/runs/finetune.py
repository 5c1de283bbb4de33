"""`fsmerge finetune`: train a source for `merge` on a data set, from a checkpoint or from random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fsmerge_cli.checkpoints.preprocessing import fold_normalisation
from fsmerge_cli.common.atomic import claim, output_errors
from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.hardware import Hardware, peak_memory
from fsmerge_cli.common.inputs import stack as stacked
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.common.seeding import derive, generator
from fsmerge_cli.common.separation import Input, expanded, resolved
from fsmerge_cli.common.timing import Clock
from fsmerge_cli.common.wording import worded, worded_progress
from fsmerge_cli.data import DataConfig, ImageSet
from fsmerge_cli.data.draw import MIN_FOR_VALIDATION
from fsmerge_cli.data.labelled import Pool
from fsmerge_cli.data.matching import alike_note
from fsmerge_cli.data.readers import reader, require_same_kind
from fsmerge_cli.data.sampling import TestImages, read_test_images
from fsmerge_cli.evaluation.forward import merged_forward
from fsmerge_cli.evaluation.scorer import Scorer
from fsmerge_cli.evaluation.scoring import Score
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source
from fsmerge_cli.reporting.terminal import reported
from fsmerge_cli.runs.finetune_labels import GUESSED
from fsmerge_cli.runs.finetune_request import FinetuneRequest, FinetuneStart, load_start, request
from fsmerge_cli.runs.finetune_rows import Unit, training_rows
from fsmerge_cli.runs.finetuned import Finetuned
from fsmerge_cli.runs.provenance import versions
from fsmerge_cli.training.classifier import TrainingSetup, fit
from fsmerge_cli.training.classifier_network import Classifier
from fsmerge_cli.training.finetuning_options import TrainingOptions
from fsmerge_cli.training.snapshots import Snapshots, check_state, state_folder
from fsmerge_cli.training.state import Trace

LABELLED = {
    "image": "Put every image into the folder of its class.",
    "text": "Give every one a label, and pass data.label_column=NAME if no column of labels was found.",
}
"""What to do where labels are missing."""

PROBE = 16  # images on which the written model is compared with the one in memory


def finetune(
    model: str | Mapping[str, Any] | FinetuneStart,
    *,
    data: str | Mapping[str, Any] | DataConfig,
    training: Mapping[str, Any] | TrainingOptions | None = None,
    hardware: str | Mapping[str, Any] | Hardware = "auto",
    seed: int = 0,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: int | str = "60s",
    progress: Progress | bool = False,
    command: str | None = None,
    more_inputs: Sequence[Input] = (),
) -> Finetuned:
    """Train a classifier, or a regression, on a data set: first the head on the frozen backbone, then all weights.

    model: a timm name, or a mapping with the keys of `finetune_request.FinetuneStart`. data: name of a shipped
    preset, a mapping with the keys of that group, or the dataclass itself; all images of the training split are
    used unless `images_per_task` sets fewer, a share `validation` of them selects the best step, and `augment` is
    sampled anew at every step. training: the keys of `finetuning_options.TrainingOptions`. output: folder to write
    (None: nothing is written, `Finetuned.save` does it later). more_inputs: other paths that must not change. The
    rest is as in `merge`.

    Raises UserError for wrong input, TrainingError where a run fails, Interrupted where `resume` continues it.
    """
    requested = request(model, data, training, hardware, seed, overwrite, resume, checkpoint_every)
    inputs, notes = (*requested.inputs(), *more_inputs), list[str]()
    clock, snapshots = Clock(), Snapshots()
    output = None if output is None else expanded(output)
    with ExitStack() as stack:
        report = stack.enter_context(reported(progress))
        device = stack.enter_context(requested.hardware.session())
        folder = None
        if output is not None:
            folder = stack.enter_context(claim(output, requested.run.overwrite, inputs))
        with clock.phase("sources"):
            source = load_start(requested)
        kind = source.family.kind
        report = worded_progress(report, kind)
        with clock.phase("data"):
            require_same_kind(requested.data, [source.name], source)
            try:
                setup, tests, images, unit = _training_setup(requested, source, device, report, notes)
            except DataError as error:
                raise DataError(worded(str(error), kind)) from None
        if output is not None:
            snapshots = _snapshots(requested, source, setup, images, output)
            stack.enter_context(snapshots.report_progress_on_interrupt())
        with clock.phase("fit"):
            classifier = _network(requested, source).to(device)
            trace = fit(classifier, setup, snapshots)
            weights = _without_normalisation(requested, source, classifier)
        own = classifier.head
        head = (
            unit.head(own, requested.labels)
            if unit
            else Head(own.weight.detach(), own.bias.detach(), requested.labels)
        )
        with clock.phase("evaluate"):
            scores = _scores(requested, classifier, head, tests.sets[0], device, report)
        if trace.images_at_once:
            notes.append(
                "memory did not suffice for a whole batch: each batch was computed in parts of "
                f"{trace.images_at_once} images"
            )
        provenance = {
            "command": command or "fsmerge.finetune(...)",
            "seed": seed,
            "device": str(device),
            "processes": 1,
            "threads": requested.hardware.threads or torch.get_num_threads(),
            "versions": versions(),
            "sources": [{"name": source.name, "origin": source.origin, "sha256": source.sha256}],
            "images_sha256": images,
            "tests_sha256": tests.sha256,
        }
        done = Finetuned(
            replace(source, weights=weights, head=head.to("cpu")),
            scores,
            trace,
            stacked([setup.pool.images[row][0] for row in setup.train[:PROBE]]),
            _cost(requested, classifier, setup, trace, clock, None if snapshots.resumed else clock.seconds["fit"]),
            provenance,
            requested.options(),
            (*source.notes, *(worded(note, kind) for note in dict.fromkeys(notes))),
            inputs,
        )
        if folder is not None:
            with output_errors(Path(output or folder)):
                report(Event("write", 0, 2))
                done.write(folder, resolved(Path(output or folder)))
                report(Event("write", 2, 2))
    snapshots.discard()
    return done


def _snapshots(
    requested: FinetuneRequest, source: Source, setup: TrainingSetup, images: str, output: Path
) -> Snapshots:
    """Where the state of this run is saved; it is only valid for these options, weights and images."""
    rows = {"train": len(setup.train), "validation": len(setup.validation)}
    content = {**requested.options(), "sha256": source.sha256, "images": images, **rows}
    check_state(output, content, requested.run.resume, requested.run.overwrite)
    return Snapshots(state_folder(output), content, requested.every, True, setup.progress)


def _cost(
    requested: FinetuneRequest,
    classifier: Classifier,
    setup: TrainingSetup,
    trace: Trace,
    clock: Clock,
    seconds: float | None,
) -> dict[str, Any]:
    trained = classifier.parameters() if requested.training.steps else classifier.head.parameters()
    seen = min(requested.training.batch_size, len(setup.train)) * len(trace.loss)
    return {
        "seconds": clock.seconds,
        "steps": len(trace.loss),
        "trained_parameters": sum(p.numel() for p in trained),
        "merged_parameters": sum(t.numel() for t in classifier.backbone.state_dict().values()),
        "images": len(setup.train) + len(setup.validation),
        "images_per_second": round(seen / seconds, 1) if seconds else None,
        "peak_memory_bytes": peak_memory(setup.pool.device),
        "serving": None,
    }


def _network(requested: FinetuneRequest, source: Source) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(requested.run.seed, "finetune", "head"))
        backbone: Any = source.family.skeleton(source.arch)
        head = nn.Linear(source.arch.features, len(requested.labels))
    backbone.load_state_dict({name: tensor.clone() for name, tensor in source.weights.items()}, assign=True)
    if requested.hardware.checkpointing and hasattr(backbone, "set_grad_checkpointing"):
        backbone.set_grad_checkpointing(True)
    return Classifier(backbone.requires_grad_(True), head, *requested.normalisation())


def _without_normalisation(
    requested: FinetuneRequest, source: Source, classifier: Classifier
) -> dict[str, torch.Tensor]:
    """The backbone's weights, for pixels in 0..1, in host memory; the backbone gets them too."""
    weights = {name: tensor.detach().cpu() for name, tensor in classifier.backbone.state_dict().items()}
    if source.family.kind == "text":
        return weights
    mean, std = requested.normalisation()
    folded = fold_normalisation(source.family, source.arch, weights, mean, std, f"source '{source.name}'")
    classifier.backbone.load_state_dict(folded)
    classifier.normalised = False
    return folded


def _training_setup(
    requested: FinetuneRequest, source: Source, device: torch.device, progress: Progress, notes: list[str]
) -> tuple[TrainingSetup, TestImages, str, Unit | None]:
    """The training setup, the test images (a note where none is labelled), and a hash of the training images.

    Also the unit in which a number is learned (None: there are classes).
    """
    task, transform = requested.task, reader(source)
    images, tests = (requested.data.build(split, task, transform) for split in ("train", "test"))
    if images is None or not images.labelled:
        raise DataError(
            f"finetune needs labelled images, and data={requested.data.name} has "
            + ("none" if images is None else "some without a label")
            + f" in the training split of task '{source.name}'. {LABELLED[source.family.kind]}"
        )
    if tests is None or not tests.labelled:
        tests = None
        notes.append("the data set has no labelled test images: nothing was evaluated")
    seen = read_test_images([tests], [task], requested.hardware.workers, progress)
    notes += [
        *alike_note(source.name, requested.labels),
        *images.notes,
        *(tests.notes if tests else ()),
        *seen.notes,
    ]
    order = torch.randperm(len(images), generator=generator(requested.run.seed, "finetune", "images")).tolist()
    count = requested.data.of(source.name).count(len(images))
    if not count:
        raise DataError("data.images_per_task=0 leaves no training images. Pass a number, or all.")
    usable = training_rows(images, order, count, seen.digests, requested.hardware.workers, progress)
    notes += usable.notes(images, requested.labels)
    rows = [*usable.digests]
    if requested.predicts == "number" and requested.start.predicts is None:
        notes.append(f"task '{source.name}': {GUESSED}")
    share = requested.data.validation if len(rows) >= MIN_FOR_VALIDATION else 0
    held = min(round(share * len(rows)), len(rows) - 1)
    unit = None
    if images.values is not None:
        unit = Unit.of([images.values[row] for row in rows[held:]], source.name)
        images = replace(images, values=unit.scaled(images.values))
    pool = Pool(images, requested.hardware, device)
    pool.keep(sorted(rows), _item_bytes(source), progress)
    given = requested.data.augment, requested.training, requested.run.seed, progress
    setup = TrainingSetup(pool, sorted(rows[held:]), sorted(rows[:held]), *given, unit is not None)
    return setup, seen, usable.sha256(), unit


def _item_bytes(source: Source) -> int:
    """Bytes of the largest input: an image in fp32, or five tensors of integers of a text."""
    if source.family.kind == "text":
        return 5 * 8 * int(min(source.arch.longest, source.preprocessing.longest))
    return 4 * int(math.prod(source.arch.input_size))


def _scores(
    requested: FinetuneRequest,
    classifier: Classifier,
    head: Head,
    tests: ImageSet | None,
    device: torch.device,
    progress: Progress,
) -> dict[str, Score]:
    if tests is None:
        return {}
    name = requested.spec.name
    scorer = Scorer.of({name: head}, [tests], None, requested.hardware, device, progress)
    score, _ = scorer.row(name, merged_forward(classifier.backbone, (), [head]))
    return {name: replace(score, features={})}
