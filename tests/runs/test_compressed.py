"""TALL masks: the network of every task from the folder of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsmerge_cli import load_compressed, load_source, merge
from fsmerge_cli.common.errors import ConfigError, SourceError
from fsmerge_cli.runs.compressed import packed, unpacked
from fsmerge_cli.runs.result import MergeResult
from fsmerge_cli.training.teachers import network
from tests.methods.test_task_vectors_folded import PIXELS, folded, trained

PIXEL_KEYS = {"mean": list(PIXELS[0]), "std": list(PIXELS[1])}


def merged(folder: Path, **options: Any) -> tuple[MergeResult, list[Any]]:
    """A merge with masks of two small ViTs, and their base first, for normalised pixels."""
    sources = [folded(own) for own in trained("class token")]
    method = {"name": "consensus", "masks": True, "mask": 0.5}
    found = merge(sources[1:], base=sources[0], method=method, output=folder, **options)
    return found, sources


def masked(sources: list[Any], i: int) -> dict[str, Tensor]:
    """W_0 + m_i s, entry by entry, of networks for normalised pixels."""
    base, *others = trained("class token")
    found = {}
    for name, W_0 in base.weights.items():
        moves = [(own.weights[name] - W_0).double() for own in others]
        total = moves[0] + moves[1]
        used = moves[i].abs() >= 0.5 * (total - moves[i]).abs()
        found[name] = W_0.double() + torch.where(used, total, 0.0)
    return found


@pytest.mark.full
def test_every_task_has_its_network_again_of_the_stated_size(tmp_path: Path) -> None:
    result, sources = merged(tmp_path / "run")
    pixels = torch.rand(4, *sources[0].arch.input_size)
    plain = trained("class token")[0]
    mean, std = (torch.tensor(own)[:, None, None] for own in PIXELS)
    for i, source in enumerate(sources[1:]):
        found = load_compressed(tmp_path / "run", source.name)
        expected = network(plain).double()
        expected.load_state_dict(masked(sources, i))
        features = network(found)(pixels).double()
        torch.testing.assert_close(features, expected(((pixels - mean) / std).double()), rtol=1e-3, atol=1e-4)
        assert found.labels == source.labels
        assert source.head is not None
        assert found.head is not None
        assert torch.equal(found.head.weight, source.head.weight)
    n = sum(t.numel() for t in sources[0].weights.values())
    content = json.loads((tmp_path / "run/compressed/config.json").read_text())
    bits = 2 * -(-n // 8)
    assert content["parameters"] == n
    assert content["bytes"] == {"base.safetensors": 4 * n, "sum.safetensors": 4 * n, "masks.safetensors": bits}
    assert (tmp_path / "run/compressed/masks.safetensors").stat().st_size < bits + 400
    shares = [result.solution.facts[f"mask of s{i}"] for i in (0, 1)]
    assert all(0.3 < share < 0.9 for share in shares)
    certificates = json.loads((tmp_path / "run/evaluation.json").read_text())["certificates"]
    assert certificates["compressed"]["status"] == "holds"


@pytest.mark.full
def test_a_half_precision_run_keeps_half_the_bytes(tmp_path: Path) -> None:
    merged(tmp_path / "run", dtype="bfloat16")
    sizes = json.loads((tmp_path / "run/compressed/config.json").read_text())["bytes"]
    stored = load_file(tmp_path / "run/compressed/base.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert sizes["base.safetensors"] == 2 * sum(t.numel() for t in stored.values())
    load_compressed(tmp_path / "run", "s0")


def test_bits_are_packed_in_order_and_back() -> None:
    random = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(shape, generator=random) > 0.5 for name, shape in (("b", (3, 5)), ("a", (7,)))}
    content = packed(masks, ["a", "b"])
    assert (content.dtype, content.shape) == (torch.uint8, (3,))
    found = unpacked(content, {n: t.shape for n, t in masks.items()}, ["a", "b"])
    assert all(torch.equal(found[n], t) for n, t in masks.items())


@pytest.mark.full
def test_what_is_not_there_or_damaged_is_refused(tmp_path: Path) -> None:
    merged(tmp_path / "run")
    with pytest.raises(ConfigError, match="unknown task 's9'"):
        load_compressed(tmp_path / "run", "s9")
    with pytest.raises(SourceError) as error:
        load_compressed(tmp_path, "s0")
    assert str(error.value) == (
        f"{tmp_path}/compressed does not exist. A run with method=consensus method.masks=true writes it; pass its "
        "folder."
    )
    place = tmp_path / "run/compressed/masks.safetensors"
    masks = load_file(place)
    save_file({**masks, "s0/mask": masks["s0/mask"][:10].clone()}, place)
    with pytest.raises(SourceError) as error:
        load_compressed(tmp_path / "run", "s0")
    where = f"{tmp_path}/run/compressed"
    assert str(error.value) == f"{where}: its files do not belong together. Copy the folder again."
    assert load_source(tmp_path / "run/merged", head="s0").labels is not None


@pytest.mark.full
def test_without_masks_nothing_is_written_and_a_second_run_replaces_the_folder(tmp_path: Path) -> None:
    merged(tmp_path / "run")
    sources = [folded(own) for own in trained("class token")]
    merge(sources[1:], base=sources[0], method="consensus", output=tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run/compressed").exists()
