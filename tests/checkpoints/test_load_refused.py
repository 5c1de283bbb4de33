"""Checkpoints that are refused: missing, unsafe or damaged files, invalid config.json, unknown architectures."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from timm.models import list_models, list_pretrained

from fsmerge_cli.architectures import SPECS
from fsmerge_cli.architectures.vit.family import MERGED
from fsmerge_cli.checkpoints.base import base_entry
from fsmerge_cli.checkpoints.files import file_sha256, hub_config
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import ConfigError, SourceError, unknown
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.checkpoints import MLP_ARCH, refused, save, save_single


def test_a_source_without_a_checkpoint_is_refused() -> None:
    assert refused(SourceSpec("mine")) == (
        "source 'mine' has no checkpoint and no recipe. "
        "Pass a folder or a .safetensors file: models.sources.N.checkpoint=PATH"
    )


@pytest.mark.parametrize("name", ["gone", "gone.safetensors", "far/gone.pt"])
def test_a_path_that_does_not_exist_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert refused(SourceSpec("mine", checkpoint=str(path))) == (
        f"source 'mine': {path} does not exist. Check models.sources.N.checkpoint."
    )


def test_a_tag_that_timm_does_not_have_is_refused_with_those_of_the_model() -> None:
    tags = list_pretrained("deit3_huge_patch14_224.*")
    for use in (hub_config, base_entry):
        with pytest.raises(SourceError) as error:
            use("deit3_huge_patch14_224.nope")
        assert str(error.value) == unknown("timm name with weights", "deit3_huge_patch14_224.nope", tags)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    assert refused(SourceSpec("mine", arch=MLP_ARCH, checkpoint=str(tmp_path))) == (
        f"source 'mine': {tmp_path} holds no weights (model.safetensors, pytorch_model.bin, or another file of "
        "weights), and no merged/ of a run. Pass another folder, or a file."
    )


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.ckpt", "model"])
def test_a_pickle_runs_no_code(name: str, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    file = tmp_path / name
    for content in (pickle.dumps(Trap()), pickle.dumps({"fc0.weight": Trap()})):
        file.write_bytes(content)
        remedy = (
            "is damaged, or a pickle of another program, which may run code. Download or copy it again, or "
            "save its weights with torch.save(state_dict, 'weights.pt')."
        )
        assert (
            refused(SourceSpec("mine", arch=MLP_ARCH, checkpoint=str(file))) == f"source 'mine': {file} {remedy}"
        )
        assert not (tmp_path / "executed").exists()
        pickle.loads(content)
        assert (tmp_path / "executed").exists()  # the trap works
        (tmp_path / "executed").unlink()


@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_weights_are_read_from_a_legacy_file(
    nested: str | None, zipped: bool, source: Source, tmp_path: Path
) -> None:
    weights = dict(source.weights)
    content = {nested: weights, "epoch": 3} if nested else weights
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    found = load(SourceSpec("mine", arch=MLP_ARCH, checkpoint=str(tmp_path / "model.pt")))
    assert found.weights.keys() == source.weights.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in source.weights.items())
    assert found.sha256 == file_sha256(tmp_path / "model.pt")


def test_a_torchscript_program_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "ViT-B-16.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("clip/constants.pkl", b"")
    assert refused(SourceSpec("mine", arch=MLP_ARCH, checkpoint=str(file))) == (
        f"source 'mine': {file} is a TorchScript archive (OpenAI publishes CLIP in this format), which may run "
        "code and is not opened. Use the same weights from timm or open_clip, or, if you trust it, save its "
        "weights once: torch.save(torch.jit.load(FILE, 'cpu').state_dict(), 'weights.pt')."
    )


def test_an_older_torch_opens_no_pickle(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.pt"
    torch.save(dict(source.weights), file)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert refused(SourceSpec("mine", arch=MLP_ARCH, checkpoint=str(file))) == (
        f"source 'mine': {file} is a pickle, which torch 2.9.1+cpu cannot open safely. Install torch 2.10 or "
        "later, "
        "or if you trust it, convert it once with safetensors.torch.save_file(state_dict, 'model.safetensors')."
    )


@pytest.mark.parametrize("kept", [5, 200])
@pytest.mark.parametrize("name", ["model.safetensors", "heads.safetensors"])
def test_a_truncated_file_is_refused(name: str, kept: int, source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path, source, "task")
    file = folder / name
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(SafetensorError) as reason:
        safe_open(file, framework="pt")
    assert refused(SourceSpec("mine", checkpoint=str(folder))) == (
        f"source 'mine': {folder}: {name} cannot be read: {reason.value}. Copy or download the file again."
    )


def test_a_dict_that_contains_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"weight": torch.ones(2)}
    content["again"] = content
    torch.save(content, tmp_path / "x.pt")
    assert refused(SourceSpec("a", checkpoint=str(tmp_path / "x.pt"))) == (
        f"source 'a': {tmp_path}/x.pt contains a dict that contains itself. Save the state dict alone."
    )


def test_weights_that_are_not_finite_are_refused(source: Source, tmp_path: Path) -> None:
    broken = source.weights["fc1.weight"].clone()
    broken[2, 3] = float("nan")
    file = save_single(tmp_path / "model.safetensors", source, **{"fc1.weight": broken})
    assert refused(SourceSpec("mine", arch=MLP_ARCH, checkpoint=str(file))) == (
        f"source 'mine': {file}: fc1.weight contains values that are not finite. Train or download the model "
        "again."
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "{",
            "config.json cannot be read: it is not valid JSON (line 1, column 2: Expecting property name enclosed "
            "in double quotes). Repair it, or copy it again.",
        ),
        ("", "config.json cannot be read: it is empty. Repair it, or copy it again."),
        (
            "[]",
            "config.json cannot be read: it should hold keys and values, and holds a list. Repair it, or copy it "
            "again.",
        ),
        (
            "3",
            "config.json cannot be read: it should hold keys and values, and holds a single value. Repair it, or "
            "copy it again.",
        ),
        (
            '{"architecture": "mlp", "model_args": [1]}',
            "model_args in config.json should be an object, it is [1].",
        ),
        (
            '{"architecture": "mlp", "pretrained_cfg": "none"}',
            "pretrained_cfg in config.json should be an object, it is 'none'.",
        ),
        (
            '{"pretrained_cfg": {"input_size": [32, 32]}}',
            "input_size in config.json should be [channels, height, width], it is [32, 32].",
        ),
        (
            '{"pretrained_cfg": {"input_size": 32}}',
            "input_size in config.json should be [channels, height, width], it is 32.",
        ),
        ('{"pretrained_cfg": {"mean": 0.5}}', "mean in config.json should be a list of numbers, it is 0.5."),
        ('{"pretrained_cfg": {"std": ["a"]}}', "std in config.json should be a list of numbers, it is ['a']."),
    ],
)
def test_a_broken_config_is_refused(text: str, complaint: str, source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path, source, "task")
    (folder / "config.json").write_text(text)
    spec = SourceSpec("mine", arch=None if "mlp" in text else MLP_ARCH, checkpoint=str(folder))
    assert refused(spec) == f"source 'mine': {folder}: {complaint}"


def test_a_config_that_is_not_text_is_refused(source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path, source, "task")
    (folder / "config.json").write_bytes(b"\xff\xfe")
    assert refused(SourceSpec("mine", checkpoint=str(folder))) == (
        f"source 'mine': {folder}: config.json cannot be read: it is UTF-16 text. Save it as UTF-8."
    )


def test_an_architecture_has_to_be_given_and_known(source: Source, tmp_path: Path) -> None:
    file = save_single(tmp_path / "model.safetensors", source)
    where = f"source 'mine': {file}"
    assert refused(SourceSpec("mine", checkpoint=str(file))) == (
        f"{where} does not specify its architecture. Put a config.json next to the weights or pass "
        "models.sources.N.arch=..., a timm name (vit_base_patch16_224) or {family: ..., ...} "
        f"({', '.join(sorted(SPECS))})."
    )
    glued = {"family:mlp": None, "widths:[6]": None}  # YAML without spaces after its colons
    assert refused(SourceSpec("mine", arch=glued, checkpoint=str(file))) == (
        f"{where}: arch={glued} has no family. Pass arch={{family: ..., ...}} ({', '.join(sorted(SPECS))}), with "
        "a space after every colon in a YAML file."
    )
    known = ", ".join(sorted(SPECS))
    assert refused(SourceSpec("mine", arch={**MLP_ARCH, "family": "mpl"}, checkpoint=str(file))) == (
        f"{where}: unknown arch.family 'mpl'. Did you mean 'mlp'? Available: {known}."
    )
    (tmp_path / "config.json").write_text('{"architecture": "resnet999_of_somebody"}')
    assert refused(SourceSpec("mine", checkpoint=str(file))) == (
        f"{where}: arch: {unknown('timm architecture', 'resnet999_of_somebody', list_models(MERGED))}"
    )


def test_options_of_the_architecture_are_checked(source: Source, tmp_path: Path) -> None:
    file = save_single(tmp_path / "model.safetensors", source)
    spec = SourceSpec("mine", arch={**MLP_ARCH, "activation": "sin", "width": 3}, checkpoint=str(file))
    assert refused(spec, ConfigError) == (
        f"unknown key in source 'mine': {file}: arch 'width'. Did you mean 'widths'? "
        "Available: activation, bias, input_size, norm, widths.\n"
        f"source 'mine': {file}: arch.activation: should be 'relu', 'gelu', 'tanh' or 'silu', got 'sin'."
    )
