"""What `device.py` measures, in parts; every part yields its rows as it goes: (name, value, details)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fsmerge_cli import merge
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.data.draw import Images
from fsmerge_cli.methods.base import Prepared
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation, StudentNetwork
from fsmerge_cli.models.head import Head
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teacher_group import TeacherGroup
from scripts.speed.cases import ARCHITECTURE, Case, Shape, free_memory, timed
from scripts.speed.measure import Sense, interleaved, memory, ratios, reset_peak
from scripts.speed.rows import QUICK
from scripts.speed.scale import LABELS, SMALL, write_images, write_source

Found = tuple[str, float, dict[str, Any]]
MODES = {"eager": {}, "compiled": {"compile": True}, "graphs": {"graphs": True}}
PAPER = FSMerge(
    maps="low_rank",
    rank=12,
    start="first",
    steps=1400,
    optimizer="adamw",
    lr=1e-4,
    targets="own",
    logit_weight=0.0,
    cross_task_weight=1.0,
    outlier_exposure=0.0,
    augment="paper",
    views=8,
    mixup=0.0,
    finetune_share=0.0,
)
"""The published recipe, `method=fs_merge_paper`."""


@dataclass(frozen=True)
class Setting:
    """Where and at which size the parts are measured. tiny: shapes that only test the script."""

    device: str = "cuda"
    tiny: bool = False

    def shape(self, **options: Any) -> Shape:
        """A pair of ViT-B/16 in bf16 with batches of 128, changed by `options`."""
        base = Shape(batch=128, depth=12, device=self.device, precision="bf16")
        return replace(base, **{**options, **(QUICK if self.tiny else {})})

    def times(self, number: int) -> int:
        """How often something is measured."""
        return 1 if self.tiny else number


def steps(setting: Setting, mode: str) -> Iterator[Found]:
    """Steps of low-rank and full maps in one mode, each beside distillation; in the eager one peak memory too."""
    shape = setting.shape(**MODES[mode])
    case = Case(shape)
    methods = {"kd": "kd", "low-rank": "low_rank", "full": "full"}
    if mode == "eager":
        for name, method in methods.items():
            step = case.step(method)
            step()
            yield f"memory-{name}", peak(step, shape.device), {}
            del step
            free_memory()
    distilling = partial(timed, case.step("kd"), shape.device)
    for name in ("low-rank", "full"):
        step = case.step(methods[name])
        pairs = interleaved(partial(timed, step, shape.device), distilling, setting.times(20), setting.times(3))
        found = ratios(pairs)
        if name == "low-rank":
            yield f"kd-{mode}", found["medians"][1], {"repeats": found["repeats"]}
        yield f"{name}-{mode}", found["ratio"]["median"], {**found, "unit_of_medians": "s"}
        del step, pairs
        free_memory()


def peak(step: Callable[[], None], device: str) -> float:
    """Peak bytes of one more call, everything held included: of the GPU, or of this process."""
    if torch.device(device).type != "cuda":
        reset_peak()
        step()
        return float(memory()["VmHWM"])
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated())


def capture(setting: Setting) -> Iterator[Found]:
    """Images per second of the feature capture, and of a plain loop over timm's modules."""
    shape = setting.shape(batch=1024)
    case, batch = Case(shape), min(256, shape.batch)
    plain = case.plain_pass(batch)

    def speed(run: Callable[[], Any]) -> float:
        return shape.k * shape.batch / timed(run, shape.device)

    library = partial(case.capture, "all", batch)
    found = ratios(interleaved(partial(speed, library), partial(speed, plain), setting.times(5)))
    yield "capture", found["ratio"]["median"], {**found, "unit_of_medians": "images/s"}


def teachers(setting: Setting) -> Iterator[Found]:
    """K teachers as one batched network beside one after the other, for a small and a large network."""
    for name, options in (("small", {"width": 192, "depth": 9, "size": 64}), ("base", {})):
        yield f"teachers-{name}", *teacher_ratio(setting.shape(**options), setting.times(10))


def teacher_ratio(shape: Shape, repeats: int) -> tuple[float, dict[str, Any]]:
    """Seconds of all teachers as one network, over those of one after the other."""
    case = Case(shape)
    targets, pixels = case.capture("all", shape.batch), case.pixels
    group = TeacherGroup(case.problem.sources, [own.run for own in targets], case.hardware, case.device)
    together = partial(timed, lambda: group.batched([pixels] * shape.k), shape.device)
    alone = partial(timed, lambda: [own.run(pixels) for own in targets], shape.device)
    found = ratios(interleaved(together, alone, repeats, warm=min(3, repeats)))
    return found["ratio"]["median"], {**found, "unit_of_medians": "s"}


