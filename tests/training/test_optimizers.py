"""Muon compared with exact orthogonal factors and torch.optim.Muon, and the parameters it trains."""

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
from fsmerge_cli.training.state import Schedule, TrainingState
from tests.support.sources import distilling, folding

Make = Callable[..., Problem]


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_singular_vectors_stay_and_singular_values_become_similar(shape: tuple[int, int]) -> None:
    matrix = gaussian(*shape)
    P, s, Qh = torch.linalg.svd(matrix, full_matrices=False)
    inside = P.T @ orthogonalised(matrix[None])[0] @ Qh.T
    lengths = inside.diagonal()
    torch.testing.assert_close(inside, lengths.diag(), atol=1e-5, rtol=0)
    assert s.max() / s.min() > 2
    assert lengths.min() > 0.6
    assert lengths.max() < 1.3


def test_every_matrix_of_a_stack_is_orthogonalised_independently() -> None:
    stack = gaussian(3, 5, 8) * torch.tensor([1e-4, 1.0, 1e3])[:, None, None]
    for single, stacked in zip(stack, orthogonalised(stack)):
        torch.testing.assert_close(stacked, orthogonalised(single[None])[0])
    assert not orthogonalised(torch.zeros(1, 3, 3)).any()


def test_it_takes_the_steps_of_torch_optim_muon() -> None:
    shapes = [(6, 6), (12, 4), (4, 12), (6, 6)]
    params, reference = ([nn.Parameter(gaussian(*shape)) for shape in shapes] for _ in range(2))
    own = Muon(params, 0.02, weight_decay=0.1)
    other = torch.optim.Muon(reference, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="original")
    for step in range(4):
        for pair in zip(params, reference):
            for parameter in pair:
                parameter.grad = gaussian(*parameter.shape) + step
        own.step()
        other.step()
    for one, two in zip(params, reference):
        torch.testing.assert_close(one, two, atol=4e-3, rtol=0)  # torch computes in bf16
        assert not torch.allclose(one, gaussian(*one.shape), atol=2e-2)


def test_stacks_and_single_matrices_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [nn.Parameter(gaussian(4, 3) + i) for i in range(5)]
    stack = nn.Parameter(torch.stack([p.detach().clone() for p in pieces]))
    few = [nn.Parameter(p.detach().clone()) for p in pieces]
    for parameters in ([stack], pieces, few):
        if parameters is few:
            monkeypatch.setattr("fsmerge_cli.training.optimizers.MAX_BATCHED", 24)  # two of them
        for parameter in parameters:
            parameter.grad = parameter.detach().sin()
        Muon(parameters, 0.1).step()
    torch.testing.assert_close(torch.stack(list(pieces)), stack)
    torch.testing.assert_close(torch.stack(list(few)), stack)


def test_a_parameter_without_a_gradient_stays() -> None:
    still, moved = nn.Parameter(gaussian(3, 3)), nn.Parameter(gaussian(3, 3))
    moved.grad = gaussian(3, 3)
    Muon([still, moved], 0.1, weight_decay=0.5).step()
    assert torch.equal(still, gaussian(3, 3))
    assert not torch.equal(moved, gaussian(3, 3))


def test_muon_trains_the_matrices_between_hidden_units(make_problem: Make) -> None:
    problem = make_problem()
    k = len(problem.sources)
    weights, eye = problem.weights(), torch.eye(problem.plan.arch.features)
    student = PlainStudent(problem, weights[0], [eye] * k)
    assert {id(p) for p in student.matrices()} == {
        id(p) for n, p in student.network.named_parameters() if p.ndim == 2
    }

    for structure, fields in (("full", {"matrix"}), ("low_rank", {"A", "B"}), ("diagonal", set())):
        net = SuperNet(problem.plan, start_maps(problem.plan, weights, structure, "first", 2), weights)
        matrices = {id(p) for p in net.matrices()}
        names = [n.rsplit(".", 1)[-1] for n, p in net.named_parameters() if id(p) in matrices]
        assert set(names) == fields
        projectors = [
            n for n, p in net.named_parameters() if n.endswith(tuple(fields or "?")) and id(p) not in matrices
        ]
        assert len(projectors) == len(fields) * k  # U_out of every source
        first, *others = optimisers(list(net.parameters()), net.matrices(), 0.1, 0.2, 0.0)
        assert isinstance(first, torch.optim.AdamW)
        assert [type(other) for other in others] == ([Muon] if fields else [])
        assert sum(len(o.param_groups[0]["params"]) for o in (first, *others)) == len(list(net.parameters()))


def test_both_optimisers_follow_the_one_cycle_schedule() -> None:
    network = nn.Linear(4, 4)
    state = TrainingState(network, Schedule(10, 4, 0.1, 0.0, 1.0, 0.4), [network.weight])  # type: ignore[arg-type]
    seen = []
    for _ in range(10):
        network(torch.ones(2, 4)).sum().backward()
        seen.append([optimiser.param_groups[0]["lr"] for optimiser in state._optimisers])
        state.advance()
    assert max(one for one, _ in seen) == pytest.approx(0.1)
    for one, two in seen:
        assert two == pytest.approx(4 * one)
    adam_only = TrainingState(network, Schedule(10, 4, 0.1, 0.0, 1.0), [])  # type: ignore[arg-type]
    assert [type(optimiser) for optimiser in adam_only._optimisers] == [torch.optim.AdamW]


@pytest.mark.full
@pytest.mark.parametrize("kind", [folding, distilling])
def test_muon_learns_faster_than_adamw(make_problem: Make, kind: Callable[..., Trained]) -> None:
    problem = make_problem()
    slow = kind(steps=60).fit(problem).trace.loss[-1]
    fast = kind(steps=60, optimizer="muon", matrix_lr=0.02).fit(problem).trace.loss[-1]
    assert fast < 0.8 * slow


def test_a_saved_state_contains_both_optimisers() -> None:
    def begin() -> tuple[nn.Linear, TrainingState]:
        torch.manual_seed(0)
        network = nn.Linear(4, 4)
        return network, TrainingState(network, Schedule(6, 4, 0.1, 0.0, 1.0, 0.1), [network.weight])  # type: ignore[arg-type]

    def go(network: nn.Linear, state: TrainingState, steps: int) -> None:
        for _ in range(steps):
            loss = network(torch.eye(4)).square().sum()
            loss.backward()
            state.losses.append(loss.item())
            state.advance()

    whole, state = begin()
    go(whole, state, 6)
    half, first = begin()
    go(half, first, 3)
    tensors, metadata = {n: t.clone() for n, t in first.tensors().items()}, first.metadata()
    other, second = begin()
    second.restore(tensors, metadata)
    go(other, second, 3)
    assert torch.equal(whole.weight, other.weight)
    assert torch.equal(whole.bias, other.bias)
    assert state.losses == second.losses
