"""Options of trainings on several teachers: standardised features, balanced errors, views at a low resolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError, TrainingError
from fsmerge_cli.data.views import at_low_resolution
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.kd import StudentNetwork
from fsmerge_cli.training.objective import Batch, LossWeights, balanced, objective
from fsmerge_cli.training.whitening import FLOOR, whitened, whitening
from tests.support.encoders import encoder_source, text_problem
from tests.support.sources import capture_in_memory, distilling, mlp_source
from tests.support.vits import vit_source

Make = Callable[..., Problem]


def rows(count: int, width: int) -> Tensor:
    """Features that vary much more in some directions than in others, around a mean that is not 0."""
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=random) * torch.logspace(0, -2, width)[:, None]
    return torch.randn(count, width, generator=random) @ mixing + 3


def hadamard(width: int) -> Tensor:
    found = torch.ones(1, 1)
    while len(found) < width:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found.double() / width**0.5


def test_isotropic_standardisation_is_that_of_phi_s(make_problem: Make) -> None:
    """H U^T / phi of PHI-S gives every unit of the features the variance 1, and the same loss as it is."""
    problem = make_problem(per_task=16)
    targets, student = capture_in_memory(problem), StudentNetwork(problem, "average", "linear")
    batch = Batch.of(problem.images.images, targets, torch.arange(32))
    with torch.no_grad():
        found = float(objective(student, batch, targets))
        z, expected = student(problem.images.images), 0.0
        for i, own in enumerate(targets):
            features = own.at(torch.arange(32)).double()
            values, vectors = torch.linalg.eigh(torch.cov(features.T, correction=0))
            phi = values.clamp(min=0).mean().sqrt()
            standardised = (features - features.mean(0)) @ vectors @ hadamard(8).T / phi
            torch.testing.assert_close(standardised.var(0, correction=0), torch.ones(8, dtype=torch.float64))
            rest = (student.project(z, i).double() - features) @ vectors @ hadamard(8).T / phi
            expected += float(rest.square().mean()) / 2
    assert found == pytest.approx(expected, rel=1e-5)


def test_whitened_features_vary_alike_in_all_directions() -> None:
    x = rows(500, 6)
    W = whitening(iter(torch.split(x, 77)))
    covariance = torch.cov(x.double().T, correction=0)
    values = torch.linalg.eigvalsh(W.double() @ covariance @ W.double())
    assert float(values.mean()) == pytest.approx(1, rel=1e-4)
    own = torch.linalg.eigvalsh(covariance)
    kept = own / (own + FLOOR * own.mean())
    torch.testing.assert_close(values, (kept / kept.mean()).sort().values, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(W, W.T, rtol=1e-4, atol=1e-5)
    assert torch.equal(whitening(iter([torch.ones(4, 3)])), torch.eye(3))
    with pytest.raises(ValueError, match="no rows"):
        whitening(iter([]))


@pytest.mark.parametrize("reads", ["pooled", "both"])
def test_the_whitened_error_is_one_for_the_mean_of_the_features(reads: str, make_problem: Make) -> None:
    sources = [replace(vit_source("class token", seed), name=f"s{seed}", reads=reads) for seed in (1, 2)]
    problem = make_problem(sources, per_task=8)
    for own in capture_in_memory(problem):
        found = whitened(own, problem.images.train, 5)
        every = own.at(torch.arange(16))
        if found.tokens is not None:
            tokens = found.tokens.layout.tokens(every)
            constant = tokens.mean((0, 1), keepdim=True).expand_as(tokens)
            assert float(found.tokens.error(constant, every)) == pytest.approx(16, rel=1e-3)
            every = found.tokens.layout.features(every)
        assert found.whitening is not None
        rest = (every - every.mean(0)) @ found.whitening
        assert float(rest.square().mean()) == pytest.approx(1, rel=1e-3)


def test_the_whitened_objective_is_computed_unit_by_unit(make_problem: Make) -> None:
    problem = make_problem(per_task=6)
    targets = [whitened(own, problem.images.train, 4) for own in capture_in_memory(problem)]
    student = StudentNetwork(problem, "average", "linear")
    batch = Batch.of(problem.images.images, targets, torch.arange(12))
    with torch.no_grad():
        found, z, expected = float(objective(student, batch, targets)), student(problem.images.images), 0.0
        for i, own in enumerate(targets):
            rest = student.project(z, i) - own.at(torch.arange(12))
            assert own.whitening is not None
            for row in rest:
                for unit in range(8):
                    expected += float((row * own.whitening[:, unit]).sum() ** 2) / (12 * 8 * 2)
    assert found == pytest.approx(expected, rel=1e-4)


def test_balanced_losses_have_the_gradient_of_their_logarithms() -> None:
    x = torch.tensor([0.5, -2.0, 3.0], requires_grad=True)
    losses = [(x[0] * x[1]).square(), 10 * x[2].square() + x[0].exp(), (x[1] - 1).square()]
    weights = [1.5, 1.0, 0.5]
    value = balanced(losses, weights)
    (found,) = torch.autograd.grad(value, x, retain_graph=True)
    shares = torch.tensor(weights)
    logarithms = (shares * torch.stack(losses).log()).sum() * torch.stack(losses).mean().detach()
    (expected,) = torch.autograd.grad(logarithms, x, retain_graph=True)
    torch.testing.assert_close(found, expected)
    assert value.item() == pytest.approx(sum(w * loss.item() for w, loss in zip(weights, losses)))
    (alone,) = torch.autograd.grad(balanced([losses[0] * 0, losses[0]], [1.0, 1.0]), x)
    assert bool(alone.isfinite().all())


def test_a_balanced_objective_has_the_same_value(make_problem: Make) -> None:
    problem = make_problem(per_task=4)
    targets, student = capture_in_memory(problem), StudentNetwork(problem, "first", "linear")
    batch = Batch.of(problem.images.images, targets, torch.arange(8))
    plain, other = (objective(student, batch, targets, LossWeights(balanced=on)) for on in (False, True))
    assert plain.item() == pytest.approx(other.item())
    gradients = [torch.autograd.grad(own, [*student.network.parameters()])[0] for own in (plain, other)]
    assert not torch.allclose(*gradients)


def test_a_low_resolution_halves_the_detail() -> None:
    """Weights 1, 3, 3, 1 (of 8) around every second place, then 1 and 3 (of 4): a ramp stays, a grid vanishes."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8) / 8
    grid = (torch.arange(8) % 2).float().expand(1, 1, 8, 8)
    found = at_low_resolution(torch.cat([ramp, grid]), 1.0, 0, 0)
    torch.testing.assert_close(found[0, 0, :, 3:5], ramp[0, 0, :, 3:5])
    torch.testing.assert_close(found[1, 0, :, 3:5], torch.full((8, 2), 0.5))
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 1  # at half the resolution 0, 1/8, 7/8, 1
    expected = torch.tensor([0, 1, 3, 10, 22, 29, 31, 32]) / 32
    torch.testing.assert_close(at_low_resolution(step, 1.0, 0, 0)[0, 0], expected.expand(8, 8))


