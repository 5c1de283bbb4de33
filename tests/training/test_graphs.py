"""Recorded passes, with a recorder that runs on the CPU; tests/test_gpu.py records real CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.options import build
from fsmerge_cli.common.progress import Event
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.training.graphs import GraphedPass, _GraphedStudent, graphed

CPU = torch.device("cpu")
FAILED = "hardware.graphs: running without CUDA graphs"


class Small(Student):
    """One matrix, and a count of its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
        self.unused = nn.Parameter(torch.ones(2))
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return (images @ self.matrix).tanh()

    def project(self, features: Tensor, source: int) -> Tensor:
        return 2 * features


def recorded(record: Callable[..., Any]) -> tuple[Small, _GraphedStudent, list[str], dict[str, bool]]:
    student, notes, state = Small(), list[str](), {"whole": True}

    def note(event: Event) -> None:
        notes.append(event.phase)

    found = _GraphedStudent(student, Hardware("cpu", graphs=True), CPU, note, lambda: state["whole"])
    found._record = record
    return student, found, notes, state


def faithful(forward: nn.Module, samples: tuple[Tensor], allow_unused_input: bool) -> Callable[[Tensor], Tensor]:
    matrix = forward.student.matrix
    return lambda images: (images @ matrix).tanh()


def wrong(forward: nn.Module, samples: tuple[Tensor], allow_unused_input: bool) -> Callable[[Tensor], Tensor]:
    matrix = forward.student.matrix
    return lambda images: (images @ matrix.detach()).tanh() + 0 * matrix.sum()  # its gradient is lost


def failing(forward: nn.Module, samples: tuple[Tensor], allow_unused_input: bool) -> Callable[[Tensor], Tensor]:
    raise RuntimeError("operation not permitted\nwhen stream is capturing")


def test_only_whole_batches_of_one_size_with_gradients_are_replayed() -> None:
    student, found, notes, state = recorded(faithful)
    images = torch.randn(6, 4)
    found(images)
    before = student.passes  # one comparison
    assert torch.equal(found(images), (images @ student.matrix).tanh())
    assert student.passes == before
    found(images[:3])
    with torch.no_grad():
        found(images)
    state["whole"] = False  # parts of a batch would share the memory of their gradients
    found(images)
    assert student.passes == before + 3
    assert notes == []
    assert torch.equal(found.project(images, 1), 2 * images)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (wrong, "its results differ from those without"),
        (failing, "operation not permitted when stream is capturing"),
    ],
)
def test_a_graph_that_fails_or_differs_is_not_used(record: Callable[..., Any], why: str) -> None:
    student, found, notes, _ = recorded(record)
    images = torch.randn(6, 4)
    for _ in range(2):
        assert torch.equal(found(images), student(images))
    assert notes == [f"{FAILED} ({why})"]


def test_out_of_memory_is_not_hidden() -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    _, found, notes, _ = recorded(full)
    with pytest.raises(torch.OutOfMemoryError):
        found(torch.randn(6, 4))
    run = GraphedPass(lambda inputs: list(inputs), full)
    run([torch.ones(2)])
    with pytest.raises(torch.OutOfMemoryError):
        run([torch.ones(2)])
    assert notes == []


def on_cpu(function: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
    results = [one.clone() for one in function()]
    return results, lambda: [place.copy_(one) for place, one in zip(results, function())] and None


def test_a_pass_is_recorded_for_repeated_shapes() -> None:
    calls: list[int] = []

    def function(inputs: Any) -> list[Tensor]:
        calls.append(len(inputs[0]))
        return [one * (i + 1) for i, one in enumerate(inputs)]

    records = 0

    def record(inner: Callable[[], list[Tensor]]) -> Any:
        nonlocal records
        records += 1
        return on_cpu(inner)

    run = GraphedPass(function, record)
    for number, size in enumerate([3, 4, 4, 4, 5, 4]):
        shared = torch.full((size, 2), float(number))
        for found, factor in zip(run([shared, shared]), (1, 2)):
            assert torch.equal(found, shared * factor)
        assert records == (number >= 2)
    apart = [torch.ones(4, 2), torch.zeros(4, 2)]  # as many rows, but two tensors instead of one
    assert torch.equal(run(apart)[1], torch.zeros(4, 2))


def test_a_pass_that_cannot_be_recorded_runs() -> None:
    def record(inner: Callable[[], list[Tensor]]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    run = GraphedPass(lambda inputs: [inputs[0] + 1], record)
    for value in range(4):
        assert torch.equal(run([torch.full((2,), float(value))])[0], torch.full((2,), value + 1.0))


def test_without_a_gpu_nothing_is_recorded() -> None:
    student = Small()
    assert graphed(student, Hardware("cpu", graphs=True), CPU, lambda event: None, lambda: True) is student


@pytest.mark.parametrize("other", ["checkpointing", "distributed"])
def test_graphs_exclude_what_changes_the_passes(other: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"graphs and hardware\.{other} cannot be combined\. Pass graphs=false or"
    ):
        build(Hardware, {"graphs": True, other: True}, "hardware")
