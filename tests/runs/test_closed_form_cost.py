"""The estimate of the closed form follows from the shapes of the sources."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.methods.closed_form_solution import copies_per_image
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.runs import estimate
from fsmerge_cli.runs.closed_form_cost import Shapes, memory, operations, shapes
from fsmerge_cli.runs.estimate import Workload, measure, peak_memory
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

VIT_B = Shapes(rows=2200, tokens=197, depths=25, candidates=6144, merged=3072, stream=1536, merged_stream=768)


def test_the_shapes_are_those_of_the_plan() -> None:
    sources = [vit_source("class token", seed) for seed in (1, 2)]
    plan = compile_plan(sources)
    depth, width = sources[0].arch.args["depth"], sources[0].arch.features
    found = shapes(plan, 10)
    hidden = max(space.merged for space in plan.spaces.values())
    assert found == Shapes(10, found.tokens, 2 * depth + 1, 2 * hidden, hidden, 2 * width, width)
    assert shapes(compile_plan([mlp_source(n, [8, 6], 1) for n in "ab"]), 5) == Shapes(5, 1, 0, 16, 8, 28, 14)


def test_the_streams_of_a_large_pair_are_four_and_five_without_corrections() -> None:
    stream = 4 * 2200 * 197 * 768
    rest = 4 * 2200 * 3 * 224**2 + 8 * 86_000_000 + 8 * 6144 * (3 * 6144 + 768) + 3 * 2**28
    assert memory(VIT_B, 86_000_000, 3 * 224**2, correct=True, batch=256) == 4 * stream + rest
    assert memory(VIT_B, 86_000_000, 3 * 224**2, correct=False, batch=256) == 5 * stream + rest


def test_operations_grow_with_the_rows_and_the_selection_does_not() -> None:
    plan = compile_plan([vit_source("class token", seed) for seed in (1, 2)])
    few, many, more = (operations(plan, shapes(plan, n), 1e6, 100.0) for n in (1000, 2000, 3000))
    assert more - many == pytest.approx(many - few)
    assert many < 2 * few


def test_views_fill_up_to_1000_images_per_task() -> None:
    assert [copies_per_image(n, 2, None) for n in (100, 300, 2000, 4000, 0)] == [19, 6, 0, 0, 0]
    assert copies_per_image(100, 2, 4) == 4


def test_one_pass_is_a_batch_of_small_images() -> None:
    few, many = (memory(Shapes(1000, 37, 9, 768, 384, 192, 96), 0, 0, True, batch) for batch in (1, 256))
    assert many - few == 3 * 255 * 8 * 37 * (768 + 384)


@pytest.mark.parametrize(
    "start", [Distillation(start="closed_form", steps=500), FSMerge(start="closed_form", steps=500)]
)
def test_a_start_from_the_closed_form_is_solved_and_trained(start: Distillation | FSMerge) -> None:
    plan = start.plan([vit_source("class token", seed) for seed in (1, 2)])
    work, network = Workload((50, 50), (10, 10), 0), measure(plan)
    other = replace(start, start="first")
    solved = operations(plan, shapes(plan, 2000), float(network.operations), 100.0)
    assert estimate.operations(plan, start, work, network) == pytest.approx(
        estimate.operations(plan, other, work, network) + solved
    )
    trained, both = (peak_memory(plan, (1, 1), m, Hardware(), work, network) for m in (other, start))
    assert both > trained


def test_the_training_after_the_closed_form_counts() -> None:
    plan = FSClosedForm().plan([vit_source("class token", seed) for seed in (1, 2)])
    work, network = Workload((50, 50), (10, 10), 0), measure(plan)
    none, some, twice = (estimate.operations(plan, FSClosedForm(steps=n), work, network) for n in (0, 100, 200))
    step = float(network.operations) * 128 * (3 + 2)  # the student forward and backward, and both teachers
    assert twice - some == pytest.approx(100 * step)
    assert some > none + 100 * step
