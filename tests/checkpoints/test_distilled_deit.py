"""DeiT with a head on its class token and one on its distillation token, of timm and of Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fsmerge_cli import load_merged, load_source, merge
from fsmerge_cli.architectures.vit.distilled import two_heads
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import MismatchError
from fsmerge_cli.methods import METHODS
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.identities import check_permuted_copy
from tests.support.merged_pairs import merged_pair
from tests.support.third_party import PIXELS, TINY, random_weights
from tests.support.vits import vit_source

NAME = "deit_tiny_distilled_patch16_224"
ARGS = {**TINY, "num_classes": 3}
LABELS = ["cat", "dog", "ox"]


def deit(seed: int, **args: Any) -> nn.Module:
    """timm's own model, with random weights."""
    return random_weights(timm.create_model(NAME, **{**ARGS, **args}), seed)


def stored(seed: int, folder: Path, **args: Any) -> nn.Module:
    """The same, as timm stores it in `folder`."""
    module = deit(seed, **args)
    folder.mkdir()
    own = {"mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"architecture": NAME, "model_args": {**TINY, **args}, "num_classes": 3, "pretrained_cfg": own}
    (folder / "config.json").write_text(json.dumps({**config, "label_names": LABELS}))
    save_file({n: t.contiguous() for n, t in module.state_dict().items()}, folder / "model.safetensors")
    return module


def pixels(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def hugging_face(seed: int) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    labels = {"id2label": dict(enumerate(LABELS))}
    config = transformers.DeiTConfig(**sizes, image_size=8, patch_size=4, **labels)
    return random_weights(transformers.DeiTForImageClassificationWithTeacher(config), seed)


def test_a_folder_and_a_module_of_timm_have_the_logits_of_timm(tmp_path: Path) -> None:
    module = stored(1, tmp_path / "a")
    for source, expected in (
        (load_source(tmp_path / "a"), module((pixels() - 0.5) / 0.25)),
        (load_source(module, mean=[0.0], std=[1.0]), module(pixels())),
    ):
        assert source.head is not None
        assert source.arch.features == 24
        torch.testing.assert_close(source.head(network(source)(pixels())), expected, rtol=1e-5, atol=1e-5)
    assert load_source(tmp_path / "a").labels == tuple(LABELS)


def test_the_features_are_those_of_both_tokens() -> None:
    module = deit(1)
    source = load_source(module, mean=[0.0], std=[1.0])
    tokens = module.forward_features(pixels())
    assert torch.equal(network(source)(pixels()), torch.cat([tokens[:, 0], tokens[:, 1]], 1))


@pytest.mark.full
def test_hugging_face_has_the_same_logits(tmp_path: Path) -> None:
    module = hugging_face(1)
    module.save_pretrained(tmp_path / "saved")
    torch.save(module.state_dict(), tmp_path / "state.pt")  # the names of version 5
    arch = {"family": "vit", "name": NAME, "args": {**TINY, "mlp_ratio": 20 / 12}, "eps": 1e-12}
    for spec in (
        SourceSpec("a", checkpoint=str(tmp_path / "saved"), **PIXELS),
        SourceSpec("a", checkpoint=str(tmp_path / "state.pt"), arch=arch, **PIXELS),
        SourceSpec("a", module=module, **PIXELS),
    ):
        found = load(spec)
        assert found.head is not None
        logits = found.head(network(found)(pixels()))
        torch.testing.assert_close(logits, module(pixels()).logits, rtol=1e-5, atol=1e-5)
        assert load(spec, headers=True).head is not None
    assert load(SourceSpec("a", checkpoint=str(tmp_path / "saved"), **PIXELS)).labels == tuple(LABELS)


@pytest.mark.full
@pytest.mark.parametrize("method", [name for name in sorted(METHODS) if not METHODS[name].uses_base])
def test_every_method_writes_what_timm_loads(tmp_path: Path, method: str) -> None:
    for seed, name in ((1, "a"), (2, "b")):
        stored(seed, tmp_path / name)
    result, images = merged_pair(tmp_path, method)
    with torch.no_grad():
        backbone = timm.create_model(f"local-dir:{tmp_path}/out/merged", pretrained=True).eval()
        features = backbone(images)
        torch.testing.assert_close(features, result.backbone()(images), rtol=1e-4, atol=1e-5)
        heads = load_file(tmp_path / "out" / "merged" / "heads.safetensors")
        logits = [features @ heads[f"{name}.weight"].T + heads[f"{name}.bias"] for name in "ab"]
        torch.testing.assert_close(load_merged(tmp_path / "out").logits(images, "b"), logits[1])
        whole = timm.create_model(f"local-dir:{tmp_path}/out/classifier", pretrained=True).eval()
        assert type(whole).__name__ == type(backbone).__name__ == "VisionTransformerDistilled"
        again = load(SourceSpec("b", checkpoint=str(tmp_path / "out"), head="b"))
        torch.testing.assert_close(network(again)(images), features, rtol=1e-4, atol=1e-5)
        temperatures = [head.temperature for head in result.heads.values()]
        joint = torch.cat([own / t for own, t in zip(logits, temperatures)], 1)
        shifts = torch.cat([torch.full((3,), head.shift) for head in result.heads.values()])
        torch.testing.assert_close(whole(images), joint + shifts, rtol=1e-3, atol=1e-4)


def test_a_file_without_a_config_shows_its_architecture(tmp_path: Path) -> None:
    module = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, depth=12).eval()
    torch.save(module.state_dict(), tmp_path / "x.pt")
    source = load_source(tmp_path / "x.pt")
    assert (source.arch.name, source.arch.features) == (NAME, 384)
    assert source.notes[0] == (
        "'source': its architecture is read from its tensors: timm's deit_tiny_distilled_patch16_224 (12 blocks "
        "of width 192, 16 x 16 patches, 224 x 224 pixels, 3 attention heads as in that model, the class and the "
        "distillation token as features); if that is wrong, pass models.sources.N.arch=..."
    )
    torch.save(deit(1).state_dict(), tmp_path / "y.pt")
    own = load_source(tmp_path / "y.pt", arch={"family": "vit", "args": {"num_heads": 3}}, mean=[0.0], std=[1.0])
    assert own.arch.name == "deit_base_distilled_patch16_224"
    assert own.head is not None
    torch.testing.assert_close(own.head(network(own)(pixels())), deit(1)(pixels()), rtol=1e-5, atol=1e-5)


def test_a_plain_deit_beside_it_is_refused_with_the_remedy(tmp_path: Path) -> None:
    plain = random_weights(timm.create_model("deit_tiny_patch16_224", **ARGS), 2)
    entries = [{"name": "two", "module": deit(1), **PIXELS}, {"name": "one", "module": plain, **PIXELS}]
    with pytest.raises(MismatchError) as error:
        merge(entries, method="average")
    assert error.value.reasons == (
        "distillation token: 'two' has True, 'one' has False",
        "positions: 'two' has 6, 'one' has 5",
    )
    with pytest.raises(MismatchError) as error:
        merge(entries, method={"name": "kd", "start": "aligned"}, data=pixels(8))
    assert error.value.reasons[-1] == (
        "positions: 'two' has 6, 'one' has 5; method=kd method.start=first trains a network like 'two' on the "
        "features of all"
    )


@pytest.mark.full
@pytest.mark.parametrize("first", ["two", "one"])
def test_a_plain_deit_beside_it_is_distilled(first: str) -> None:
    plain = random_weights(timm.create_model("deit_tiny_patch16_224", **ARGS), 2)
    entries = [{"name": "two", "module": deit(1), **PIXELS}, {"name": "one", "module": plain, **PIXELS}]
    entries = entries if first == "two" else entries[::-1]
    result = merge(entries, method={"name": "kd", "start": "first", "steps": 2, "batch_size": 8}, data=pixels(16))
    assert result.plan.arch.features == (24 if first == "two" else 12)
    assert {own.shape for own in result.solution.projectors} == {
        (size, result.plan.arch.features) for size in (12, 24)
    }


def test_a_file_without_its_second_head_is_refused(tmp_path: Path) -> None:
    for seed, name in ((1, "a"), (2, "b")):
        stored(seed, tmp_path / name)
    file = tmp_path / "a" / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if not n.startswith("head_dist.")}, file)
    with pytest.raises(MismatchError) as error:
        merge([{"name": name, "checkpoint": str(tmp_path / name)} for name in "ab"], method="average")
    assert error.value.reasons == ("the head of 'a' is [3, 12], should be [classes, 24]",)


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("activation_matching", {}),
        ("weight_matching", {}),
        ("zipit", {}),
        ("regmean", {}),
        ("pleas", {}),
        ("straight_through", {"steps": 1}),
        ("kd", {"start": "matched", "steps": 1, "lr": 1e-9, "matrix_lr": 1e-9}),
        ("fs_merge", {"start": "matched", "steps": 1, "lr": 1e-9, "matrix_lr": 1e-9}),
    ],
)
def test_a_permuted_copy_merges_to_the_network(method: str, options: dict[str, Any]) -> None:
    images = torch.rand(40, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    check_permuted_copy(METHODS[method](**options), vit_source("distillation token (DeiT)", 1), images)


@pytest.mark.parametrize(
    "options", [{"reg_tokens": 1}, {"no_embed_class": True}, {"fc_norm": True}], ids=lambda own: next(iter(own))
)
def test_what_the_class_of_timm_does_not_run_is_refused(options: dict[str, Any]) -> None:
    from fsmerge_cli.architectures.vit.family import VIT, parse

    arch = parse(NAME, {}, {"model_args": {**TINY, **options}}, "test")
    assert list(VIT.refuse(arch)) == [
        "a distillation token beside register tokens, no_embed_class or a norm after the pooling: timm's class "
        "does not run these"
    ]


def test_two_heads_have_the_mean_of_their_logits() -> None:
    random = torch.Generator().manual_seed(0)
    weight, bias, features = (torch.randn(*shape, generator=random) for shape in ((3, 8), (3,), (5, 8)))
    own = two_heads(weight, bias)
    first, second = features.chunk(2, 1)
    mean = (
        first @ own["head.weight"].T
        + own["head.bias"]
        + second @ own["head_dist.weight"].T
        + own["head_dist.bias"]
    ) / 2
    torch.testing.assert_close(mean, features @ weight.T + bias)