def recipe(setting: Setting) -> Iterator[Found]:
    """A step of the default recipe (fresh views, all losses, Muon), beside the same step without teachers."""
    for mode in ("eager", "graphs"):
        problem = with_heads(Case(setting.shape(**MODES[mode])).problem)
        method = Distillation(steps=4 if setting.tiny else 24, batch_size=len(problem.images), start="first")
        prepared = method.prepare(problem)
        features = torch.randn(len(problem.images), problem.plan.arch.features, device=problem.device)
        stored = partial(torch.Tensor.narrow, features, 0, 0)  # the first features, of as many views as asked for
        without = [replace(own, run=lambda v, f=stored: f(len(v)), group=None) for own in prepared.targets]
        beside, alone = (
            step_seconds(method, problem, replace(prepared, targets=tuple(targets)))
            for targets in (prepared.targets, without)
        )
        details = {"medians": [beside, alone], "unit_of_medians": "s"}
        yield "recipe" if mode == "eager" else f"recipe-{mode}", beside / alone, details
        free_memory()


def with_heads(problem: Problem) -> Problem:
    """The problem with random heads of ten classes, so that every loss is computed."""
    size = problem.plan.arch.features
    heads = [
        Head(torch.randn(10, size) / size**0.5, torch.zeros(10), tuple(f"{i}-{c}" for c in range(10)))
        for i in range(len(problem.sources))
    ]
    return replace(problem, sources=[replace(s, head=h) for s, h in zip(problem.sources, heads)])


def step_seconds(method: Distillation, problem: Problem, prepared: Prepared) -> float:
    """Median seconds of a step of the library's own training loop, without the first third."""
    ends: list[float] = []

    def note(event: Any) -> None:
        if event.phase == "train":  # reported after the loss has arrived from the device
            ends.append(time.perf_counter())

    student = StudentNetwork(problem, "first", "linear")
    method.train(replace(problem, progress=note), student, prepared)
    warm = len(ends) // 3
    return statistics.median(b - a for a, b in pairwise(ends[warm:]))


def closed_form(setting: Setting) -> Iterator[Found]:
    """fs_closed_form of a pair, 100 images per task and 10 views of each: seconds and peak memory."""
    shape = setting.shape()
    case, count = Case(shape), 4 if setting.tiny else 100
    pixels = torch.rand(shape.k * count, 3, shape.size, shape.size, generator=torch.Generator().manual_seed(1))
    rows = torch.arange(len(pixels))
    hardware = Hardware(device=shape.device, precision="fp32", features="memory")
    problem = replace(case.problem, images=Images(pixels, rows % shape.k, rows, rows[:0]), hardware=hardware)
    method = FSClosedForm(views=2 if setting.tiny else 10)
    seconds: list[float] = []

    def solve() -> None:
        with hardware.session():
            seconds.append(timed(lambda: method.fit(problem), shape.device))

    held = peak(solve, shape.device)
    yield "closed-form", seconds[0], {"images": len(pixels), "views": method.views}
    yield "closed-form-memory", held, {}


def published(setting: Setting) -> Iterator[Found]:
    """The published experiment from checkpoints and a folder of images to the written model: 1,800 images."""
    kind = SMALL if setting.tiny else {"architecture": ARCHITECTURE, "model_args": {}, "size": 224}
    method = replace(PAPER, steps=4, batch_size=8, rank=2, views=1) if setting.tiny else PAPER
    count, tasks = 4 if setting.tiny else 100, ("a", "b")
    with TemporaryDirectory() as name:
        folder = Path(name)
        for seed, task in enumerate(tasks):
            write_source(folder / "checkpoints" / task, kind, seed)
        write_images(folder / "images", kind["size"], tasks, {"train": count, "test": 4 if setting.tiny else 20})
        sources = [
            {"name": task, "checkpoint": str(folder / "checkpoints" / task), "labels": list(LABELS), "arch": None}
            for task in tasks
        ]
        data = {"name": "folder", "root": str(folder / "images"), "images_per_task": count, "validation": 0.0}
        hardware = Hardware(device=setting.device, features="memory")
        start = time.perf_counter()
        result = merge(sources, method=method, data=data, hardware=hardware, output=folder / "merged")
        seconds = time.perf_counter() - start
        phases = result.evaluation()["cost"]["seconds"]
    yield "published", seconds, {"steps": method.steps, "seconds": phases}


