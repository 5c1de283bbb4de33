"""CUDA graphs: the kernels of a step are recorded once and then started together (`hardware.graphs`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.common.hardware import Hardware, out_of_memory
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.supernet.student import Student

TOLERANCE = 0.05
"""Largest relative difference between a recorded step and the same step without a graph; that of bf16 is less."""


def graphed(
    student: Student, hardware: Hardware, device: torch.device, progress: Progress, whole: Callable[[], bool]
) -> Student:
    """The student; its forward and backward pass over whole batches are CUDA graphs where `hardware` asks for it.

    whole: whether a batch is computed in one part. (A graph writes its gradients into the same memory each time,
    so that the gradients of a second part would replace those of the first.)
    """
    if not hardware.graphs or device.type != "cuda":
        return student
    return _GraphedStudent(student, hardware, device, progress, whole)


class _GraphedStudent(Student):
    """Records the student at the first whole batch; other shapes, and passes without gradients, are run."""

    def __init__(
        self,
        student: Student,
        hardware: Hardware,
        device: torch.device,
        progress: Progress,
        whole: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.student = student
        self._hardware, self._device, self._progress, self._whole = hardware, device, progress, whole
        self._record: Any = torch.cuda.make_graphed_callables
        self._shape: torch.Size | None = None
        self._graph: Callable[[Tensor], Tensor] | None = None

    def project(self, features: Tensor, source: int) -> Tensor:
        """The student's own projector, outside of the graph."""
        return self.student.project(features, source)

    def project_tokens(self, features: Tensor, source: int) -> Tensor:
        """As `project`."""
        return self.student.project_tokens(features, source)

    def forward(self, images: Inputs) -> Tensor:
        """Merged features of a batch. Texts, whose length changes from batch to batch, are not recorded."""
        if isinstance(images, Tensor) and torch.is_grad_enabled() and self._whole():
            if self._shape is None:
                self._shape = images.shape
                self._graph = self._recorded(images)
            if self._graph is not None and images.shape == self._shape:
                return self._graph(images)
        features: Tensor = self.student(images)
        return features

    def _recorded(self, images: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The student as a graph; None, with a note, where it cannot be recorded or differs from the student."""
        why = "its results differ from those without"
        forward = _Forward(self.student)
        try:
            with self._uncached():
                graph: Callable[[Tensor], Tensor] = self._record(
                    forward, (images.detach().clone(),), allow_unused_input=True
                )
                found, expected = (_values(run, images, forward.parameters()) for run in (graph, self.student))
            if all(_close(a, b) for a, b in zip(found, expected)):
                return graph
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            why = " ".join(str(error).split())[:200]
        self._progress(Event(f"hardware.graphs: running without CUDA graphs ({why})", 1, 1))
        return None

    def _uncached(self) -> Any:
        """The autocast of the step without its cache, whose tensors would belong to the graph."""
        bf16 = self._hardware.bf16(self._device)
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False)


class _Forward(nn.Module):
    """The student as the module whose `forward` is replaced by the recorded one."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        """Merged features."""
        features: Tensor = self.student(images)
        return features


def _values(run: Callable[[Tensor], Tensor], images: Tensor, parameters: Any) -> list[Tensor | None]:
    """Features, and the gradients of a sum of them, as copies: a graph reuses its memory."""
    trained = [p for p in parameters if p.requires_grad]
    features = run(images)
    signs = torch.linspace(-1, 1, features.shape[-1], device=features.device, dtype=features.dtype)
    gradients = torch.autograd.grad((features * signs).sum(), trained, allow_unused=True)
    return [None if t is None else t.detach().clone() for t in (features, *gradients)]


def _close(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None:
        return all(t is None or not bool(t.any()) for t in (found, expected))
    difference = (found.float() - expected.float()).norm()
    return bool(difference <= TOLERANCE * expected.float().norm() + 1e-12)


Capture = Callable[[Callable[[], list[Tensor]]], tuple[list[Tensor], Callable[[], None]]]


def capture(function: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
    """Record a function on the current stream: its results, and a call that computes them again."""
    graph = torch.cuda.CUDAGraph()
    # thread_local: the threads of a loader may allocate memory meanwhile.
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        results = function()
    return results, graph.replay


class GraphedPass:
    """A pass without gradients, recorded when its inputs have the same shapes twice in a row.

    It is compared once with the function itself, and not used where both differ.

    The results stay valid until the next call. All calls are made on one stream.
    """

    def __init__(self, function: Callable[[Sequence[Any]], list[Tensor]], record: Capture = capture) -> None:
        self._function, self._record = function, record
        self._shapes: list[torch.Size] = []
        self._places: list[Tensor] = []
        self._results: list[Tensor] = []
        self._replay: Callable[[], None] | None = None
        self._usable = True

    def __call__(self, inputs: Sequence[Any]) -> list[Tensor]:
        """The function's results; the same tensor may be several of the inputs. Texts are not recorded."""
        if not all(isinstance(one, Tensor) for one in inputs):
            return self._function(inputs)
        distinct = list({id(one): one for one in inputs}.values())
        order = [next(i for i, one in enumerate(distinct) if one is own) for own in inputs]
        shapes = [own.shape for own in inputs]
        if self._usable and self._replay is None and shapes == self._shapes:
            self._start(distinct, order)
        if self._replay is None or shapes != self._shapes or len(distinct) != len(self._places):
            self._shapes = self._shapes if self._replay else shapes
            return self._function(inputs)
        for place, one in zip(self._places, distinct):
            place.copy_(one)
        self._replay()
        return self._results

    def _start(self, distinct: Sequence[Tensor], order: Sequence[int]) -> None:
        self._places = [one.clone() for one in distinct]
        inputs = [self._places[i] for i in order]
        try:
            self._results, replay = self._record(lambda: self._function(inputs))
            expected = self._function(inputs)
            replay()
            if all(_close(a, b) for a, b in zip(self._results, expected)):
                self._replay = replay
            self._usable = self._replay is not None
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            self._usable = False  # the same results without a graph
