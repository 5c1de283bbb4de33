"""Seeds derived from stable names: a new random stream never changes the others."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fsmerge_cli.common.inputs import Inputs


def derive(seed: int, *names: str | int) -> int:
    """The seed of the random stream `names` in a run with seed `seed` (crc32, the same on every machine)."""
    return zlib.crc32("/".join(str(part) for part in (seed, *names)).encode())


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded by :func:`derive`; the global generators are not touched."""
    return torch.Generator().manual_seed(derive(seed, *names))


@contextmanager
def seeded(seed: int, beside: Inputs) -> Iterator[None]:
    """Torch's global generators, of the CPU and of the device of `beside`, with this seed; restored afterwards.

    For libraries that take no generator.
    """
    with torch.random.fork_rng(devices=[beside.device] if beside.is_cuda else []):
        torch.manual_seed(seed)
        yield
