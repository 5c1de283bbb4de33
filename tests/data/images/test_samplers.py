"""A loader with a sampler stands for the rows that the sampler chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fsmerge_cli.data.images.collection import Collection

PIXELS = torch.randint(0, 256, (24, 1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
LABELS = torch.arange(24) % 3
WEIGHTS = [float(i in (2, 3, 7, 20)) for i in range(24)]


class Named(TensorDataset):
    classes, targets = ("x", "y", "z"), LABELS


SAMPLERS: dict[str, Callable[[Any], DataLoader[Any]]] = {
    "subset": lambda own: DataLoader(own, sampler=SubsetRandomSampler([7, 2, 3, 20])),
    "weighted": lambda own: DataLoader(
        own, sampler=WeightedRandomSampler([float(i in (2, 3, 7, 20)) for i in range(24)], 99)
    ),
    "batches": lambda own: DataLoader(own, batch_sampler=BatchSampler([20, 3, 2, 7], 3, False)),
    "subset of a subset": lambda own: DataLoader(Subset(Subset(own, range(2, 24)), [0, 1, 5, 18])),
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_rows_that_a_sampler_chooses_are_read_once_each(kind: str) -> None:
    state = torch.get_rng_state()
    found = Collection(SAMPLERS[kind](Named(PIXELS, LABELS)), "data")
    assert [np.asarray(found.image(row)).tolist() for row in range(len(found))] == PIXELS[
        [2, 3, 7, 20], 0
    ].tolist()
    assert found.labels == LABELS[[2, 3, 7, 20]].tolist()
    assert found.names == ["x", "y", "z"]
    assert torch.equal(torch.get_rng_state(), state)
