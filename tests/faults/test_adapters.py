"""LoRA adapters are merged into the base that the entry names, by PEFT; what does not fit is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsmerge_cli import load_source
from fsmerge_cli.checkpoints import adapter as adapters
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import ConfigError, SourceError
from fsmerge_cli.runs.inputs import checkpoint_inputs
from tests.support.adapters import NAME, adapted, source, stated, write_base

peft = pytest.importorskip("peft")

KINDS: dict[str, dict[str, Any]] = {
    "a head of its own": {"target_modules": ["qkv", "fc1"], "modules_to_save": ["head"]},
    "the convolution too, DoRA": {
        "target_modules": ["qkv", "proj"],
        "modules_to_save": ["head"],
        "use_dora": True,
    },
    "one block, biases, another scale": {
        "target_modules": r".*blocks\.1.*(qkv|fc2)",
        "modules_to_save": ["head"],
        "use_rslora": True,
        "bias": "lora_only",
    },
    "all layers, own ranks": {
        "target_modules": "all-linear",
        "modules_to_save": ["head", "norm"],
        "bias": "all",
        "rank_pattern": {"blocks.0.attn.qkv": 1},
        "alpha_pattern": {"fc1": 9},
    },
}


@pytest.fixture
def place(adapted_place: Path) -> Path:
    return adapted_place


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_of_merge_and_unload(kind: str, tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    expected = adapted(tmp_path / "base", tmp_path / "adapter", **KINDS[kind]).merge_and_unload().state_dict()
    found = source(tmp_path)
    assert {*found.weights} == {name for name in expected if not name.startswith("head.")}
    for name, tensor in found.weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
    assert torch.equal(found.head.weight, expected["head.weight"])
    assert torch.equal(found.head.bias, expected["head.bias"])


def test_a_layer_is_the_base_plus_the_scaled_product(place: Path) -> None:
    base, own = load_file("base/model.safetensors"), load_file("adapter/adapter_model.safetensors")
    found = source(place)
    for block in (0, 1):
        for layer in ("attn.qkv", "mlp.fc1"):
            name = f"blocks.{block}.{layer}"
            down, up = (own[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
            exact = base[f"{name}.weight"].double() + 6 / 2 * up.double() @ down.double()
            torch.testing.assert_close(found.weights[f"{name}.weight"], exact.float(), rtol=0, atol=1e-6)
    assert torch.equal(found.weights["blocks.0.mlp.fc2.weight"], base["blocks.0.mlp.fc2.weight"])
    assert found.notes == (
        f"'a': the LoRA adapter of 4 layers was merged into {place}/base; from the adapter itself: head",
    )


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # between two libraries
def test_a_base_of_hugging_face_with_and_without_its_head(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 24}
    config = ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, num_labels=3)
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "base")
    names = [name for name, _ in model.named_modules() if name.endswith(("query", "q_proj"))]
    given = peft.LoraConfig(r=2, target_modules=names, modules_to_save=["classifier"])
    wrapped = peft.get_peft_model(model, given)
    for name, tensor in wrapped.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(tensor, std=0.3)
    wrapped.save_pretrained(tmp_path / "adapter")
    first = source(tmp_path)
    stored = load_file(tmp_path / "base/model.safetensors")
    shutil.copytree(tmp_path / "base", tmp_path / "trunk")
    trunk = {n.removeprefix("vit."): t for n, t in stored.items() if n.startswith("vit.")}
    save_file(trunk, tmp_path / "trunk/model.safetensors")
    second = source(tmp_path, base=str(tmp_path / "trunk"))
    merged = wrapped.merge_and_unload().eval()
    images = torch.rand(3, 1, 8, 8)
    for found in (first, second):
        network = found.family.adapt(found.family.build(found.arch).eval(), found.arch)
        network.load_state_dict(found.weights)
        logits = network(images) @ found.head.weight.T + found.head.bias
        torch.testing.assert_close(logits, merged(images).logits, rtol=0, atol=1e-5)


def test_a_base_may_hold_more_than_the_model_that_was_trained(place: Path) -> None:
    stated(target_modules=["qkv", "fc1", "dense"])()
    base = load_file("base/model.safetensors")
    save_file({**base, "pooler.dense.weight": torch.ones(12, 12)}, "base/model.safetensors")
    with pytest.raises(SourceError, match="there is a head and a pooler"):  # the adapter fits
        source(place)


def test_ranks_that_a_pattern_gives_to_all_layers(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    options = {"target_modules": ["qkv"], "r": 8, "rank_pattern": {"qkv": 2}}
    expected = adapted(tmp_path / "base", tmp_path / "adapter", **options).merge_and_unload()
    keys = {"base": str(tmp_path / "base"), "labels": list("uvwxy"), "mean": [0], "std": [1]}
    found = load_source(tmp_path / "adapter", name="a", **keys)
    name = "blocks.0.attn.qkv.weight"
    torch.testing.assert_close(found.weights[name], expected.state_dict()[name].float())


@pytest.mark.full
def test_a_finished_run_of_an_adapter_is_resumed_and_a_changed_base_is_seen(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = "{name:%s,checkpoint:adapter,base:base,labels:[x,y,z],mean:[0],std:[1]}"
    command = [
        "merge",
        f"+models.sources=[{entry % 'a'},{entry % 'b'}]",
        "method=average",
        "data=none",
        "data.images_per_task=20",
    ]
    command += ["output.dir=out", "resume=true", "--quiet"]
    assert main(command) == 0
    assert main(command) == 0
    base = load_file("base/model.safetensors")
    save_file({name: tensor + 1 for name, tensor in base.items()}, "base/model.safetensors")
    capsys.readouterr()
    assert main(command) == 2
    assert "source 'a' has changed since the finished run in " in capsys.readouterr().err


def test_what_is_read_beside_the_file_of_an_adapter_is_protected(place: Path) -> None:
    read = {
        Path(found.path).name for found in checkpoint_inputs("checkpoint", "adapter/adapter_model.safetensors")
    }
    assert read == {"adapter_model.safetensors", "adapter_config.json"}


def test_a_base_that_is_nothing_and_a_missing_library(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError) as error:
        source(place, base="gone/base")
    assert str(error.value) == (
        "source 'a': base=gone/base is no file or folder, and no timm name with weights "
        "(vit_base_patch16_224.augreg_in21k). Pass the model that the adapter was trained on."
    )
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError) as error:
        source(place)
    assert str(error.value) == (
        f"source 'a': {place}/adapter is an adapter of PEFT, which merges it: pip install peft"
    )


def test_a_base_without_an_adapter(place: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_source({"name": "a", "arch": NAME, "base": "base"})
    assert str(error.value) == (
        "source 'a' has a base but no checkpoint. Pass the folder of the adapter as its checkpoint, or remove the "
        "base."
    )


@pytest.mark.full
def test_check_reads_only_headers_and_merge_protects_the_base(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = (
        "models.sources=[{name: a, checkpoint: adapter, base: base, labels: [x, y, z], mean: [0], std: [1]}, "
        "{name: b, checkpoint: base, labels: [p, q, r, s, t], mean: [0], std: [1]}]"
    )
    assert main(["check", pair, "method=average", "data=none", "data.images_per_task=20"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    note = "note: 'a': the LoRA adapter of 4 layers was merged into base; from the adapter itself: head"
    assert note in out
    assert (
        main(["merge", pair, "method=average", "data=none", "data.images_per_task=20", "output.dir=base/out"]) == 2
    )
    assert capsys.readouterr().err == (
        f"fsmerge: error: output.dir={place}/base/out lies in base (source 'a'), which this run reads and never "
        "changes. Choose another output.dir=...\n"
    )
    assert not Path("base/out").exists()
