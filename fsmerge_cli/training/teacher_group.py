"""All teachers of a training on the new views of a step: small ones as one batched network, beside the student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from fsmerge_cli.common.hardware import Hardware, out_of_memory
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.graphs import GraphedPass

SMALL_PASS = 5e11
"""Most operations of a forward pass in which a GPU spends most of its time on launching kernels."""

MAX_PADDING = 1.25
"""Most images in a batched pass over inputs of unequal numbers, relative to the images without padding."""

MATRIX_MODULES = (nn.Linear, nn.Conv2d)
"""Modules whose weights autocast rounds to bf16 at every use."""

Run = Callable[[Inputs], Tensor]


def rounded(module: nn.Module) -> nn.Module:
    """The module with the weights of its matrices in bf16, in place: what autocast rounds to at every use."""
    for part in module.modules():
        if type(part) in MATRIX_MODULES:
            part.to(torch.bfloat16)
    return module


class TeacherGroup:
    """Runs k teachers on new inputs, all of them at once; the features are those of running one after the other.

    runs: every teacher by itself, [m, C, H, W] -> [m, d_i] in fp32. Sources of one architecture whose pass is
    small (`SMALL_PASS`) run as one network with stacked weights, with a k-th of the launches. Large ones keep a
    GPU busy one by one, and a batched product cannot add its bias in the same kernel. On a GPU the passes have a
    stream of their own, so that they fill what the student leaves free.
    """

    def __init__(
        self, sources: Sequence[Source], runs: Sequence[Run], hardware: Hardware, device: torch.device
    ) -> None:
        self._sources, self._runs, self._hardware, self._device = sources, runs, hardware, device
        self._stackable = len(sources) > 1 and equal(sources) and all(s.reads == "pooled" for s in sources)
        self._run = GraphedPass(self._features) if hardware.graphs else self._features

    def start(self, inputs: Sequence[Inputs]) -> Pending:
        """Start the passes; inputs: one [m_i, C, H, W] per teacher, or the same tensor for all of them."""
        if self._device.type != "cuda":
            return Pending(self._features(inputs))
        ours, theirs = torch.cuda.current_stream(self._device), self._stream
        theirs.wait_stream(ours)
        for one in inputs:
            one.record_stream(theirs)
        with torch.cuda.stream(theirs):
            features = self._run(inputs)
            done = theirs.record_event()
        return Pending(features, done)

    def _features(self, inputs: Sequence[Inputs]) -> list[Tensor]:
        tensors = [one for one in inputs if isinstance(one, Tensor)]
        if len(tensors) == len(inputs) and self._stackable and self._is_small(tensors):
            try:
                return self.batched(tensors)
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                self._stackable = False  # an architecture of which `vmap` cannot take k: one after the other
        return [run(one) if len(one) else torch.empty(0) for run, one in zip(self._runs, inputs)]

    def _is_small(self, inputs: Sequence[Tensor]) -> bool:
        sizes = [len(one) for one in inputs]
        padded = max(sizes) * len(sizes)
        return 0 < padded <= MAX_PADDING * sum(sizes) and self._operations * max(sizes) <= SMALL_PASS

    @cached_property
    def _operations(self) -> int:
        return operations(self._sources[0])

    def batched(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Features of all teachers by one network with stacked weights, in parts of `hardware.eval_batch`."""
        size = self._hardware.eval_batch
        if all(one is inputs[0] for one in inputs):
            parts = [self._call(part, shared=True) for part in torch.split(inputs[0], size)]
            return list(torch.cat(parts, 1).unbind(0))
        longest = max(len(one) for one in inputs)
        missing = (0, 0) * (inputs[0].ndim - 1)
        padded = torch.stack([F.pad(one, (*missing, 0, longest - len(one))) for one in inputs])
        parts = [self._call(part, shared=False) for part in torch.split(padded, size, dim=1)]
        return [features[: len(one)] for features, one in zip(torch.cat(parts, 1), inputs)]

    def _call(self, images: Tensor, shared: bool) -> Tensor:
        """Images [m, C, H, W] for all teachers, or [k, m, C, H, W] -> features [k, m, d] in fp32."""
        call, weights = self._network
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            features: Tensor = vmap(call, in_dims=(0, None if shared else 0))(weights, images)
        return features

    @cached_property
    def _network(self) -> tuple[Callable[[dict[str, Tensor], Tensor], Tensor], dict[str, Tensor]]:
        """The network as a function of its weights, and the stacked weights of the teachers."""
        source, bf16 = self._sources[0], self._hardware.bf16(self._device)
        module = source.family.skeleton(source.arch).requires_grad_(False).eval()
        matrices = {
            f"{name}.{own}" if name else own
            for name, part in module.named_modules()
            if type(part) in MATRIX_MODULES
            for own, _ in part.named_parameters(recurse=False)
        }

        def stacked(name: str) -> Tensor:
            dtype = torch.bfloat16 if bf16 and name in matrices else None
            return torch.stack([s.weights[name].to(self._device, dtype) for s in self._sources])

        def call(weights: dict[str, Tensor], images: Tensor) -> Tensor:
            with _Autocast(bf16):
                features: Tensor = functional_call(module, weights, (images,))
            return features.float()

        return call, {name: stacked(name) for name in source.weights}

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Pending:
    """Features that may still be computed. done: recorded after them on a stream of their own (None: they are)."""

    features: Sequence[Tensor]
    done: torch.cuda.Event | None = None

    def of(self, teacher: int) -> Tensor:
        """The features of one teacher, for use on the current stream."""
        found = self.features[teacher]
        if self.done is not None:
            stream = torch.cuda.current_stream(found.device)
            stream.wait_event(self.done)
            found.record_stream(stream)
        return found


class _Autocast(TorchFunctionMode):
    """bf16 as autocast chooses it, above `vmap`, whose decompositions autocast does not see."""

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self._enabled = enabled

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        dtype = _dtype(func) if self._enabled else None
        if dtype is None:
            return func(*args, **(kwargs or {}))

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return func(*map(cast, args), **{name: cast(value) for name, value in (kwargs or {}).items()})


PRODUCTS = (torch.matmul, torch.bmm, torch.addmm, torch.baddbmm, torch.Tensor.matmul, torch.Tensor.__matmul__)
NARROW: frozenset[Any] = frozenset((F.linear, F.conv2d, F.scaled_dot_product_attention, *PRODUCTS))
WIDE: frozenset[Any] = frozenset((F.layer_norm, F.group_norm, F.softmax, torch.softmax, torch.Tensor.softmax))


def _dtype(function: Any) -> torch.dtype | None:
    """The type that autocast takes for a function (None: that of its inputs)."""
    return torch.bfloat16 if function in NARROW else torch.float32 if function in WIDE else None


def equal(sources: Sequence[Source]) -> bool:
    """Whether all sources have one architecture and tensors of equal shapes."""
    first = sources[0]
    shapes = {name: tensor.shape for name, tensor in first.weights.items()}
    return all(
        own.family is first.family
        and own.arch == first.arch
        and {name: tensor.shape for name, tensor in own.weights.items()} == shapes
        for own in sources[1:]
    )


def operations(source: Source) -> int:
    """Floating-point operations of a forward pass per input."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        weights = {name: tensor.to("meta") for name, tensor in source.weights.items()}
        one = source.family.sample(source.arch, 1, None)
        functional_call(source.family.skeleton(source.arch).eval(), weights, (one,))
    return int(counter.get_total_flops())
