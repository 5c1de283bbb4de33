"""The low-rank fold compared with a fold of dense M and U."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fsmerge_cli.supernet.low_rank_fold import fold_low_rank, scaled_sum
from fsmerge_cli.supernet.maps import MAPS, Map

KINDS = ("diagonal", "low_rank")
SIZES = {  # parts of the output; sources' (o, m) per part; merged (o', m')
    "one size": (1, [(5, 4), (5, 4)], (5, 4)),
    "three parts": (3, [(5, 4), (5, 4)], (5, 4)),
    "wider": (2, [(5, 4), (3, 6)], (7, 8)),
    "narrower, three sources": (2, [(5, 4), (6, 6), (4, 9)], (3, 2)),
}


def random_map(kind: str, stack: int, rows: int, cols: int) -> Map:
    random = torch.Generator().manual_seed(rows + 7 * cols + stack)
    start = MAPS[kind].start(rows, cols, 1.0, 2, random)
    return start.each(
        lambda t: torch.randn(stack, *t.shape, generator=random, dtype=torch.float64).requires_grad_()
    )


def case(name: str, merge_kind: str, unmerge_kind: str) -> tuple[list[torch.Tensor], list[Map], list[Map]]:
    parts, sources, (rows, cols) = SIZES[name]
    n, random = 2, torch.Generator().manual_seed(7)
    stacks = [torch.randn(n, parts * o, m, generator=random, dtype=torch.float64) for o, m in sources]
    merge = [random_map(merge_kind, n * parts, rows, o) for o, _ in sources]
    unmerge = [random_map(unmerge_kind, n, m, cols) for _, m in sources]
    return stacks, merge, unmerge


def dense(stacks: Sequence[torch.Tensor], merge: Sequence[Map], unmerge: Sequence[Map]) -> torch.Tensor:
    total = []
    for W, M, U in zip(stacks, merge, unmerge):
        matrices_m = M.left(torch.eye(M.cols, dtype=W.dtype).expand(len(M.tensors()["diagonal"]), -1, -1))
        matrices_u = U.left(torch.eye(U.cols, dtype=W.dtype).expand(len(W), -1, -1))
        parts = len(matrices_m) // len(W)
        split = W.reshape(len(W), parts, -1, W.shape[-1])
        folded = torch.einsum("nprc,npcm,nmk->nprk", matrices_m.unflatten(0, (-1, parts)), split, matrices_u)
        total.append(folded.flatten(1, 2))
    return torch.stack(total).sum(0)


@pytest.mark.parametrize("unmerge_kind", KINDS)
@pytest.mark.parametrize("merge_kind", KINDS)
@pytest.mark.parametrize("name", SIZES)
def test_value_and_gradients_equal_those_of_the_dense_product(
    name: str, merge_kind: str, unmerge_kind: str
) -> None:
    stacks, merge, unmerge = case(name, merge_kind, unmerge_kind)
    leaves = [t for m in [*merge, *unmerge] for t in m.tensors().values()]
    values = [f(stacks, merge, unmerge) for f in (fold_low_rank, dense)]
    torch.testing.assert_close(values[0], values[1])
    weight = torch.randn_like(values[0])
    gradients = [torch.autograd.grad((v * weight).sum(), leaves) for v in values]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all(g.abs().max() > 0 for g in gradients[0])


def test_the_elementwise_part_passes_gradcheck() -> None:
    W = [torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)]
    vectors = [torch.randn(2, n, dtype=torch.float64).requires_grad_() for n in (5, 3, 4, 5)]
    assert torch.autograd.gradcheck(lambda *v: scaled_sum(W, v[:2], v[2:], (6, 5)), vectors)


class _Shapes(TorchDispatchMode):
    """Records the shapes of all computed tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.seen.add(tuple(tensor.shape[-2:]))
        return result


def test_no_map_is_formed_as_a_dense_matrix() -> None:
    stacks = [torch.randn(1, 11, 7, dtype=torch.float64) for _ in range(2)]
    merge = [random_map("low_rank", 1, 11, 11) for _ in range(2)]
    unmerge = [random_map("low_rank", 1, 7, 7) for _ in range(2)]
    seen = {}
    for function in (fold_low_rank, dense):
        with _Shapes() as shapes:
            function(stacks, merge, unmerge).sum().backward()
        seen[function] = shapes.seen & {(11, 11), (7, 7)}
    assert seen == {fold_low_rank: set(), dense: {(11, 11), (7, 7)}}


def test_bf16_autocast_folds_in_bf16_and_keeps_fp32_gradients() -> None:
    stacks, merge, unmerge = case("three parts", "low_rank", "low_rank")
    merge, unmerge = (
        [m.each(lambda t: t.detach().float().requires_grad_()) for m in ms] for ms in (merge, unmerge)
    )
    exact = fold_low_rank([W.float() for W in stacks], merge, unmerge)
    with torch.autocast("cpu", torch.bfloat16):
        folded = fold_low_rank([W.bfloat16() for W in stacks], merge, unmerge)
    assert folded.dtype == torch.bfloat16
    assert (folded.float() - exact).abs().max() < 0.03 * exact.abs().max()
    folded.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in merge[0].tensors().values())
