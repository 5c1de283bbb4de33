"""The optimisers: AdamW, and Muon for the matrices between hidden units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial that moves singular values in (0, 1] close to 1 in five iterations."""

ITERATIONS = 5

MOMENTUM = 0.95

MAX_BATCHED = 2**23
"""Most elements that are orthogonalised in one batch, unless one parameter has more."""


def orthogonalised(matrices: Tensor) -> Tensor:
    """Approximate orthogonal factors of a stack of matrices [n, rows, cols]: singular values of about 0.7 to 1.2.

    Newton-Schulz iteration (Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024). In bf16
    on a GPU; on a CPU, where bf16 is emulated, in fp32.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.bfloat16() if x.is_cuda else x.float()
    x = x / (x.square().sum((-2, -1), keepdim=True).sqrt() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonal factor of the momentum, so that all singular directions get equal updates.

    For parameters [rows, cols] or stacks [n, rows, cols]. The step has a spectral norm of lr * max(1, rows /
    cols)^(1/2), so that one learning rate fits all widths. torch.optim.Muon does the same, but one matrix at a
    time and always in bf16: on a CPU, for the 16 matrices of a 96-wide ViT of 4 blocks, 255 instead of 21 ms a
    step.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient stay."""
        for group in self.param_groups:
            lr, decay = group["lr"], 1 - group["lr"] * group["weight_decay"]
            gradients: dict[Tensor, Tensor] = {p: p.grad for p in group["params"] if p.grad is not None}
            for batch in _batched(list(gradients)):
                rows, cols = batch[0].shape[-2:]
                momenta = [t.reshape(-1, rows, cols) for t in self._nesterov(batch, [gradients[p] for p in batch])]
                factors = torch.split(orthogonalised(torch.cat(momenta)), [len(stack) for stack in momenta])
                torch._foreach_mul_(batch, decay)
                updates = [factor.reshape(parameter.shape) for parameter, factor in zip(batch, factors)]
                torch._foreach_add_(batch, updates, alpha=-lr * max(1, rows / cols) ** 0.5)

    def _nesterov(self, parameters: Sequence[Tensor], gradients: list[Tensor]) -> Sequence[Tensor]:
        """Nesterov momentum; the state keeps the plain momentum."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)  # one call for all, as in torch's optimisers
        return torch._foreach_lerp(gradients, momenta, MOMENTUM)


def matrices_of(module: nn.Module) -> list[nn.Parameter]:
    """The parameters for Muon: all [rows, cols] but tables of embeddings; not convolutions, biases, tokens."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return [own for own in module.parameters() if own.ndim == 2 and id(own) not in tables]


def _batched(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters grouped by the shape of their matrices, at most MAX_BATCHED elements per group."""
    waiting: dict[tuple[int, ...], list[Tensor]] = {}
    for parameter in parameters:
        group = waiting.setdefault(tuple(parameter.shape[-2:]), [])
        if group and sum(p.numel() for p in group) + parameter.numel() > MAX_BATCHED:
            yield waiting.pop(tuple(parameter.shape[-2:]))
            group = waiting.setdefault(tuple(parameter.shape[-2:]), [])
        group.append(parameter)
    yield from waiting.values()


def optimisers(
    parameters: Sequence[nn.Parameter],
    matrices: Sequence[nn.Parameter],
    lr: float,
    matrix_lr: float,
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """Muon for the parameters among `matrices`, and AdamW for the others; without an empty one."""
    ids = {id(matrix) for matrix in matrices}
    rest = [p for p in parameters if id(p) not in ids]
    own = [p for p in parameters if id(p) in ids]
    adam = [torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, fused=True)] if rest else []
    return [*adam, *([Muon(own, matrix_lr, weight_decay)] if own else [])]
