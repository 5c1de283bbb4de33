"""MAP: the quadratic approximation and its Pareto front."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fsmerge_cli.cli import surrogate
from fsmerge_cli.reporting.plots import front


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_quadratic_is_recovered_from_as_many_points_as_it_has_coefficients(size: int) -> None:
    random = np.random.default_rng(size)
    A, b, e = random.normal(size=(2, size, size)), random.normal(size=(2, size)), random.normal(size=2)

    def metrics(points: np.ndarray) -> np.ndarray:
        return np.array([[e[t] + b[t] @ c + c @ A[t] @ c for t in (0, 1)] for c in points])

    points = surrogate.design(size, surrogate.needed(size), 0)
    assert points.shape == (surrogate.needed(size), size)
    found, fits = surrogate.fit(points, metrics(points))
    others = random.uniform(size=(20, size))
    np.testing.assert_allclose(surrogate.terms(others) @ found, metrics(others), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fits, 1.0)


def test_the_front_of_two_parabolas_lies_between_their_tops() -> None:
    points = surrogate.design(2, 8, 0)
    tops = np.array([[0.25, 0.5], [0.75, 0.5]])
    metrics = np.stack([0.9 - ((points - top) ** 2).sum(1) for top in tops], 1)
    found, _ = surrogate.fit(points, metrics)
    chosen, expected = surrogate.predicted_front(found, 2, 5, 0)
    assert len(chosen) == 5
    np.testing.assert_allclose(chosen[:, 1], 0.5, atol=0.03)  # the segment that joins the tops
    assert chosen[:, 0].min() < 0.3
    assert chosen[:, 0].max() > 0.7
    assert np.all((chosen[:, 0] > 0.22) & (chosen[:, 0] < 0.78))
    np.testing.assert_allclose(expected, surrogate.terms(chosen) @ found, atol=1e-9)
    assert list(expected[:, 0]) == sorted(expected[:, 0])


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_the_front_is_that_of_every_pair(columns: int) -> None:
    values = np.random.default_rng(columns).integers(0, 5, size=(60, columns)) / 4
    assert surrogate.on_front(values).tolist() == front(values.tolist())


def test_designs_fill_the_box_and_depend_on_the_seed() -> None:
    first, again, other = surrogate.design(2, 16, 1), surrogate.design(2, 16, 1), surrogate.design(2, 16, 2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    for corner in itertools.product((0, 1), repeat=2):  # four points in every quarter
        assert ((first // 0.5) == corner).all(1).sum() == 4