def large(setting: Setting) -> Iterator[Found]:
    """A low-rank step of four ViT-L/16 beside distillation, and its peak memory."""
    shape = setting.shape(k=4, width=1024, depth=24, batch=64)
    case = Case(shape)
    kd, step = case.step("kd"), case.step("low_rank")
    device = shape.device
    found = ratios(interleaved(partial(timed, step, device), partial(timed, kd, device), setting.times(5)))
    yield "large", found["ratio"]["median"], {**found, "unit_of_medians": "s"}
    yield "large-memory", peak(step, device), {}


@dataclass(frozen=True)
class Part:
    """Rows that are measured together, in one process. limit: seconds after which it is stopped."""

    run: Callable[[Setting], Iterator[Found]]
    limit: float


PARTS: dict[str, Part] = {
    "eager": Part(partial(steps, mode="eager"), 80),
    "recipe": Part(recipe, 80),
    "published": Part(published, 200),
    "closed-form": Part(closed_form, 90),
    "graphs": Part(partial(steps, mode="graphs"), 80),
    "capture": Part(capture, 60),
    "teachers": Part(teachers, 40),
    "compiled": Part(partial(steps, mode="compiled"), 150),
    "large": Part(large, 90),
}
"""In the order of their importance: what does not fit into the time is left out at the end."""


@dataclass(frozen=True)
class RowInfo:
    """What a row says. unit: x (a ratio), s, bytes; bar: the accepted value (None: reported only)."""

    what: str
    part: str
    unit: str
    bar: float | None = None
    sense: Sense = "at most"


def _rows() -> dict[str, RowInfo]:
    found: dict[str, RowInfo] = {}
    names = {"eager": "eager", "compiled": "compiled", "graphs": "CUDA graphs"}
    for mode, shown in names.items():
        found[f"kd-{mode}"] = RowInfo(f"step of distillation, {shown}", mode, "s")
        found[f"low-rank-{mode}"] = RowInfo(f"low-rank step / distillation, {shown}", mode, "x", 1.05)
        found[f"full-{mode}"] = RowInfo(f"full-maps step / distillation, {shown}", mode, "x", 1.25)
    for name, shown in (("kd", "distillation"), ("low-rank", "low-rank maps"), ("full", "full maps")):
        found[f"memory-{name}"] = RowInfo(f"peak memory of a step, {shown}", "eager", "bytes")
    recipe_of = "step of the default recipe / the same without teachers"
    found["recipe"] = RowInfo(recipe_of, "recipe", "x", 1.6)
    found["recipe-graphs"] = RowInfo(f"{recipe_of}, CUDA graphs", "recipe", "x", 1.6)
    found["teachers-small"] = RowInfo("teachers as one network / one by one, width 192", "teachers", "x")
    found["teachers-base"] = RowInfo("teachers as one network / one by one", "teachers", "x")
    found["capture"] = RowInfo("images/s: feature capture / plain loop of timm", "capture", "x", 0.95, "at least")
    found["published"] = RowInfo("the published run, 1,800 images, 1,400 steps", "published", "s", 180)
    found["closed-form"] = RowInfo("fs_closed_form, 100 images per task, 10 views", "closed-form", "s", 60)
    found["closed-form-memory"] = RowInfo("peak memory of fs_closed_form", "closed-form", "bytes")
    found["large"] = RowInfo("ViT-L/16 x 4, batch 64: low-rank step / distillation", "large", "x")
    found["large-memory"] = RowInfo("peak memory of that low-rank step", "large", "bytes")
    return found


ROWS: dict[str, RowInfo] = _rows()
"""Every row, in the order of the page."""


def selected(names: Sequence[str] | None) -> dict[str, Part]:
    """The parts with these names (None: all)."""
    if unknown := set(names or ()) - PARTS.keys():
        raise SystemExit(f"--only: unknown part {', '.join(sorted(unknown))}; available: {', '.join(PARTS)}")
    return {name: part for name, part in PARTS.items() if name in (names or PARTS)}
