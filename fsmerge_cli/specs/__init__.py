"""Architectures as data. To add one: write one `Family` in a file here and one line below."""

from __future__ import annotations

from fsmerge_cli.specs.family import Arch, Family
from fsmerge_cli.specs.mlp import MLP

SPECS: dict[str, Family] = {
    "mlp": MLP,
}

__all__ = ["SPECS", "Arch", "Family"]
