"""`finetune`: a data set and a start become a source that `merge` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fsmerge_cli.common.atomic import claim, explained, resolved
from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.hardware import Hardware, peak_memory
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.common.seeding import derive, generator
from fsmerge_cli.common.timing import Clock
from fsmerge_cli.data import DataConfig, ImageSet, Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.draw import FEWEST_FOR_VALIDATION, READ, digest
from fsmerge_cli.data.labelled import Pool
from fsmerge_cli.data.reading import sift, together
from fsmerge_cli.data.sampling import SHOWN, Tests, looked_at
from fsmerge_cli.evaluation.score_table import Bench
from fsmerge_cli.evaluation.scoring import Score, merged_forward
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source
from fsmerge_cli.runs.finetune_request import Asked, Start, load_start, request
from fsmerge_cli.runs.finetuned import Finetuned
from fsmerge_cli.runs.request import check_apart
from fsmerge_cli.runs.result import versions
from fsmerge_cli.training.classifier import Lesson, Tuned, Tuning, fit
from fsmerge_cli.training.snapshots import Keeper, check_state, state_folder
from fsmerge_cli.training.state import Trace

PROBE = 16
"""Images that the written model is held against."""


def finetune(
    model: str | Mapping[str, Any] | Start,
    *,
    data: str | Mapping[str, Any] | DataConfig,
    training: Mapping[str, Any] | Tuning | None = None,
    hardware: str | Mapping[str, Any] | Hardware = "auto",
    seed: int = 0,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: int | str = "60s",
    progress: Progress = silent,
    command: str | None = None,
) -> Finetuned:
    """Train a classifier on a data set: the head on the frozen backbone first, then all weights.

    model: a timm name, or a mapping with the keys of `starting.Start`. data: name of a shipped preset, a mapping
    with the keys of that group, or the dataclass itself; all images of the training split are taken where the
    mapping is not asked for fewer (`images_per_task`), `validation` of them choose the best step, and `augment` is
    drawn anew at every step. training: the keys of `classifier.Tuning`. output: folder to write (None: nothing is
    written, `Finetuned.save` does it later). The rest is as in `merge`.

    Raises UserError (and its kinds in `errors`) where the input is wrong, TrainingError where the run fails,
    Interrupted where a signal stopped it and `resume` can continue it.
    """
    asked = request(model, data, training, hardware, seed, overwrite, resume, checkpoint_every)
    clock, keeper = Clock(), Keeper()
    notes: list[str] = []
    with ExitStack() as stack:
        device = stack.enter_context(asked.hardware.session())
        folder = None
        if output is not None:
            check_apart(asked.inputs(), Path(output), asked.run.overwrite)
            folder = stack.enter_context(claim(Path(output), asked.run.overwrite))
        with clock.phase("sources"):
            source = load_start(asked)
        with clock.phase("data"):
            lesson, tests, images = _lesson(asked, source, device, progress, notes)
        if output is not None:
            keeper = _keeper(asked, source, lesson, images, Path(output))
            stack.enter_context(keeper.explained())
        with clock.phase("fit"):
            tuned = _network(asked, source).to(device)
            trace = fit(tuned, lesson, keeper)
        head = Head(tuned.head.weight.detach(), tuned.head.bias.detach(), asked.labels)
        with clock.phase("evaluate"):
            scores = _scores(asked, tuned, head, tests.sets[0], device, progress)
        if trace.part:
            notes.append(
                f"memory did not suffice for a whole batch: it was computed {trace.part} images at a time"
            )
        provenance = {
            "command": command or "fsmerge.finetune(...)",
            "seed": seed,
            "device": str(device),
            "processes": 1,
            "threads": asked.hardware.threads or torch.get_num_threads(),
            "versions": versions(),
            "sources": [{"name": source.name, "origin": source.origin, "sha256": source.sha256}],
            "images_sha256": images,
            "tests_sha256": tests.sha256,
        }
        weights = {name: tensor.detach().cpu() for name, tensor in tuned.backbone.state_dict().items()}
        done = Finetuned(
            replace(source, weights=weights, head=head.to("cpu")),
            scores,
            trace,
            torch.stack([lesson.pool.images[row][0] for row in lesson.train[:PROBE]]),
            _cost(asked, tuned, lesson, trace, clock, None if keeper.resumed else clock.seconds["fit"]),
            provenance,
            asked.options(),
            (*source.notes, *notes),
        )
        if folder is not None:
            with explained(Path(output or folder)):
                done.write(folder, resolved(Path(output or folder)))
    keeper.discard()
    return done


def _keeper(asked: Asked, source: Source, lesson: Lesson, images: str, output: Path) -> Keeper:
    """Where the state of this run is kept; it belongs to these options, weights and images alone."""
    rows = {"train": len(lesson.train), "validation": len(lesson.validation)}
    content = {**asked.options(), "sha256": source.sha256, "images": images, **rows}
    check_state(output, content, asked.run.resume, asked.run.overwrite)
    return Keeper(state_folder(output), content, asked.every, True, lesson.progress)


def _cost(
    asked: Asked, tuned: Tuned, lesson: Lesson, trace: Trace, clock: Clock, seconds: float | None
) -> dict[str, Any]:
    trained = tuned.parameters() if asked.training.steps else tuned.head.parameters()
    seen = min(asked.training.batch_size, len(lesson.train)) * len(trace.loss)
    return {
        "seconds": clock.seconds,
        "steps": len(trace.loss),
        "trained_parameters": sum(p.numel() for p in trained),
        "merged_parameters": sum(t.numel() for t in tuned.backbone.state_dict().values()),
        "images": len(lesson.train) + len(lesson.validation),
        "images_per_second": round(seen / seconds, 1) if seconds else None,
        "peak_memory_bytes": peak_memory(lesson.pool.device),
    }


def _network(asked: Asked, source: Source) -> Tuned:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(asked.run.seed, "finetune", "head"))
        backbone: Any = source.family.skeleton(source.arch)
        head = nn.Linear(source.arch.features, len(asked.labels))
    backbone.load_state_dict({name: tensor.clone() for name, tensor in source.weights.items()}, assign=True)
    if asked.hardware.checkpointing and hasattr(backbone, "set_grad_checkpointing"):
        backbone.set_grad_checkpointing(True)
    return Tuned(backbone.requires_grad_(True), head)


def _lesson(
    asked: Asked, source: Source, device: torch.device, progress: Progress, notes: list[str]
) -> tuple[Lesson, Tests, str]:
    """The images to learn from, those for the test (there may be no labelled ones, which is noted), a hash."""
    task, transform = Task(source.name, asked.labels), ToPixels(source.arch.input_size, source.preprocessing)
    images, tests = (asked.data.build(split, task, transform) for split in ("train", "test"))
    if images is None or not images.labelled:
        raise DataError(
            f"finetune needs labelled images, and data={asked.data.name} has "
            + ("none" if images is None else "some without a label")
            + f" in the training split of task '{source.name}'. Put every image into the folder of its class."
        )
    if tests is None or not tests.labelled:
        tests = None
        notes.append("the data set has no labelled test images: nothing was evaluated")
    seen = looked_at([tests], [task], asked.hardware.workers, progress)
    notes += [*images.notes, *(tests.notes if tests else ()), *seen.notes]
    order = torch.randperm(len(images), generator=generator(asked.run.seed, "finetune", "images")).tolist()
    count = asked.data.of(source.name).count(len(images))
    if not count:
        raise DataError("data.images_per_task=0 leaves nothing to learn from. Pass a number, or all.")
    sound = _sound(images, order, count, seen.marks, asked.hardware.workers, progress)
    notes += sound.notes(images)
    rows = [*sound.marks]
    share = asked.data.validation if len(rows) >= FEWEST_FOR_VALIDATION else 0
    held = min(round(share * len(rows)), len(rows) - 1)
    pool = Pool(images, asked.hardware, device)
    pool.keep(sorted(rows), source.arch.input_size, progress)
    given = asked.data.augment, asked.training, asked.run.seed, progress
    return Lesson(pool, sorted(rows[held:]), sorted(rows[:held]), *given), seen, sound.sha256()


@dataclass(frozen=True)
class _Sound:
    """Rows that are learned from, in the order of the draw: digest and class; and how many others were met.

    tested, twins: images that are among the test images, or that are the same as another one of the training.
    """

    marks: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    bad: dict[int, DataError] = field(default_factory=dict)
    tested: list[int] = field(default_factory=list)
    twins: list[int] = field(default_factory=list)

    def notes(self, images: ImageSet) -> list[str]:
        found = []
        if self.bad:
            more = ", ..." * (len(self.bad) > SHOWN)
            named = ", ".join(map(images.title, sorted(self.bad)[:SHOWN]))
            found.append(f"images that cannot be read are left out ({len(self.bad)}: {named}{more})")
        doubles = {"one among the test images": self.tested, "another one to learn from": self.twins}
        for what, rows in doubles.items():
            if rows:
                found.append(f"{len(rows)} image{'s' * (len(rows) > 1)} left out, identical to {what}")
        return found

    def sha256(self) -> str:
        """Of pixels and classes, also of images that are not kept in memory."""
        whole = hashlib.sha256()
        for row in sorted(self.marks):
            whole.update(b"%s %d;" % self.marks[row])
        return whole.hexdigest()


def _sound(
    images: ImageSet,
    order: Sequence[int],
    count: int,
    tested: Mapping[bytes, str],
    workers: int,
    progress: Progress,
) -> _Sound:
    """The first `count` rows that can be read, are not in the test and differ; for others the next are taken.

    Raises DataError where one is bad that may not be, or none is left.
    """
    found, left, seen = _Sound(), iter(order), set(tested)
    while len(found.marks) < count and (rows := [*islice(left, count - len(found.marks))]):
        for part in sift(images, rows, READ, workers):
            found.bad.update(part.errors)
            pixels, classes = part.content if part.numbers else ((), ())
            for row, own, label in zip(part.numbers, pixels, classes):
                mark = digest(own)
                if mark in seen:
                    (found.tested if mark in tested else found.twins).append(row)
                else:
                    seen.add(mark)
                    found.marks[row] = mark, int(label)
            progress(Event("look at images", len(found.marks), count, images=1))
    if found.bad and not images.lenient:
        raise together([*found.bad.values()])
    if not found.marks:
        raise DataError("no image is left to learn from: all are unreadable, or test images as well.")
    if len(found.marks) < count:
        progress(Event("look at images", count, count, images=1))
    return found


def _scores(
    asked: Asked, tuned: Tuned, head: Head, tests: ImageSet | None, device: torch.device, progress: Progress
) -> dict[str, Score]:
    if tests is None:
        return {}
    name = asked.spec.name
    bench = Bench.of({name: head}, [tests], None, asked.hardware, device, progress)
    score, _ = bench.row(name, merged_forward(tuned.backbone, (), [head]))
    return {name: replace(score, features={})}
