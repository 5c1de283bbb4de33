"""Sources of the quality benchmark: training, storage and scrambling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fsmerge_cli.alignment.matching import aligned
from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.methods import Problem
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from scripts.benchmark import sources
from tests.support.sources import random_images
from tests.support.vits import vit_source


def test_sources_with_a_shared_initialisation_are_fine_tuned_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All sources are stored as folders that contain their labels; a second call does not train."""
    finetuned: list[tuple[str, str]] = []
    monkeypatch.setattr(sources, "SOURCES", tmp_path / "stored")
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(sources, "ensure_trained", lambda spec, progress: replace(spec, checkpoint="trained"))
    monkeypatch.setattr(
        sources,
        "finetune",
        lambda entry, output, **options: finetuned.append((entry["checkpoint"], entry["task"])),
    )

    def store(spec: SourceSpec, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()

    monkeypatch.setattr(sources, "store", store)
    for _ in range(2):
        folder = sources.prepare(["hebrew_armenian_of_lower"])
    entries = yaml.safe_load((folder / "models/quality_hebrew_armenian_of_lower.yaml").read_text())["sources"]
    assert [entry["name"] for entry in entries] == ["hebrew", "armenian"]
    assert [set(entry) for entry in entries] == [{"name", "arch", "checkpoint"}] * 2
    folders = [str(tmp_path / "stored" / f"{name}_of_lower_96") for name in ("hebrew", "armenian")]
    assert [entry["checkpoint"] for entry in entries] == folders
    assert finetuned == [(str(tmp_path / "stored/lower_96"), name) for name in ("hebrew", "armenian")]


def test_a_source_is_stored_in_half_precision(tmp_path: Path) -> None:
    source = vit_source("class token", 1)
    sources._write(tmp_path / "float32", source, source.weights)
    sources.store(SourceSpec(source.name, checkpoint=str(tmp_path / "float32")), tmp_path / "float16")
    stored = load_file(tmp_path / "float16/model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    loaded = load(SourceSpec(source.name, checkpoint=str(tmp_path / "float16")))
    assert source.head is not None
    assert loaded.head is not None
    assert loaded.head.labels == source.head.labels
    torch.testing.assert_close(loaded.weights, source.weights, atol=1e-3, rtol=1e-3)


def test_scrambled_weights_compute_the_same_function() -> None:
    source = vit_source("class token", 1)
    weights = sources.scramble(source, generator(0, "x"))
    images = torch.rand(5, *source.arch.input_size, generator=torch.Generator().manual_seed(0))
    before, after = network(source)(images), network(replace(source, weights=weights))(images)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    changed = [n for n, t in weights.items() if not torch.allclose(t, source.weights[n], atol=1e-3)]
    assert {"blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight", "blocks.0.mlp.fc1.weight"} <= set(changed)
    assert not [n for n in changed if "norm" in n or n.startswith("patch_embed")]


def test_matching_undoes_permutations_of_hidden_units_and_heads() -> None:
    """Only the permutations of the scrambling; matching cannot undo rotations inside a head."""
    source = replace(vit_source("class token", 1), name="a")
    plan = compile_plan([source, replace(source, name="b")])
    shuffled = permute(plan, source.weights, random_permutations(plan, 1, generator(0, "order")))
    pair = [source, replace(source, name="b", weights=shuffled)]
    images = random_images(2, 24, source.arch.input_size)
    found = aligned(Problem(compile_plan(pair), pair, images), "activations")
    for name, tensor in source.weights.items():
        torch.testing.assert_close(found.problem.sources[1].weights[name], tensor)
