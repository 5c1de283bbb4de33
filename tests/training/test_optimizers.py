"""Muon against exact orthogonal factors and torch's own, and what it is given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fsmerge_cli.methods.base import Trained
from fsmerge_cli.methods.kd import PlainStudent
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.training.optimizers import Muon, optimisers, orthogonalised
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.state import Run, Schedule
from tests.support.sources import distilling, folding

Make = Callable[..., Problem]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_directions_stay_and_lengths_become_alike(shape: tuple[int, int]) -> None:
    matrix = drawn(*shape)
    P, s, Qh = torch.linalg.svd(matrix, full_matrices=False)
    inside = P.T @ orthogonalised(matrix[None])[0] @ Qh.T
    lengths = inside.diagonal()
    torch.testing.assert_close(inside, lengths.diag(), atol=1e-5, rtol=0)
    assert s.max() / s.min() > 2
    assert lengths.min() > 0.6
    assert lengths.max() < 1.3


def test_of_a_stack_every_matrix_is_its_own() -> None:
    stack = drawn(3, 5, 8) * torch.tensor([1e-4, 1.0, 1e3])[:, None, None]
    for alone, together in zip(stack, orthogonalised(stack)):
        torch.testing.assert_close(together, orthogonalised(alone[None])[0])
    assert not orthogonalised(torch.zeros(1, 3, 3)).any()


def test_it_takes_the_steps_of_torchs_own() -> None:
    shapes = [(6, 6), (12, 4), (4, 12), (6, 6)]
    ours, theirs = ([nn.Parameter(drawn(*shape)) for shape in shapes] for _ in range(2))
    own = Muon(ours, 0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="original")
    for step in range(4):
        for pair in zip(ours, theirs):
            for parameter in pair:
                parameter.grad = drawn(*parameter.shape) + step
        own.step()
        other.step()
    for one, two in zip(ours, theirs):
        torch.testing.assert_close(one, two, atol=4e-3, rtol=0)  # theirs are computed in bf16
        assert not torch.allclose(one, drawn(*one.shape), atol=2e-2)


def test_stacks_and_pieces_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [nn.Parameter(drawn(4, 3) + i) for i in range(5)]
    stack = nn.Parameter(torch.stack([p.detach().clone() for p in pieces]))
    few = [nn.Parameter(p.detach().clone()) for p in pieces]
    for parameters in ([stack], pieces, few):
        if parameters is few:
            monkeypatch.setattr("fsmerge_cli.training.optimizers.TOGETHER", 24)  # two of them
        for parameter in parameters:
            parameter.grad = parameter.detach().sin()
        Muon(parameters, 0.1).step()
    torch.testing.assert_close(torch.stack(list(pieces)), stack)
    torch.testing.assert_close(torch.stack(list(few)), stack)


def test_a_parameter_without_a_gradient_stays() -> None:
    still, moved = nn.Parameter(drawn(3, 3)), nn.Parameter(drawn(3, 3))
    moved.grad = drawn(3, 3)
    Muon([still, moved], 0.1, weight_decay=0.5).step()
    assert torch.equal(still, drawn(3, 3))
    assert not torch.equal(moved, drawn(3, 3))


def test_matrices_are_what_muon_is_given(make_problem: Make) -> None:
    problem = make_problem()
    k = len(problem.sources)
    weights, eye = problem.weights(), torch.eye(problem.plan.arch.features)
    student = PlainStudent(problem, weights[0], [eye] * k)
    assert {id(p) for p in student.matrices()} == {
        id(p) for n, p in student.network.named_parameters() if p.ndim == 2
    }

    for structure, held in (("full", {"matrix"}), ("low_rank", {"A", "B"}), ("diagonal", set())):
        net = SuperNet(problem.plan, start_maps(problem.plan, weights, structure, "first", 2), weights)
        given = {id(p) for p in net.matrices()}
        names = [n.rsplit(".", 1)[-1] for n, p in net.named_parameters() if id(p) in given]
        assert set(names) == held
        projectors = [
            n for n, p in net.named_parameters() if n.endswith(tuple(held or "?")) and id(p) not in given
        ]
        assert len(projectors) == len(held) * k  # U_out of every source
        first, *others = optimisers(list(net.parameters()), net.matrices(), 0.1, 0.2, 0.0)
        assert isinstance(first, torch.optim.AdamW)
        assert [type(other) for other in others] == ([Muon] if held else [])
        assert sum(len(o.param_groups[0]["params"]) for o in (first, *others)) == len(list(net.parameters()))


def test_both_optimisers_follow_one_cycle() -> None:
    network = nn.Linear(4, 4)
    run = Run(network, Schedule(10, 4, 0.1, 0.0, 1.0, 0.4), [network.weight])  # type: ignore[arg-type]
    seen = []
    for _ in range(10):
        network(torch.ones(2, 4)).sum().backward()
        seen.append([optimiser.param_groups[0]["lr"] for optimiser in run._optimisers])
        run.advance()
    assert max(one for one, _ in seen) == pytest.approx(0.1)
    for one, two in seen:
        assert two == pytest.approx(4 * one)
    alone = Run(network, Schedule(10, 4, 0.1, 0.0, 1.0), [])  # type: ignore[arg-type]
    assert [type(optimiser) for optimiser in alone._optimisers] == [torch.optim.AdamW]


@pytest.mark.parametrize("kind", [folding, distilling])
def test_it_learns_faster(make_problem: Make, kind: Callable[..., Trained]) -> None:
    problem = make_problem()
    slow = kind(steps=60).fit(problem).trace.loss[-1]
    fast = kind(steps=60, optimizer="muon", matrix_lr=0.02).fit(problem).trace.loss[-1]
    assert fast < 0.8 * slow


def test_a_state_holds_both_optimisers() -> None:
    def begin() -> tuple[nn.Linear, Run]:
        torch.manual_seed(0)
        network = nn.Linear(4, 4)
        return network, Run(network, Schedule(6, 4, 0.1, 0.0, 1.0, 0.1), [network.weight])  # type: ignore[arg-type]

    def go(network: nn.Linear, run: Run, steps: int) -> None:
        for _ in range(steps):
            loss = network(torch.eye(4)).square().sum()
            loss.backward()
            run.losses.append(loss.item())
            run.advance()

    whole, run = begin()
    go(whole, run, 6)
    half, first = begin()
    go(half, first, 3)
    tensors, facts = {n: t.clone() for n, t in first.tensors().items()}, first.facts()
    other, second = begin()
    second.restore(tensors, facts)
    go(other, second, 3)
    assert torch.equal(whole.weight, other.weight)
    assert torch.equal(whole.bias, other.bias)
    assert run.losses == second.losses
