"""Seeds derived from stable names: a new random stream never changes the others."""

from __future__ import annotations

import zlib

import torch


def derive(seed: int, *names: str | int) -> int:
    """The seed of the random stream `names` in a run with seed `seed` (crc32, the same on every machine)."""
    return zlib.crc32("/".join(str(part) for part in (seed, *names)).encode())


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded by :func:`derive`; the global generators are never touched."""
    return torch.Generator().manual_seed(derive(seed, *names))
