from __future__ import annotations

import pytest
import torch

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.supernet.maps import MAPS, HeadBlocks, Map
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

SHAPES = [(4, 4), (6, 4), (4, 6)]


def randomised(name: str, rows: int, cols: int, *stack: int) -> Map:
    random = torch.Generator().manual_seed(rows * 10 + cols)
    map_ = MAPS[name].start(rows, cols, 1.0, 2, random)
    return map_.each(lambda t: torch.randn(*stack, *t.shape, generator=random, dtype=torch.float64))


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("name", MAPS)
def test_left_right_and_forward_are_products_with_one_matrix(name: str, rows: int, cols: int) -> None:
    map_ = randomised(name, rows, cols)
    T = map_.dense()
    assert T.shape == (rows, cols)
    W, V, x = (torch.randn(*s, dtype=torch.float64) for s in [(cols, 3), (5, rows), (2, 5, cols)])
    torch.testing.assert_close(map_.left(W), T @ W)
    torch.testing.assert_close(map_.right(V), V @ T)
    torch.testing.assert_close(map_(x), torch.einsum("rc,ijc->ijr", T, x))


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("name", MAPS)
def test_a_stack_of_maps_equals_its_single_maps(name: str, rows: int, cols: int) -> None:
    stack = randomised(name, rows, cols, 3)
    W, V = torch.randn(3, cols, 2, dtype=torch.float64), torch.randn(3, 5, rows, dtype=torch.float64)
    for i in range(3):
        single = stack.each(lambda tensor, i=i: tensor[i])
        torch.testing.assert_close(stack.left(W)[i], single.left(W[i]))
        torch.testing.assert_close(stack.right(V)[i], single.right(V[i]))


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_every_structure_starts_as_the_scaled_identity_exactly(
    name: str, rows: int, cols: int, scale: float
) -> None:
    map_ = MAPS[name].start(rows, cols, scale, 2, torch.Generator().manual_seed(0))
    assert torch.equal(map_.dense(), scale * torch.eye(rows, cols))


@pytest.mark.parametrize("name", MAPS)
def test_a_map_can_leave_its_start_in_one_step(name: str) -> None:
    # A low-rank product with two zero factors could not.
    map_ = MAPS[name].start(4, 4, 0.0, 2, torch.Generator().manual_seed(0))
    map_ = map_.each(torch.Tensor.requires_grad_)
    map_.left(torch.randn(4, 3)).sum().backward()
    assert any(t.grad is not None and t.grad.abs().max() > 0 for t in map_.tensors().values())


def test_starts_differ_only_in_the_merge_maps() -> None:
    sources = [mlp_source("a", [4, 6], 1), mlp_source("b", [4, 6], 2)]
    plan = compile_plan(sources)
    maps = {s: start_maps(plan, [x.weights for x in sources], "full", s) for s in ("first", "average")}
    port = plan.writes[0]
    dense = {s: [m.write(port, i).dense() for i in range(2)] for s, m in maps.items()}
    identity = torch.eye(4)
    assert torch.equal(dense["first"][0], identity)
    assert torch.equal(dense["first"][1], 0 * identity)
    assert torch.equal(dense["average"][0], identity / 2)
    assert torch.equal(dense["average"][1], identity / 2)
    for m in maps.values():
        assert all(
            torch.equal(m.read(p, i).dense(), torch.eye(m.read(p, i).rows)) for p in plan.reads for i in (0, 1)
        )


def test_the_rank_scales_with_the_width_of_the_space() -> None:
    sources = [mlp_source("a", [12, 4], 1), mlp_source("b", [12, 4], 2)]
    plan = compile_plan(sources)
    maps = start_maps(plan, [s.weights for s in sources], "low_rank", "first", rank=2)
    ranks = {port.space: maps.write(port, 0).tensors()["B"].shape[1] for port in plan.writes}
    assert ranks == {"h0": 6, "h1": 2}


def test_a_rank_above_the_width_is_refused() -> None:
    sources = [mlp_source("a", [8, 4], 1), mlp_source("b", [8, 4], 2)]
    with pytest.raises(ConfigError) as error:
        start_maps(compile_plan(sources), [s.weights for s in sources], "low_rank", "first", rank=5)
    assert str(error.value) == (
        "method.rank=5 is above the width of the merged model (4). Take a rank below it, or method.maps=full."
    )


def test_head_blocks_are_products_with_blocks_then_mixing() -> None:
    map_ = HeadBlocks.start(6, 3, 1.0)
    assert torch.equal(map_.dense(), torch.eye(6))
    random = torch.Generator().manual_seed(1)
    map_ = map_.each(lambda t: torch.randn(t.shape, generator=random, dtype=torch.float64))
    blocks = torch.block_diag(*map_.blocks)
    T = torch.kron(map_.mixing, torch.eye(2, dtype=torch.float64)) @ blocks
    torch.testing.assert_close(map_.dense(), T)
    W, x = torch.randn(6, 5, dtype=torch.float64), torch.randn(4, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(map_.left(W), T @ W)
    torch.testing.assert_close(map_.right(W.T), W.T @ T)
    torch.testing.assert_close(map_(x), x @ T.T)


def test_head_maps_of_different_numbers_of_heads_are_refused() -> None:
    sources = [vit_source("class token", 1), vit_source("class token", 2, num_heads=4)]
    with pytest.raises(ConfigError) as error:
        start_maps(compile_plan(sources), [s.weights for s in sources], "heads", "first")
    assert str(error.value) == (
        "method.maps=heads needs sources with the width and number of heads of the merged model. "
        "Take method.maps=low_rank or full."
    )
