"""BatchNorm of convolutional networks: folded into the convolutions when read, and written again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

STATISTICS = ("weight", "bias", "running_mean", "running_var")


def pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of the convolutions with a BatchNorm behind them, and of these BatchNorms."""
    found: list[tuple[str, str]] = []
    last: str | None = None
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d):
            last = name
        elif isinstance(part, nn.BatchNorm2d) and last is not None:
            found.append((last, name))
            last = None
    return found


def folded(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network without BatchNorm, in place: its convolutions have a bias, and it takes pixels in 0..1.

    mean, std: per channel, which it subtracts from the pixels and divides them by. They cannot be folded into a
    convolution that pads with zeros: at the border the zeros stand for the mean.
    """
    for convolution, norm in pairs(model):
        part: Any = model.get_submodule(convolution)
        part.bias = nn.Parameter(torch.empty(part.out_channels, device=part.weight.device))
        owner, _, leaf = norm.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Identity())
    if set(mean) != {0.0} or set(std) != {1.0}:
        model.register_forward_pre_hook(_Normalise(mean, std))
    return model


class _Normalise:
    """A hook before a network: (pixels - mean) / std."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean, self._std = tuple(mean), tuple(std)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pixels = inputs[0]
        mean, std = (
            torch.tensor(values, dtype=pixels.dtype, device=pixels.device).reshape(-1, 1, 1)
            for values in (self._mean, self._std)
        )
        return ((pixels - mean) / std,)


def without_norms(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file of `model` for its network without BatchNorm, computed in fp64.

    W' = W g / sqrt(v + eps), b' = beta - m g / sqrt(v + eps), of the running mean m and variance v. A convolution
    with other tensors than those of `model` stays as it is, and is reported later.
    """
    found = dict(tensors)
    for convolution, norm in pairs(model):
        part: Any = model.get_submodule(norm)
        weight = found.get(f"{convolution}.weight")
        own = [found.get(f"{norm}.{name}") for name in STATISTICS]
        if weight is None or any(t is None or t.shape != weight.shape[:1] for t in own):
            continue
        if not all(t is not None and t.is_floating_point() for t in (weight, *own)):
            continue
        gain, shift, mean, variance = (t.double() for t in own if t is not None)
        scale = gain * (variance + part.eps).rsqrt()
        bias = found.get(f"{convolution}.bias")
        kept = mean if bias is None else mean - bias.double()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        found[f"{convolution}.weight"] = (weight.double() * scale.reshape(-1, 1, 1, 1)).to(dtype)
        found[f"{convolution}.bias"] = (shift - kept * scale).to(dtype)
        for name in (*STATISTICS, "num_batches_tracked"):
            found.pop(f"{norm}.{name}", None)
    return found


def with_norms(
    model: nn.Module, weights: Mapping[str, Tensor], statistics: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of a file of `model`, with BatchNorms, of the same function as the weights in memory.

    statistics: by convolution, mean and variance of its output without bias, which a later training finds in the
    running statistics (none: 0 and 1). The gain is sqrt(variance + eps) and the shift the bias plus the mean, so
    that a BatchNorm adds the bias and nothing else. (A gain of 1 and a shift of 0 would need an output of mean 0,
    and a bias in the convolution, which timm's ResNets have not.) A convolution that has a bias gets 0.
    """
    found: dict[str, Tensor] = {}
    norms = {norm: convolution for convolution, norm in pairs(model)}
    biases = {f"{convolution}.bias" for convolution in norms.values()}
    for name, tensor in weights.items():
        if name not in biases:
            found[name] = tensor
    for norm, convolution in norms.items():
        bias = weights[f"{convolution}.bias"].detach().cpu()
        mean, variance = statistics.get(convolution, (torch.zeros_like(bias), torch.ones_like(bias)))
        mean, variance = mean.float().cpu(), variance.float().cpu()
        if getattr(model.get_submodule(convolution), "bias", None) is not None:
            found[f"{convolution}.bias"] = torch.zeros_like(bias)
        part: Any = model.get_submodule(norm)
        exact = (variance.double() + part.eps).sqrt()
        gain = exact.float()
        shift = bias.double() + mean.double() * gain.double() / exact
        values = gain, shift.float(), mean, variance
        found |= {f"{norm}.{name}": value for name, value in zip(STATISTICS, values)}
        found[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    order = {name: place for place, name in enumerate(model.state_dict())}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))
