"""The optimisers of a training: AdamW, and Muon for the matrices between hidden units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial that brings singular values in (0, 1] near 1 in five rounds."""

ROUNDS = 5

MOMENTUM = 0.95

TOGETHER = 2**23
"""Numbers that are orthogonalised at once, unless one parameter has more."""


def orthogonalised(matrices: Tensor) -> Tensor:
    """The orthogonal factors of a stack of matrices [n, rows, cols], roughly: singular values of about 0.7 to 1.2.

    Newton-Schulz iteration (Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024). In bf16
    on a GPU; on a CPU, where bf16 is emulated, in fp32.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.bfloat16() if x.is_cuda else x.float()
    x = x / (x.square().sum((-2, -1), keepdim=True).sqrt() + 1e-7)
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonal factor of the momentum, so that every direction of a matrix moves alike.

    Of parameters [rows, cols] or stacks of such, [n, rows, cols]. The step is lr * max(1, rows / cols)^(1/2) in
    the spectral norm, so that one rate fits all widths. torch.optim.Muon does the same one matrix at a time and
    always in bf16: on a CPU, for the 16 matrices of a 96-wide ViT of 4 blocks, 255 ms a step instead of 21.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step from the gradients that are there."""
        for group in self.param_groups:
            lr, kept = group["lr"], 1 - group["lr"] * group["weight_decay"]
            given: dict[Tensor, Tensor] = {p: p.grad for p in group["params"] if p.grad is not None}
            for alike in _together(list(given)):
                rows, cols = alike[0].shape[-2:]
                ahead = [t.reshape(-1, rows, cols) for t in self._ahead(alike, [given[p] for p in alike])]
                turned = torch.split(orthogonalised(torch.cat(ahead)), [len(stack) for stack in ahead])
                torch._foreach_mul_(alike, kept)
                parts = [part.reshape(parameter.shape) for parameter, part in zip(alike, turned)]
                torch._foreach_add_(alike, parts, alpha=-lr * max(1, rows / cols) ** 0.5)

    def _ahead(self, parameters: Sequence[Tensor], gradients: list[Tensor]) -> Sequence[Tensor]:
        """Nesterov's momentum; the plain one is kept."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)  # as torch's own optimisers: a call for all of them
        return torch._foreach_lerp(gradients, momenta, MOMENTUM)


def _together(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters whose matrices have one shape, at most TOGETHER numbers at a time: one batched product each."""
    waiting: dict[tuple[int, ...], list[Tensor]] = {}
    for parameter in parameters:
        alike = waiting.setdefault(tuple(parameter.shape[-2:]), [])
        if alike and sum(p.numel() for p in alike) + parameter.numel() > TOGETHER:
            yield waiting.pop(tuple(parameter.shape[-2:]))
            alike = waiting.setdefault(tuple(parameter.shape[-2:]), [])
        alike.append(parameter)
    yield from waiting.values()


def optimisers(
    parameters: Sequence[nn.Parameter],
    matrices: Sequence[nn.Parameter],
    lr: float,
    matrix_lr: float,
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """AdamW for the parameters that are not among the matrices, and Muon for these, where there are any."""
    turned = {id(matrix) for matrix in matrices}
    rest = [p for p in parameters if id(p) not in turned]
    own = [p for p in parameters if id(p) in turned]
    adam = [torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, fused=True)] if rest else []
    return [*adam, *([Muon(own, matrix_lr, weight_decay)] if own else [])]
