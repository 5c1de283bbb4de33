"""`fsmerge curve`: the ends are the sources, the middle is the method, and the barrier is its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fsmerge_cli.alignment.channels import moments
from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.evaluation.interpolation import CurvePoint, barriers
from fsmerge_cli.methods import METHODS, Problem
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.runs.curve import align_to_first, curve, weights_at
from fsmerge_cli.training.teachers import network
from tests.support.resnets import resnet_source
from tests.support.sources import mlp_source, random_images

LABELS = ("cat", "dog", "fox")
PIXELS = (torch.rand(90, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
DATA = {"train": PIXELS[60:], "test": (PIXELS[:60], torch.arange(60) % 3)}


def one_task(*seeds: int) -> list[Source]:
    sources = [mlp_source(f"s{seed}", [9, 7], seed) for seed in seeds]
    found = []
    for source in sources:
        assert source.head is not None
        scores = network(source)(PIXELS) @ source.head.weight.T
        found.append(replace(source, head=replace(source.head, labels=LABELS, bias=-scores.mean(0))))
    return found  # which predict every class


def test_a_barrier_is_the_largest_height_above_the_line_between_the_ends() -> None:
    points = [CurvePoint(a, loss, 0.0) for a, loss in ((0.0, 1.0), (0.25, 2.0), (0.75, 3.4), (1.0, 3.0))]
    assert barriers(points) == {"loss": pytest.approx(3.4 - 2.5), "error": 0.0}
    assert barriers([points[0], points[-1]]) == {"loss": 0.0, "error": 0.0}


@pytest.mark.parametrize("align", ["weights", "activations", "none"])
def test_the_ends_are_the_sources_and_every_point_is_the_network_between_them(align: str) -> None:
    first, second = one_task(1, 2)
    found = curve([first, second], align=align, points=3, data=DATA)
    assert [line.alignment for line in found.lines] == (["none"] if align == "none" else ["none", align])
    assert found.images == 60
    pixels, labels = DATA["test"]
    for line in found.lines:
        for point, own in ((line.points[0], first), (line.points[-1], second)):
            assert own.head is not None
            logits = own.head(network(own)(pixels))
            assert point.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
            assert point.error == pytest.approx((logits.argmax(1) != labels).double().mean().item())
            assert len(logits.argmax(1).unique()) > 1
        assert (line.points[0].disagreement[0], line.points[-1].disagreement[1]) == (0.0, 0.0)
        assert line.points[0].feature_error[0] == pytest.approx(0, abs=1e-9)
        assert line.points[0].disagreement[1] == line.points[-1].disagreement[0]
    plain = found.lines[0].points[1]
    weights = {name: (t + second.weights[name]) / 2 for name, t in first.weights.items()}
    module = network(replace(first, weights=weights))
    assert first.head is not None
    assert second.head is not None
    head = replace(
        first.head,
        weight=(first.head.weight + second.head.weight) / 2,
        bias=(first.head.bias + second.head.bias) / 2,  # type: ignore[operator]
    )
    assert plain.loss == pytest.approx(F.cross_entropy(head(module(pixels)), labels).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("align", "method"), [("weights", "weight_matching"), ("activations", "activation_matching")]
)
def test_the_middle_of_the_line_is_what_the_method_merges(align: str, method: str) -> None:
    sources = [mlp_source(f"s{seed}", [9, 7], seed) for seed in (1, 2)]
    problem = Problem(compile_plan(sources), sources, random_images(2, 8, sources[0].arch.input_size))
    expected, found = METHODS[method]().fit(problem), weights_at(align_to_first(problem, align), 0.5, repair=False)
    for name, tensor in expected.weights.items():
        torch.testing.assert_close(found.weights[name], tensor)
    assert all(torch.equal(a, b) for a, b in zip(found.projectors, expected.projectors))


def test_a_shuffled_copy_has_no_barrier_after_its_alignment() -> None:
    (first,) = one_task(3)
    plan = compile_plan([first, replace(first, name="copy")])
    order = random_permutations(plan, 0, torch.Generator().manual_seed(5))
    assert first.head is not None
    head = replace(first.head, weight=first.head.weight[:, order[plan.features.space]])
    copy = replace(first, name="copy", weights=permute(plan, first.weights, order), head=head)
    predicted = first.head(network(first)(PIXELS[:60])).argmax(1)
    before, after = curve([first, copy], points=5, data={**DATA, "test": (PIXELS[:60], predicted)}).lines
    assert before.barrier["loss"] > 0.01
    assert after.barrier["loss"] < 1e-5
    assert {point.disagreement for point in after.points} == {(0.0, 0.0)}


def test_repair_leaves_the_ends_and_gives_the_middle_the_mean_statistics() -> None:
    sources = [resnet_source("deep stem, average pooling on the shortcut", seed) for seed in (1, 2)]
    problem = Problem(compile_plan(sources), sources, random_images(2, 6, sources[0].arch.input_size))
    matched = align_to_first(problem, "weights")
    for alpha, own in ((0.0, 0), (1.0, 1)):
        found = weights_at(matched, alpha, repair=True).weights
        for name, tensor in matched.problem.sources[own].weights.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-3)
    names, images = problem.plan.family.folding.norms(problem.plan.arch), problem.images.images  # type: ignore[union-attr]
    middle = problem.plan.skeleton()
    middle.load_state_dict(dict(weights_at(matched, 0.25, repair=True).weights), assign=True)
    one, two = (moments(network(own), names, images, problem) for own in matched.problem.sources)
    for name, (mean, variance) in moments(middle, names, images, problem).items():
        torch.testing.assert_close(mean, 0.75 * one[name][0] + 0.25 * two[name][0], rtol=1e-3, atol=1e-3)
        wanted = 0.75 * one[name][1].sqrt() + 0.25 * two[name][1].sqrt()
        torch.testing.assert_close(variance.sqrt(), wanted, rtol=1e-3, atol=1e-3)


def test_without_labels_or_a_shared_task_agreement_and_feature_error_are_measured() -> None:
    found = curve(one_task(1, 2), points=2, data=PIXELS)
    assert found.lines[0].points[0].loss is None
    assert found.lines[0].barrier.keys() == {"disagreement", "feature_error"}
    assert "no image has a label: only agreement and feature error were measured" in found.notes
    two = [mlp_source("a", [9, 7], 1), mlp_source("b", [9, 7], 2)]
    found = curve(two, points=2, data=PIXELS)
    assert found.notes[-1] == (
        "'a' and 'b' have different classes, so that no head lies between theirs: loss and accuracy were not "
        "measured, and each was compared on its own images"
    )
    found = curve([two[0], replace(two[1], head=None)], points=2, data=PIXELS)
    assert found.notes[-1] == "'a' and 'b' do not both have a head: loss and accuracy were not measured"
    assert found.lines[0].points[0].disagreement == (0.0, None)


def test_there_is_no_line_between_widths() -> None:
    wide = replace(mlp_source("wide", [9, 11], 2), head=None)
    with pytest.raises(Exception, match="there is no straight line between weights of different widths"):
        curve([one_task(1)[0], wide], data=DATA)
