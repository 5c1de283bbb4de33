"""The evolution of M2N2: genomes, competition and attraction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fsmerge_cli.cli.niches import Genome, crossover, fitness_by_image, parents, source, survivors
from fsmerge_cli.methods.slerp import slerp


def test_a_child_has_the_shares_of_its_parents_on_both_sides_of_the_split() -> None:
    first, second = Genome((0.5,), ((1.0, 0.0), (0.6, 0.4))), source(1, 2)
    child = crossover(first, second, 0.25, 0.25)
    assert child.boundaries == (0.25, 0.5)
    assert child.shares == ((0.75, 0.25), (0.25, 0.75), (0.15, 0.85))
    assert child.overrides == (
        "method.boundaries=[0.25,0.5]",
        "method.shares=[[0.75,0.25],[0.25,0.75],[0.15,0.85]]",
    )
    whole = crossover(first, second, 1.0, 0.5)
    assert whole == Genome((0.5,), ((0.5, 0.5), (0.3, 0.7)))
    assert crossover(second, second, 0.3, 0.9) == second  # parts with equal shares are one


def test_shares_of_shares_are_slerp_of_slerp() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 9, generator=random, dtype=torch.float64)
    a, b = a / a.norm(), b / b.norm()
    first, second = slerp([a, b], [0.8, 0.2]), slerp([a, b], [0.3, 0.7])
    child = crossover(Genome((), ((0.8, 0.2),)), Genome((), ((0.3, 0.7),)), 1.0, 0.4)
    torch.testing.assert_close(slerp([first, second], [0.6, 0.4]), slerp([a, b], child.shares[0]))


def test_models_that_are_right_share_an_image() -> None:
    scores = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]], dtype=float)
    assert fitness_by_image(scores, 1.0).tolist() == [[1 / 3, 1, 0, 0], [1 / 3, 0, 1, 0], [1 / 3, 0, 0, 0]]
    assert fitness_by_image(scores, 0.0).tolist() == scores.tolist()
    assert survivors(scores, 2, 1.0) == [0, 1]
    # With equal accuracy the copy goes, and not the model that is right where no other is.
    assert survivors(np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1]], dtype=float), 2, 1.0) == [1, 2]


def test_the_second_parent_is_right_where_the_first_is_not() -> None:
    scores = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]], dtype=float)
    random = np.random.default_rng(0)
    pairs = {parents(scores, 1.0, random) for _ in range(200)}
    assert pairs == {(0, 2), (1, 2), (2, 0), (2, 1)}
    same = np.ones((2, 3))
    assert {parents(same, 1.0, random) for _ in range(50)} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("k", [2, 3])
def test_a_source_is_a_genome_of_its_own(k: int) -> None:
    assert [source(i, k).at(0.3) for i in range(k)] == [tuple(map(float, row)) for row in np.eye(k)]
