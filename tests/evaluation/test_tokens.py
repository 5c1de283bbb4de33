"""Per-token agreement and token projectors of sources without heads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fsmerge_cli import load_merged, merge
from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.evaluation.tokens import tokens_of
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.training.teachers import network
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

VARIANTS = ["class token", "attention pooling (SigLIP)", "rotary, registers (DINOv3)", "average pooling, fc_norm"]


def images(count: int = 100) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.full
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_permuted_copy_has_the_tokens_of_the_source(variant: str, tmp_path: Path) -> None:
    first = replace(vit_source(variant, 1, in_chans=3), name="a", head=None)
    plan = compile_plan([first, replace(first, name="b")])
    orders = random_permutations(plan, 0, torch.Generator().manual_seed(3))
    copy = replace(first, name="b", weights=permute(plan, first.weights, orders), sha256="1" * 64)
    result = merge([first, copy], method="activation_matching", data=images(), output=tmp_path / "out")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["tokens"]
    model, pixels = load_merged(tmp_path / "out"), images(5)
    for source in (first, copy):
        own = found[source.name]
        assert (own["images"], own["positions"]) == (20, 4)
        assert min(own["cosine"], own["explained"], own["same_place"]) > 0.999
        place = result.plan.family.tokens(network(source))
        assert place is not None
        expected = tokens_of(network(source), place, pixels)
        torch.testing.assert_close(model.tokens(pixels, source.name), expected, rtol=1e-2, atol=2e-2)
    assert "explain 100.0 % of the variance" in (tmp_path / "out" / "merged" / "README.md").read_text()


@pytest.mark.full
def test_a_decoder_of_a_source_is_put_back_on_its_tokens(tmp_path: Path) -> None:
    """A small segmentation head, trained on the source's tokens, reads the merged model's."""
    sources = [replace(vit_source("class token", i, in_chans=3), name=f"s{i}", head=None) for i in (1, 2)]
    patches = torch.rand(400, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    bright = patches.flatten(1) > 0.5
    pixels = patches.repeat_interleave(4, 2).repeat_interleave(4, 3) + 0.1 * images(400)
    result = merge(sources, method="activation_matching", data=pixels.clamp(0, 1), output=tmp_path / "out")
    place = result.plan.family.tokens(network(sources[0]))
    assert place is not None
    decoder = nn.Linear(12, 1)
    optimizer = torch.optim.LBFGS(decoder.parameters(), max_iter=60)
    tokens = tokens_of(network(sources[0]), place, pixels).detach()

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.binary_cross_entropy_with_logits(decoder(tokens).squeeze(-1), bright.float())
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[arg-type]

    def accuracy(given: Tensor) -> float:
        return float(((decoder(given).squeeze(-1) > 0) == bright).float().mean())

    own, merged = accuracy(tokens), accuracy(load_merged(tmp_path / "out").tokens(pixels, "s1"))
    assert own > 0.9
    assert own - 0.2 < merged < own  # random networks of the merge keep most of it, not all


def test_networks_without_tokens_have_none(tmp_path: Path) -> None:
    sources = [replace(mlp_source(name, [6, 5], seed), head=None) for name, seed in (("a", 1), ("b", 2))]
    pixels = torch.rand(40, *sources[0].arch.input_size)
    result = merge(sources, method="average", data=pixels, output=tmp_path / "out")
    assert result.evaluation()["tokens"] == {}
    with pytest.raises(ConfigError) as error:
        load_merged(tmp_path / "out").tokens(pixels, "a")
    assert str(error.value) == "unknown source with a token projector 'a'. Available: none."
