"""A network run in stages, so that the activations of only one stage are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.common.inputs import Inputs


class _Stop(Exception):  # noqa: N818 - not an error
    """Ends a forward pass as soon as everything that was wanted is recorded."""


@contextmanager
def recorded(
    network: nn.Module,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    stop: bool = False,
    copy: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Inside, a forward pass records inputs and outputs of modules under `MODULE.input` and `MODULE.output`.

    stop: the pass is ended by an exception once all are recorded; see :func:`run`. copy: what is recorded is a
    copy, for networks that overwrite activations.
    """
    found: dict[str, Tensor] = {}
    wanted = len(inputs) + len(outputs)

    def keep(key: str, value: Tensor) -> None:
        found[key] = value.clone() if copy else value
        if stop and len(found) == wanted:
            raise _Stop

    modules = [(name, network.get_submodule(name)) for name in (*inputs, *outputs)]
    handles = [module.register_forward_pre_hook(_of_input(keep, name)) for name, module in modules[: len(inputs)]]
    handles += [module.register_forward_hook(_of_output(keep, name)) for name, module in modules[len(inputs) :]]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _of_input(keep: Callable[[str, Tensor], None], name: str) -> Callable[..., None]:
    return lambda module, values: keep(f"{name}.input", values[0])


def _of_output(keep: Callable[[str, Tensor], None], name: str) -> Callable[..., None]:
    return lambda module, values, output: keep(f"{name}.output", output)


@contextmanager
def replaced(forwards: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Inside, these modules compute something else."""
    for module, forward in forwards:
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in forwards:
            del module.forward  # the class's own is seen again


def run(
    network: nn.Module,
    value: Inputs,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    copy: bool = False,
    further: Sequence[Any] = (),
) -> dict[str, Tensor]:
    """The wanted activations of one pass of `network`, which ends as soon as all of them are there.

    further: its arguments behind `value`.
    """
    with recorded(network, inputs, outputs, stop=True, copy=copy) as found, suppress(_Stop):
        network(value, *further)
    return found


def embed(network: nn.Module, blocks: Sequence[str], images: Inputs) -> Tensor:
    """The input of the first block."""
    return run(network, images, inputs=blocks[:1])[f"{blocks[0]}.input"]


def further_arguments(network: nn.Module, blocks: Sequence[str], inputs: Inputs) -> Sequence[Tensor]:
    """What every block reads beside the stream, in order: the mask of padded texts."""
    found: list[Sequence[Tensor]] = []

    def keep(module: nn.Module, values: tuple[Any, ...]) -> None:
        found.append(values[1:])
        raise _Stop

    handle = network.get_submodule(blocks[0]).register_forward_pre_hook(keep)
    with suppress(_Stop):
        network(inputs)
    handle.remove()
    return found[0]


def _identity(x: Tensor, *rest: Any, **options: Any) -> Tensor:
    return x


def tail(network: nn.Module, blocks: Sequence[str], images: Inputs, stream: Tensor) -> Tensor:
    """The network's output for the output `stream` of its last block; only the size of `images` matters."""
    *first, last = (network.get_submodule(name) for name in blocks)
    passed = [(block, _identity) for block in first]
    with replaced([*passed, (last, lambda x, *rest, **options: stream)]):
        found: Tensor = network(images)
    return found


def run_branch(
    block: nn.Module,
    silent: Sequence[str],
    passing: Sequence[str],
    stream: Tensor,
    further: Sequence[Any],
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Activations of one branch of `block`, for its stream.

    silent: modules of the other branches, which write nothing. passing: those that pass on what they read.
    further: see `further_arguments`.
    """
    instead = [(module, _nothing(module)) for module in map(block.get_submodule, silent)]
    with replaced([*instead, *((block.get_submodule(name), _identity) for name in passing)]):
        return run(block, stream, inputs, outputs, further=further)


def _nothing(module: nn.Module) -> Callable[..., Tensor]:
    if isinstance(module, nn.Linear):
        return lambda x, *rest, **options: x.new_zeros(*x.shape[:-1], module.out_features)
    return lambda x, *rest, **options: torch.zeros_like(x)
