"""Sources, images, targets and one training step for the measuring scripts.

All calls of `bench.py` and `cost.py` into the library are here, so that a change of the library needs a change in
one place. Does not import Hydra.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures import resolve
from fsmerge_cli.architectures.ports import Mapped
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import silent
from fsmerge_cli.data.draw import Images
from fsmerge_cli.methods.kd import StudentNetwork
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.supernet.reference import UnfoldedSuperNet
from fsmerge_cli.training.graphs import graphed
from fsmerge_cli.training.objective import Batch, objective
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import TeacherTargets, capture

ARCHITECTURE = "vit_base_patch16_224"
HEAD = 64
"""Units per attention head, as in every ViT of timm's S, B and L."""


@dataclass(frozen=True)
class Shape:
    """k sources of `depth` blocks and `width` units, images of size x size pixels, `batch` images per step."""

    k: int = 2
    width: int = 768
    depth: int = 2
    batch: int = 32
    rank: int = 12
    size: int = 224
    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    graphs: bool = False

    def __str__(self) -> str:
        name = "ViT-B/16" if self.width == 768 else f"ViT/16, width {self.width}"
        size = "" if self.size == 224 else f", {self.size} px"
        return f"{name}, {self.depth} block{'s' * (self.depth > 1)}{size}"


class Case:
    """Sources with random weights, random images and the sources' features; the same for every method."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.device = torch.device(shape.device)
        precision: Any = shape.precision
        self.hardware = Hardware(
            device=shape.device,
            precision=precision,
            features="memory",
            compile=shape.compile,
            graphs=shape.graphs,
        )
        sources = [random_source(shape, i) for i in range(shape.k)]
        random = torch.Generator().manual_seed(0)
        pixels = torch.rand(shape.batch, 3, shape.size, shape.size, generator=random)
        task = torch.arange(shape.batch) % shape.k
        rows = torch.arange(shape.batch)
        images = Images(pixels, task, rows, rows[:0])
        self.problem = Problem(compile_plan(sources), sources, images, self.hardware, self.device)
        self.frozen_bytes = sum(t.nbytes for s in sources for t in s.weights.values())
        # The part that a SuperNet keeps: matrices (bf16 if the network runs in bf16), but no norms.
        narrow = 2 if self.hardware.bf16(self.device) else 4
        roles = self.problem.plan.roles
        kept = [(roles[n], t.numel()) for s in sources for n, t in s.weights.items()]
        self.held_bytes = sum(
            size * (narrow if role.read else 4) for role, size in kept if isinstance(role, Mapped)
        )

    @cached_property
    def pixels(self) -> Tensor:
        """The batch, on the device."""
        return self.problem.images.images.to(self.device)

    @cached_property
    def targets(self) -> tuple[TeacherTargets, ...]:
        """Features of each source on the images of its task."""
        return self.capture("own", self.shape.batch)

    def capture(self, targets: Any, batch: int) -> tuple[TeacherTargets, ...]:
        """The library's forward pass of the teachers."""
        return capture(
            self.problem.sources,
            self.problem.images,
            targets,
            replace(self.hardware, eval_batch=batch),
            self.device,
            silent,
        )

    def maps(self, structure: Any) -> tuple[nn.Module, Any]:
        """Initial maps, and a function that folds them into weights."""
        plan, weights = self.problem.plan, self.problem.weights("cpu")
        maps = start_maps(plan, weights, structure, "first", self.shape.rank).to(self.device)
        return maps, lambda: fold(plan, maps, weights)

    def student(self, method: str) -> Any:
        """method: kd, a structure of maps (low_rank, full, ...), or `unfolded` (full maps as in the paper)."""
        if method == "kd":
            return StudentNetwork(self.problem, "first", "linear")
        plan, weights = self.problem.plan, self.problem.weights("cpu")
        structure: Any = "full" if method == "unfolded" else method
        maps = start_maps(plan, weights, structure, "first", self.shape.rank).to(self.device)
        if method == "unfolded":
            return UnfoldedSuperNet(plan, maps, weights, torch.float32)
        return SuperNet(plan, maps, weights, self.hardware)

    def step(self, method: str) -> Callable[[], None]:
        """One complete training step, as in the library's training loop."""
        student = graphed(self.student(method), self.hardware, self.device, silent, whole=lambda: True)
        parameters = [p for p in student.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-3, fused=True)
        rows, pixels, targets = torch.arange(self.shape.batch), self.pixels, self.targets

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with self.hardware.autocast(self.device):
                loss = objective(student, Batch.of(pixels, targets, rows), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            loss.item()

        return step

    def fold_step(self, structure: str) -> Callable[[], None]:
        """The fold and its gradient, without network, loss and optimiser."""
        maps, folding = self.maps(structure)
        gradients: list[Tensor] = []

        def step() -> None:
            maps.zero_grad(set_to_none=True)
            with self.hardware.autocast(self.device):
                folded = [t for t in folding().values() if t.requires_grad]
            if not gradients:
                gradients.extend(torch.full_like(t, 1e-3) for t in folded)
            torch.autograd.backward(folded, gradients)

        return step

    def plain_pass(self, batch: int) -> Callable[[], None]:
        """Baseline of the teacher pass: timm's modules on the same images, in a plain loop."""
        from timm.models import create_model

        networks = []
        for source in self.problem.sources:
            module = create_model(source.arch.name, num_classes=0, **source.arch.args)
            module.load_state_dict(dict(source.weights))
            networks.append(module.to(self.device).eval())
        images = self.problem.images.images

        def loop() -> None:
            with torch.inference_mode(), self.hardware.autocast(self.device):
                for module in networks:
                    for part in images.split(batch):
                        module(part.to(self.device))

        return loop


def random_source(shape: Shape, seed: int) -> Source:
    """A ViT with timm's initialisation, as a source."""
    config = {
        "model_args": {
            "embed_dim": shape.width,
            "depth": shape.depth,
            "num_heads": max(1, shape.width // HEAD),
            "img_size": shape.size,
        }
    }
    family, arch = resolve(ARCHITECTURE, {}, config, "measurement")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = dict(family.build(arch).state_dict())
    return Source(f"s{seed}", family, arch, weights, None, origin="random", sha256="0" * 64)


def timed(step: Callable[[], None], device: str) -> float:
    """Seconds of one call; a GPU is synchronised before and after."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def free_memory() -> None:
    """Free the memory of an earlier measurement."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def described(shape: Shape) -> dict[str, Any]:
    """A shape as JSON."""
    return {**asdict(shape), "text": str(shape)}
