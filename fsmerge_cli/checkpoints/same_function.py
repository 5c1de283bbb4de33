"""A torch module computes what was read from it: both are run on random inputs and their outputs are compared.

Tensors and options do not show padding, strides, activations, hooks, or layers around a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.common.errors import SourceError, first_line
from fsmerge_cli.common.inputs import IDS, MASK, READ, TYPES, Inputs, NamedTensors
from fsmerge_cli.models.source import Pixels, Source

COUNT = 2
"""Number of random inputs."""

TOLERANCE, ROUGH = 2e-4, 0.1
"""Largest difference of two outputs, relative to the largest output: in fp32 on the CPU, and elsewhere."""

OUTPUTS = ("logits", "image_embeds", "pooler_output", "last_hidden_state")
"""Names of outputs of Hugging Face's models."""


def require_same_function(
    source: Source, module: nn.Module, prefix: str, pixels: Pixels, chosen: bool
) -> tuple[str, ...]:
    """Raise SourceError unless `module` has the outputs of `source`: the logits of its head, or its features.

    prefix: of the backbone's tensors inside the module. pixels: mean and std that are folded into the source. A
    module that normalises its input itself is given pixels in 0..1. chosen: the entry selects a part of the
    module, which alone is compared. Returns a note where neither the module nor its part has such outputs.
    """
    parts = [_part(module, prefix)] if chosen else [module, _part(module, prefix)]
    if any(t.is_meta for t in source.weights.values()) or any(t.is_meta for t in module.state_dict().values()):
        return ()
    inputs = source.family.sample(source.arch, COUNT, torch.Generator().manual_seed(0))
    expected = _outputs_of(source, inputs)
    for part in parts:
        outputs = [_read(given, found) for given in _given(inputs, pixels) for found in _run(part, given)]
        own = [_difference(expected, found) for found in outputs]
        compared = [difference for difference in own if difference is not None]
        if not compared:
            continue
        if (least := min(compared)) <= (TOLERANCE if _exact(part) else ROUGH):
            return ()
        raise SourceError(
            f"{source.origin} does not compute what its tensors and options show: on random inputs its outputs "
            f"differ by {least:.1%} of the largest. Its padding, strides, activations or hooks are not those of "
            "the library's network, or layers before or after it change its inputs or outputs. Pass the "
            "network as the library builds it, with mean=[...] and std=[...] of its inputs, or save its "
            "weights and pass the file."
        )
    return (
        f"'{source.name}': the module was not compared with what was read from it, since it cannot be run on "
        f"{_described(source)} or returns something else than logits or features",
    )


def _part(module: nn.Module, prefix: str) -> nn.Module:
    """The part of the module at a prefix of tensors' names, without the wrappers of torch; else the whole."""
    for name in prefix.rstrip(".").split("."):
        module = getattr(_unwrapped(module), name, module) if name else module
    return _unwrapped(module)


def _unwrapped(module: nn.Module) -> nn.Module:
    for name in ("_orig_mod", "module"):
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module) and len([*module.children()]) == 1:
            return _unwrapped(inner)
    return module


def _outputs_of(source: Source, inputs: Inputs) -> Tensor:
    """Logits [n, classes] of the source, without a head its features."""
    network = source.family.skeleton(source.arch)
    network.load_state_dict(dict(source.weights), assign=True)
    try:
        with torch.no_grad():
            features: Tensor = network.eval()(inputs)
            return features if source.head is None else source.head(features)
    except Exception as error:  # of the library, for sizes that do not fit together
        raise SourceError(
            f"{source.origin}: its network cannot be run on {_described(source)} ({first_line(error)}). Pass "
            "options that fit together, or another size of its images."
        ) from None


def _described(source: Source) -> str:
    sizes = " x ".join(str(size) for size in getattr(source.arch, "input_size", ()))
    return f"images of {sizes}" if source.family.kind == "image" else "texts"


def _given(inputs: Inputs, pixels: Pixels) -> list[Inputs]:
    """The inputs of the module: normalised pixels, and pixels in 0..1."""
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in pixels)
    if isinstance(inputs, NamedTensors) or (not mean.any() and bool((std == 1).all())):
        return [inputs]
    return [(inputs - mean) / std, inputs]


def _run(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The outputs of a module in evaluation mode; none where it cannot be run on these inputs."""
    some = next(module.parameters(), None)
    try:
        with torch.no_grad(), _evaluated(module):
            if isinstance(inputs, NamedTensors):
                names = [name for name in (IDS, MASK, TYPES) if name != TYPES or _takes_types(module)]
                found = module(**{name: inputs.tensors[name].to(some.device) for name in names})  # type: ignore[union-attr]
            else:
                found = module(inputs if some is None else inputs.to(some.device, some.dtype))
    except Exception:  # a wrapper may take other inputs, or none
        return []
    if isinstance(found, Tensor):
        return [found]
    outputs = [found.get(name) for name in OUTPUTS] if isinstance(found, Mapping) else found
    return [own for own in outputs if isinstance(own, Tensor)] if isinstance(outputs, list | tuple) else []


def _read(inputs: Inputs, found: Tensor) -> Tensor:
    """Of an output for every token the rows that are read, where some are marked."""
    read = None if isinstance(inputs, Tensor) else inputs.tensors.get(READ)
    return found if read is None or found.shape[:2] != read.shape else found[(read != 0).to(found.device)]


def _exact(module: nn.Module) -> bool:
    return all(t.dtype in (torch.float32, torch.float64) and t.device.type == "cpu" for t in module.parameters())


def _takes_types(module: Any) -> bool:
    return getattr(getattr(module, "config", None), "type_vocab_size", 0) > 0


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without compilation, and the previous mode of every part at the end."""
    set_stance = getattr(torch.compiler, "set_stance", None)  # of torch 2.6
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with set_stance("force_eager") if set_stance else nullcontext():  # compiling takes a minute
            yield
    finally:
        for part, training in before:
            part.training = training


def _difference(expected: Tensor, found: Tensor) -> float | None:
    """Largest difference relative to the largest output; None for outputs of another shape."""
    found = found.detach().cpu().float()
    if expected.shape[1] == 2 and found.shape in ((len(expected),), (len(expected), 1)):  # one logit, as two
        expected, found = expected[:, 1] - expected[:, 0], found.flatten()
    if found.ndim == expected.ndim + 1:  # of every token; the first one is that of the class
        found = found[:, 0]
    if found.shape != expected.shape:
        return None
    return float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-12))
