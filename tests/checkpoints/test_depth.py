"""`models.sources.N.depth`: blocks that change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm import create_model
from torch import nn

from fsmerge_cli import check, load_source, merge
from fsmerge_cli.checkpoints.depth import deepened
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.checkpoints import refused
from tests.support.sources import mlp_source
from tests.support.third_party import PIXELS, random_weights
from tests.support.vits import TINY, VARIANTS, mark_full, vit_source


def module(depth: int, seed: int) -> nn.Module:
    sizes = {**TINY, "in_chans": 3, "depth": depth}
    return random_weights(create_model("vit_tiny_patch16_224", num_classes=3, **sizes), seed)


@pytest.mark.parametrize("variant", mark_full(VARIANTS))
def test_added_blocks_change_nothing_to_the_bit(variant: str) -> None:
    source = vit_source(variant, 1)
    found = deepened(SourceSpec("s1", checkpoint="x", depth=5), source, "source 's1'")
    assert len(found.family.blocks(network(found))) == 5
    pixels = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(found)(pixels), network(source)(pixels))
    compile_plan([found, replace(found, name="twin")])


@pytest.mark.full
def test_sources_of_unequal_depth_merge(tmp_path: Path) -> None:
    shallow, deep = module(2, 1), module(4, 2)
    entries: list[dict[str, Any]] = [
        {"name": "shallow", "module": shallow, "labels": ["x", "y", "z"], "depth": 4, **PIXELS},
        {"name": "deep", "module": deep, "labels": ["u", "v", "w"], "depth": 4, **PIXELS},
    ]
    pixels = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = merge(entries, method=FSClosedForm(views=0), data=pixels, output=tmp_path / "out")
    assert (
        "'shallow': 2 of its 4 blocks were added and change nothing, so that it is as deep as the others"
        in result.notes
    )
    assert not any(note.startswith("'deep'") and "added" in note for note in result.notes)
    loaded: Any = create_model(f"local-dir:{tmp_path}/out/merged", pretrained=True).eval()
    assert len(loaded.blocks) == 4
    torch.testing.assert_close(loaded(pixels), result.backbone()(pixels), rtol=1e-5, atol=1e-5)


@pytest.mark.full
def test_match_is_the_depth_of_the_deepest_source() -> None:
    labels = ["x", "y", "z"]
    entries: list[dict[str, Any]] = [
        {"name": f"s{depth}", "module": module(depth, depth), "labels": labels, "depth": "match", **PIXELS}
        for depth in (2, 4, 3)
    ]
    result = merge(entries, method="average")
    assert [note for note in result.notes if "added" in note] == [
        "'s2': 2 of its 4 blocks were added and change nothing, so that it is as deep as the others",
        "'s3': 1 of its 4 blocks was added and change nothing, so that it is as deep as the others",
    ]
    assert result.plan.arch.depth == 4
    assert check(entries).arch.depth == 4
    entries[0]["depth"] = 6
    assert merge(entries, method="average").plan.arch.depth == 6
    with pytest.raises(SourceError) as error:
        load_source(module(2, 1), depth="match")
    assert str(error.value) == (
        "source 'source': module VisionTransformer: depth=match is that of other sources, and this one is read "
        "alone. Pass a number."
    )


def test_headers_are_deepened_too() -> None:
    found = load(SourceSpec("a", module=module(2, 1), labels=("x", "y", "z"), depth=3, **PIXELS), headers=True)
    assert "blocks.2.attn.qkv.weight" in found.weights
    assert found.weights["blocks.2.attn.qkv.weight"].is_meta


def test_what_cannot_be_deepened_is_refused() -> None:
    assert refused(SourceSpec("a", module=module(2, 1), labels=("x", "y", "z"), depth=1, **PIXELS)) == (
        "source 'a': module VisionTransformer has 2 blocks, and depth=1 would remove some. Pass "
        "models.sources.N.depth=2 or more."
    )
    assert refused(SourceSpec("a", module=module(2, 1), labels=("x", "y", "z"), depth=10**6, **PIXELS)) == (
        "source 'a': module VisionTransformer: depth=1000000 is more than 128 blocks. Pass fewer."
    )
    source = mlp_source("a", [6, 5], 1)
    with pytest.raises(SourceError) as error:
        deepened(SourceSpec("a", checkpoint="x", depth=3), source, "source 'a'")
    assert str(error.value) == (
        "source 'a': blocks that change nothing can be added to vision transformers, whose blocks add to a "
        "stream, and this is a network of family 'mlp'. Remove models.sources.N.depth."
    )
