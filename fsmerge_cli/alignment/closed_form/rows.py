"""How much every row (a token of an image at some depth) matters for the features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.stages import recorded
from fsmerge_cli.common.inputs import Inputs, in_use
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.training.teachers import batches


def spread_rows(weights: Tensor | None, stream: Tensor, used: Tensor | None = None) -> Tensor | None:
    """The weight of every row of a batch [n, T, d], given those of its tokens [T or more]; [n T].

    used: the tokens that are not padding, [n, T] (None: all); the others have weight 0.
    """
    if used is not None:
        return (used.to(stream) if weights is None else used * weights.to(stream)[: used.shape[1]]).flatten()
    return None if weights is None else weights.to(stream.device).expand(len(stream), -1).flatten()


def sampled_rows(
    weights: Tensor | None,
    stream: Tensor,
    tokens: float,
    random: torch.Generator,
    used: Tensor | None = None,
) -> Tensor | None:
    """As `spread_rows`, for a sample of about `tokens` rows of every image; 0 for the other rows.

    A row is in the sample with a probability p in proportion to its weight w, at most 1, and there weighs w / p,
    so that the expected value of every weighted sum is the same. Of padded inputs the sample is one of all rows
    of the batch.
    """
    if used is not None:
        rows = spread_rows(weights, stream, used)
        return sampled_rows(rows, stream.reshape(1, -1, stream.shape[-1]), tokens * len(stream), random)
    w = torch.ones(stream.shape[1]) if weights is None else weights.cpu()
    w = w.double()
    if tokens >= int((w > 0).sum()):
        return spread_rows(weights, stream)
    scale = tokens / w.sum()
    while (p := (scale * w).clamp(max=1)).sum() < 0.999 * tokens:  # those at most 1 leave room for the others
        scale = scale * tokens / p.sum()
    kept = torch.rand(stream.shape[:2], generator=random, dtype=torch.float64) < p
    found = torch.where(kept, w / p.clamp(min=1e-300), torch.zeros_like(w))
    return found.flatten().to(stream.device)


def row_weights(
    networks: Sequence[nn.Module],
    places: Sequence[tuple[str, str]],
    images: Sequence[Inputs],
    batch: int,
    floor: float,
    seed: int,
    counted: Sequence[Callable[[Inputs], Tensor]] | None = None,
) -> list[Tensor]:
    """One weight per token at every place, [T], mean 1 over the tokens that the features depend on at all.

    places: (module, `input` or `output`) whose activation is the stream. images: those of each network's task.
    A weight is the mean squared gradient of the features with respect to the stream there, estimated with one
    random projection of the features per image, averaged over the networks, plus `floor`. counted: the outputs of
    each network that count instead of its features. Tokens on which no
    feature depends (all but the class token behind the last attention) have weight 0. Of texts, whose words have
    no fixed places, all tokens behind the first have one weight.
    """
    total, counts = [torch.zeros((), dtype=torch.float64) for _ in places], _token_counts(images)
    for place, (network, own) in enumerate(zip(networks, images)):
        random = generator(seed, "row weights", place)
        sums: list[Tensor] = [torch.zeros((), dtype=torch.float64) for _ in places]
        for rows in batches(len(own), batch):
            squares = _squared_gradients(
                network, places, own[rows], random, counted[place] if counted else network
            )
            sums = [a + b for a, b in zip(sums, squares)]
        total = [a + b / _mean(b, counts).clamp(min=1e-300) for a, b in zip(total, sums)]
    found = []
    for weight in total:
        used = weight > 1e-12 * weight.max()
        relative = weight / _mean(weight[used], counts if counts is None else counts[used])
        found.append(torch.where(used, relative + floor, torch.zeros_like(weight)))
    return found


def _token_counts(images: Sequence[Inputs]) -> Tensor | None:
    """Of texts: how many have a token at each position, [T]."""
    counts = [(own.mask != 0).sum(0).double().cpu() for own in images if not isinstance(own, Tensor)]
    return torch.stack(counts).sum(0) if counts else None


def _mean(weights: Tensor, counts: Tensor | None) -> Tensor:
    """The mean over the tokens; counts: see `_token_counts`."""
    return weights.mean() if counts is None else (weights * counts).sum() / counts.sum()


def _squared_gradients(
    network: nn.Module,
    places: Sequence[tuple[str, str]],
    images: Inputs,
    random: torch.Generator,
    counted: Callable[[Inputs], Tensor],
) -> list[Tensor]:
    device = next(network.parameters()).device
    images = images.to(device)
    inputs = [module for module, side in places if side == "input"]
    outputs = [module for module, side in places if side == "output"]
    with torch.enable_grad(), _differentiable(network, places[0][0], images):
        return _squares(network, places, images, (inputs, outputs), random, counted)


@contextmanager
def _differentiable(network: nn.Module, first: str, images: Inputs) -> Iterator[None]:
    """Inside, gradients reach the first place: of pixels through them, of texts as if the stream began there."""
    if isinstance(images, Tensor):
        images.requires_grad_(True)
        yield
        return
    module = network.get_submodule(first)
    hook = module.register_forward_pre_hook(
        lambda own, values: (values[0].detach().requires_grad_(True), *values[1:])
    )
    try:
        yield
    finally:
        hook.remove()


def _squares(
    network: nn.Module,
    places: Sequence[tuple[str, str]],
    images: Inputs,
    recording: tuple[list[str], list[str]],
    random: torch.Generator,
    counted: Callable[[Inputs], Tensor],
) -> list[Tensor]:
    with recorded(network, *recording) as found:
        features = counted(images)
        signs = torch.randint(0, 2, features.shape, generator=random).to(features) * 2 - 1
        streams = [found[f"{module}.{side}"] for module, side in places]
        gradients = torch.autograd.grad((features * signs).sum(), streams, allow_unused=True)
    used = in_use(images)
    if not isinstance(images, Tensor) and used is not None:
        return [_first_and_rest(g, used, images.mask.shape[1]) for g in gradients]
    return [
        torch.zeros(stream.shape[1], dtype=torch.float64) if g is None else g.double().square().sum((0, 2)).cpu()
        for g, stream in zip(gradients, streams)
    ]


def _first_and_rest(gradient: Tensor | None, used: Tensor, length: int) -> Tensor:
    """The sum of the squared gradients [n, T, d] of the first token, and `length` - 1 times that of any other."""
    squares = torch.zeros(used.shape) if gradient is None else gradient.double().square().sum(2).cpu()
    used, squares = used.cpu()[:, 1:], squares.double()
    rest = (squares[:, 1:] * used).sum() / used.sum().clamp(min=1) * len(squares)
    found = rest.repeat(length)
    found[0] = squares[:, 0].sum()
    return found
