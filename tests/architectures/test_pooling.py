"""Attention pooling with a latent query: its one form in memory, its files, and what methods do with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm import create_model
from torch import Tensor, nn

from fsmerge_cli import merge
from fsmerge_cli.architectures.vit.pooling import of_query, with_projection
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.progress import Event
from fsmerge_cli.data.draw import Images
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.snapshots import SaveInterval, Snapshots
from fsmerge_cli.training.teachers import network
from tests.support.third_party import PIXELS, random_weights
from tests.support.vits import TINY, vit_source

SIGLIP = "attention pooling (SigLIP)"


def built(seed: int, **options: Any) -> nn.Module:
    """timm's own model with three classes."""
    return random_weights(
        create_model("vit_base_patch16_siglip_224", num_classes=3, **{**TINY, "in_chans": 3, **options}), seed
    )


def pixels(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_projection_of_the_query_is_folded_into_the_latent_and_written_as_the_identity() -> None:
    module = built(1)
    expected, own = module(pixels()), module.state_dict()
    folded = of_query(own)
    assert own.keys() - folded.keys() == {"attn_pool.q.weight", "attn_pool.q.bias"}
    assert of_query(folded).keys() == folded.keys()
    written = with_projection(folded)
    assert written.keys() == own.keys()
    assert torch.equal(of_query(written)["attn_pool.latent"], folded["attn_pool.latent"])
    module.load_state_dict(written)
    torch.testing.assert_close(module(pixels()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.full
def test_sources_with_other_latents_for_the_same_query_are_one_network(tmp_path: Path) -> None:
    one, other = built(1), built(1)
    state: dict[str, Tensor] = dict(other.state_dict())
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(2))).Q
    state["attn_pool.latent"] = state["attn_pool.latent"] @ turn
    state["attn_pool.q.weight"] = state["attn_pool.q.weight"] @ turn
    other.load_state_dict(state)
    torch.testing.assert_close(other(pixels()), one(pixels()), rtol=1e-4, atol=1e-5)
    entries = [
        {"name": name, "module": module, "labels": ["x", "y", "z"], **PIXELS}
        for name, module in (("a", one), ("b", other))
    ]
    result = merge(entries, method="average", output=tmp_path / "out")
    loaded = create_model(f"local-dir:{tmp_path}/out/merged", pretrained=True).eval()
    expected: Any = one
    expected.head = nn.Identity()
    torch.testing.assert_close(loaded(pixels()), one(pixels()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.backbone()(pixels()), loaded(pixels()), rtol=1e-5, atol=1e-5)
    # ... whose folder, and its model with all heads, are sources again.
    assert "attn_pool.q.weight" in load_file(tmp_path / "out" / "merged" / "model.safetensors")
    again = load(SourceSpec("a", checkpoint=str(tmp_path / "out"), head="a"))
    torch.testing.assert_close(network(again)(pixels()), one(pixels()), rtol=1e-4, atol=1e-5)
    whole = create_model(f"local-dir:{tmp_path}/out/classifier", pretrained=True).eval()
    assert whole(pixels()).shape == (3, 6)


@pytest.mark.full
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_closed_form_that_is_stopped_in_the_pooling_continues_there(stop: int, tmp_path: Path) -> None:
    sources: list[Source] = [replace(vit_source(SIGLIP, seed), name=str(seed)) for seed in (1, 2)]
    images, every = torch.rand(24, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24)
    method = FSClosedForm(views=1)
    problem = Problem(method.plan(sources), sources, Images(images, every % 2, every, every[:0]))
    expected = method.fit(problem)
    assert sum(name.startswith("heads_") for name in expected.facts) == 2 * 3  # two blocks and the pooling
    assert expected.facts["logits_kept_2"] == pytest.approx(1.0)  # one query for all images has rank 1

    def stopped(event: Event) -> None:
        if event.done == stop:
            raise KeyboardInterrupt

    saving = Snapshots(tmp_path / "s", every=SaveInterval(steps=1))
    with pytest.raises(KeyboardInterrupt):
        method.fit(replace(problem, snapshots=saving, progress=stopped))
    found = method.fit(replace(problem, snapshots=Snapshots(tmp_path / "s", every=SaveInterval(steps=1))))
    assert found.facts == expected.facts
    assert all(torch.equal(found.weights[name], t) for name, t in expected.weights.items())


def test_the_heads_of_a_pooling_may_have_another_number() -> None:
    sources = [vit_source("rotary, attention pooling (PE core)", seed) for seed in (1, 2)]
    spaces = compile_plan(sources).spaces
    assert (spaces["v0"].heads, spaces["v_pool"].heads, spaces["qk_pool"].rotary) == (
        (3, (3, 3)),
        (4, (4, 4)),
        False,
    )
