"""`models.sources.N.reads`: patch tokens that count, in trainings and in the closed form."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from fsmerge_cli import merge
from fsmerge_cli.alignment.closed_form.counted import counted_outputs
from fsmerge_cli.alignment.closed_form.rows import row_weights
from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.architectures.token_outputs import on_grid, token_layout
from fsmerge_cli.checkpoints.reads import with_reads
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.evaluation.tokens import tokens_of
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.methods.kd import PlainStudent, StudentNetwork, distilled_student
from fsmerge_cli.methods.token_start import token_reader
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import Reads, SourceSpec
from fsmerge_cli.supernet.token_reader import TokenReader
from fsmerge_cli.training.objective import Batch, objective
from fsmerge_cli.training.teachers import network
from tests.support.encoders import encoder_source
from tests.support.sources import capture_in_memory, distilling, folding, mlp_source, random_images
from tests.support.vggs import vgg_source
from tests.support.vits import vit_source

Make = Callable[..., Problem]


def reading(reads: Reads, seed: int, variant: str = "class token", head: Head | None = None) -> Source:
    return replace(vit_source(variant, seed), name=f"s{seed}", head=head, reads=reads)


def tokens(source: Source, pixels: Tensor) -> Tensor:
    place = source.family.tokens(network(source))
    assert place is not None
    with torch.no_grad():
        return tokens_of(network(source), place, pixels)


@pytest.mark.parametrize("reads", get_args(Reads))
def test_the_objective_of_tokens_is_their_relative_squared_error(reads: Reads, make_problem: Make) -> None:
    """Compared with loops over sources, images, patches and units."""
    problem = make_problem([reading(reads, 1), reading("pooled", 2)], per_task=4)
    targets = capture_in_memory(problem)
    plain = StudentNetwork(problem, "first", "linear")
    student = token_reader(problem, plain, problem.images, targets)
    assert isinstance(student, TokenReader) is (reads != "pooled")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    pixels = problem.images.images
    batch = Batch.of(pixels, targets, torch.arange(len(pixels)))
    found = objective(student, batch, targets)

    backbone = replace(problem.sources[0], weights=dict(plain.network.state_dict()))
    expected = 0.0
    with torch.no_grad():
        for i, source in enumerate(problem.sources):
            z, own = network(backbone)(pixels), network(source)(pixels)
            rest = plain.project(z, i) - own
            pooled = float(rest.square().mean() / own.var(0, correction=0).mean())
            if source.reads == "pooled":
                expected += pooled / 2
                continue
            assert isinstance(student, TokenReader)
            layer: Any = student.projectors[str(i)]
            t, mine = tokens(source, pixels), tokens(backbone, pixels)
            errors = [
                float((layer.weight @ mine[n, p] + layer.bias - t[n, p]).square().mean())
                for n in range(len(pixels))
                for p in range(t.shape[1])
            ]
            relative = sum(errors) / len(errors) / float(t.flatten(0, 1).var(0, correction=0).mean())
            expected += (relative if reads == "tokens" else (relative + pooled) / 2) / 2
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("own", "other"), [(4, 2), (2, 4)])
def test_tokens_of_other_grids_are_compared_at_the_places_of_the_source(own: int, other: int) -> None:
    """Patches of other sizes: the projected tokens of the merged model are interpolated, then compared."""
    sources = [reading("pooled", 1), reading("tokens", 2)]
    for place, patch in enumerate((own, other)):
        made = vit_source("class token", place + 1, patch_size=patch)
        sources[place] = replace(made, name=f"s{place}", head=None, reads=sources[place].reads)
    problem = Problem(distilling(start="first").plan(sources), sources, random_images(2, 6, (2, 8, 8)))
    targets = capture_in_memory(problem)
    plain = distilled_student(problem, False, False)
    student = token_reader(problem, plain, problem.images, targets)
    assert isinstance(student, TokenReader)
    pixels = problem.images.images
    batch = Batch.of(pixels, targets, torch.arange(len(pixels)))
    found = objective(student, batch, targets)
    old, new = ((8 // patch, 8 // patch) for patch in (own, other))
    with torch.no_grad():
        layer: Any = student.projectors["1"]
        mine, t = layer(tokens(sources[0], pixels)), tokens(sources[1], pixels)
        assert mine.shape[1] == old[0] ** 2 != t.shape[1] == new[0] ** 2
        error = (on_grid(mine, old, new) - t).square().mean() / t.flatten(0, 1).var(0, correction=0).mean()
        z, own_features = network(sources[0])(pixels), network(sources[0])(pixels)
        pooled = (plain.project(z, 0) - own_features).square().mean() / own_features.var(0, correction=0).mean()
    assert found.item() == pytest.approx(float(error + pooled) / 2, rel=1e-4)


def test_pooled_features_that_do_not_count_train_only_their_projector(make_problem: Make) -> None:
    problem = make_problem([reading("tokens", 1), reading("tokens", 2)], per_task=4)
    targets = capture_in_memory(problem)
    gradients = []
    for scale in (1.0, 100.0):
        changed = [replace(own, variance=own.variance / scale) for own in targets]
        plain = StudentNetwork(problem, "average", "linear")
        student = token_reader(problem, plain, problem.images, changed)
        batch = Batch.of(problem.images.images, changed, torch.arange(8))
        objective(student, batch, changed).backward()  # type: ignore[no-untyped-call]
        gradients.append((plain, plain.network.get_parameter("blocks.0.mlp.fc1.weight").grad))
    assert torch.equal(gradients[0][1], gradients[1][1])  # type: ignore[arg-type]
    of_projector = [plain.projectors[1].grad for plain, _ in gradients]  # type: ignore[index]
    torch.testing.assert_close(100 * of_projector[0], of_projector[1])
    assert float(of_projector[0].abs().max()) > 0


@pytest.mark.full
@pytest.mark.parametrize("method", ["kd", "fs_merge", "fs_closed_form"])
@pytest.mark.parametrize("reads", ["tokens", "both"])
def test_a_source_merged_with_its_copy_gives_its_tokens(method: str, reads: Reads, tmp_path: Path) -> None:
    first = replace(vit_source("class token", 1, in_chans=3), name="a", head=None, reads=reads)
    plan = compile_plan([first, replace(first, name="b")])
    orders = random_permutations(plan, 0, torch.Generator().manual_seed(3))
    copy = replace(first, name="b", weights=permute(plan, first.weights, orders), sha256="1" * 64)
    pixels = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    own: Any = {
        "kd": distilling(start="matched", steps=2, lr=1e-5),
        "fs_merge": folding(start="matched", steps=2, lr=1e-5, maps="full"),
        "fs_closed_form": FSClosedForm(views=0, heads="same"),
    }[method]
    merge([first, copy], method=own, data=pixels, output=tmp_path / "out")
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for name in ("a", "b"):
        found = evaluation["tokens"][name]
        assert min(found["cosine"], found["explained"], found["same_place"]) > 0.99, found
        assert evaluation["rows"]["merged"]["feature_cosine"][name] > 0.99


@pytest.mark.full
@pytest.mark.parametrize("method", ["kd", "fs_merge", "fs_closed_form"])
def test_tokens_that_count_are_kept_better(method: str, make_problem: Make) -> None:
    """Two unrelated networks: the tokens of both from the one network, with `reads` and without it."""
    errors = {}
    for reads in ("pooled", "tokens"):
        problem = make_problem([reading(reads, 1), reading(reads, 2)], per_task=40)
        own: Any = {
            "kd": distilling(start="first", steps=60, targets="all", lr=3e-3),
            "fs_merge": folding(start="first", steps=60, targets="all", lr=3e-3),
            "fs_closed_form": FSClosedForm(views=0),
        }[method]
        problem = replace(problem, plan=own.plan(problem.sources))
        weights = own.fit(problem).weights
        merged = replace(problem.sources[0], arch=problem.plan.arch, weights=weights)
        pixels = torch.rand(80, 2, 8, 8, generator=torch.Generator().manual_seed(5))
        x = tokens(merged, pixels).flatten(0, 1).double()
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        left = 0.0
        for source in problem.sources:
            y = tokens(source, pixels).flatten(0, 1).double()
            solved = torch.linalg.lstsq(x, y).solution
            left += float((y - x @ solved).square().sum() / (y - y.mean(0)).square().sum())
        errors[reads] = left
    assert errors["tokens"] < 0.9 * errors["pooled"], errors


def test_the_closed_form_weighs_rows_by_the_relative_errors_of_what_counts() -> None:
    """Distances of the counted outputs are the loss of a training; without pooled features only patches count."""
    pixels = torch.rand(24, 2, 8, 8, generator=torch.Generator().manual_seed(4))
    for reads in ("tokens", "both"):
        source = reading(reads, 1)
        module = network(source)
        counted = counted_outputs(source, module, pixels, 7, torch.device("cpu"))
        with torch.no_grad():
            pooled, patches = module(pixels), tokens(source, pixels)
            outputs = counted(pixels)
        found = (outputs[:12] - outputs[12:]).square().sum()
        expected = (patches[:12] - patches[12:]).square().mean() * 12 / patches.flatten(0, 1).var(0, False).mean()
        if reads == "both":
            expected += (pooled[:12] - pooled[12:]).square().mean() * 12 / pooled.var(0, False).mean()
        assert float(found) == pytest.approx(float(expected), rel=1e-3)
        last = [("blocks.1", "output")]
        (weights,) = row_weights([module], last, [pixels], 8, 0.0, 0, [counted])
        assert (float(weights[0]) > 0) is (reads == "both")
        assert bool((weights[1:] > 0).all())
        (plain,) = row_weights([module], last, [pixels], 8, 0.0, 0)
        assert float(plain[0]) == pytest.approx(1)
        assert not bool(plain[1:].any())


@pytest.mark.full
def test_a_sequential_merge_reads_the_tokens_of_its_parts(make_problem: Make) -> None:
    problem = make_problem([reading("both", 1), reading("both", 2), reading("pooled", 3)], per_task=6)
    method = folding(steps=2, sequential=True)
    found = method.fit(problem)
    assert len(found.projectors) == 3
    assert all(bool(own.isfinite().all()) for own in found.weights.values())


def test_without_tokens_nothing_changes(make_problem: Make) -> None:
    problem = make_problem([reading("pooled", 1), reading("pooled", 2)], per_task=4)
    student = PlainStudent(problem, problem.sources[0].weights, [torch.eye(12)] * 2)
    assert "forward" not in vars(student.network)
    assert token_reader(problem, student, problem.images, capture_in_memory(problem)) is student


@pytest.mark.parametrize(("old", "new"), [((2, 2), (2, 2)), ((2, 3), (4, 5)), ((6, 4), (2, 3)), ((4, 4), (3, 3))])
def test_grids_are_brought_together_by_linear_interpolation(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Triangles around the places of the new grid, as wide as the coarser grid's patches; weights sum to 1."""
    x = torch.randn(2, old[0] * old[1], 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def weights(n: int, m: int) -> Tensor:
        width = max(1.0, n / m)
        found = torch.zeros(m, n, dtype=torch.float64)
        for place in range(m):
            centre = (place + 0.5) * n / m
            for own in range(n):
                found[place, own] = max(0.0, 1 - abs(own + 0.5 - centre) / width)
        return found / found.sum(1, keepdim=True)

    rows, columns = weights(old[0], new[0]), weights(old[1], new[1])
    expected = torch.einsum("ar,bc,nrcd->nabd", rows, columns, x.reshape(2, *old, 3)).flatten(1, 2)
    torch.testing.assert_close(on_grid(x, old, new), expected)


@pytest.mark.parametrize(
    "variant", ["class token", "CLIP quick-GELU with projection", "register tokens", "distillation token (DeiT)"]
)
def test_the_layout_holds_features_and_tokens(variant: str) -> None:
    source = reading("both", 1, variant)
    layout = token_layout(source.family, source.arch)
    assert layout is not None
    assert (layout.width, layout.grid, layout.token_width) == (source.arch.features, (2, 2), 12)


def message(spec: SourceSpec, source: Source) -> str:
    with pytest.raises(SourceError) as error:
        with_reads(spec, source, "source 'a'")
    return str(error.value)


def test_what_has_no_tokens_is_refused() -> None:
    spec = SourceSpec("a", checkpoint="x", reads="tokens")
    for source, family in (
        (mlp_source("a", [6, 5], 1), "mlp"),
        (vgg_source("plain", 1), "vgg"),
        (encoder_source("BERT", 1), "bert"),
    ):
        assert message(spec, source) == (
            "source 'a': reads=tokens is of vision transformers, which have patch tokens, and this is a network "
            f"of family '{family}'. Remove models.sources.N.reads."
        )
    assert message(spec, vit_source("class token", 1)) == (
        "source 'a': its head reads the pooled features, which reads=tokens leaves out. Pass "
        "models.sources.N.reads=both, or a checkpoint without the head."
    )
    with pytest.raises(ValueError, match="reads"):
        SourceSpec("a", checkpoint="x", reads="patches")  # type: ignore[arg-type]


def test_what_counts_is_noted() -> None:
    source = vit_source("class token", 1)
    assert with_reads(SourceSpec("a", checkpoint="x", reads="pooled"), source, "") is source
    found = with_reads(SourceSpec("a", checkpoint="x", reads="both"), source, "")
    assert found.reads == "both"
    assert found.notes[-1] == (
        "'a': its patch tokens count beside its pooled features (reads=both), 2 x 2 of 12 units"
    )