def test_a_share_of_the_images_has_a_low_resolution() -> None:
    pixels = torch.rand(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    found = at_low_resolution(pixels, 0.5, 3, 7)
    changed = (found != pixels).flatten(1).any(1)
    assert 10 < int(changed.sum()) < 30
    assert torch.equal(found, at_low_resolution(pixels, 0.5, 3, 7))
    assert not torch.equal(found, at_low_resolution(pixels, 0.5, 3, 8))
    assert at_low_resolution(pixels, 0.0, 3, 7).equal(pixels)
    vectors = torch.rand(3, 5, 1, 1)
    assert at_low_resolution(vectors, 1.0, 0, 0) is vectors


def test_the_options_change_a_training_and_are_off_by_default(make_problem: Make) -> None:
    problem = make_problem(per_task=6)

    def weights(**options: object) -> Tensor:
        return next(iter(distilling(steps=2, **options).fit(problem).weights.values()))

    plain = weights()
    assert torch.equal(plain, weights(standardise="isotropic", balance="none", low_resolution=0.0))
    for options in ({"standardise": "whitened"}, {"balance": "errors"}, {"low_resolution": 0.5}):
        assert not torch.equal(plain, weights(**options)), options


def test_a_source_without_images_is_not_whitened(make_problem: Make) -> None:
    problem = make_problem(per_task=4)
    first, second = capture_in_memory(problem)
    nothing = replace(second, mask=torch.zeros_like(second.mask))
    every = torch.arange(8)
    assert whitened(nothing, every, 4) is nothing
    assert whitened(first, every, 4).whitening is not None


@pytest.mark.full
def test_balanced_errors_are_those_of_whole_batches(make_problem: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = StudentNetwork.forward

    def small(self: StudentNetwork, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, images)

    monkeypatch.setattr(StudentNetwork, "forward", small)
    with pytest.raises(TrainingError, match="out of memory with 8 images at a time"):
        distilling(steps=2, batch_size=8, balance="errors").fit(make_problem(per_task=6))


def test_what_does_not_fit_is_refused(make_problem: Make) -> None:
    problem = text_problem([encoder_source("BERT", 1), replace(encoder_source("BERT", 2), name="other")])
    with pytest.raises(ConfigError) as error:
        distilling(low_resolution=0.5).check(problem)
    assert str(error.value) == "method.low_resolution is for images, and the inputs are texts. Pass 0."
    vectors = make_problem(
        sources=[mlp_source(name, [4], seed, input_size=(4, 1, 1)) for seed, name in enumerate("ab")], per_task=4
    )
    with pytest.raises(ConfigError) as error:
        distilling(low_resolution=0.5).check(vectors)
    assert (
        str(error.value) == "method.low_resolution halves the sides of images, and these have one pixel. Pass 0."
    )
    for key, value in (("standardise", "pca"), ("balance", "gradients"), ("low_resolution", 1.5)):
        with pytest.raises(ValueError, match=key):
            distilling(**{key: value})
