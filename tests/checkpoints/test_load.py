from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models import list_models

from fsmerge_cli.architectures import SPECS
from fsmerge_cli.architectures.mlp import MLPArch
from fsmerge_cli.checkpoints.files import file_sha256
from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.preprocessing import fold_normalisation
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.errors import ConfigError, MismatchError, SourceError, unknown
from fsmerge_cli.methods import Problem
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.sources import mlp_source, random_images
from tests.support.vits import vit_source

ARCH: dict[str, Any] = {"family": "mlp", "input_size": (1, 4, 4), "widths": (6, 5)}


@pytest.fixture
def source() -> Source:
    return mlp_source("task", [6, 5], 3)


def save(folder: Path, source: Source, *heads: str) -> Path:
    assert source.head is not None
    stored = {
        name: Head(source.head.weight + n, source.head.bias, tuple(f"{name}-{x}" for x in source.head.labels))
        for n, name in enumerate(heads)
    }
    write_model(folder, model_config(source.family, source.arch), source.weights, *head_tensors(stored))
    return folder


def save_single(file: Path, source: Source, **extra: torch.Tensor) -> Path:
    assert source.head is not None
    assert source.head.bias is not None
    head = {"head.weight": source.head.weight, "head.bias": source.head.bias}
    save_file({**source.weights, **head, **extra}, file)
    return file


def refused(spec: SourceSpec, kind: type[Exception] = SourceError) -> str:
    with pytest.raises(kind) as error:
        load(spec)
    return str(error.value)


def test_a_folder_is_read_as_it_was_written(source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", source, "task")
    found = load(SourceSpec("mine", checkpoint=str(folder)))
    assert found.name == "mine"
    assert found.family is SPECS["mlp"]
    assert found.arch == source.arch
    assert found.weights.keys() == source.weights.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in source.weights.items())
    assert found.head is not None
    assert source.head is not None
    assert source.head.bias is not None
    assert found.head.bias is not None
    assert torch.equal(found.head.weight, source.head.weight)
    assert torch.equal(found.head.bias, source.head.bias)
    assert found.labels == ("task-task-0", "task-task-1", "task-task-2")
    assert found.origin == str(folder)
    assert found.sha256 == file_sha256(folder / "model.safetensors")


def mapped(tensor: torch.Tensor, file: Path) -> bool:
    """Whether the tensor's memory is a mapping of the file, by the system's own list."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return line.endswith(str(file))
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_weights_stay_in_the_mapped_file_until_they_are_computed_with(source: Source, tmp_path: Path) -> None:
    file = save(tmp_path / "model", source, "task") / "model.safetensors"
    found = load(SourceSpec("mine", checkpoint=str(file.parent), mean=(0.5,), std=(0.25,)))
    copied = {name for name, tensor in found.weights.items() if not mapped(tensor, file)}
    assert copied == {"fc0.weight", "fc0.bias"}  # what the normalisation changes
    place = {name: tensor.data_ptr() for name, tensor in found.weights.items()}
    plan = compile_plan([found, replace(found, name="twin")])
    (weights, _) = Problem(plan, [found, found], random_images(2, 1)).weights()
    for state in (network(found).state_dict(), weights):
        assert {name: tensor.data_ptr() for name, tensor in state.items()} == place


def test_a_folder_without_heads_is_a_source_without_a_head(source: Source, tmp_path: Path) -> None:
    found = load(SourceSpec("mine", checkpoint=str(save(tmp_path, source))))
    assert (found.head, found.labels) == (None, None)


def test_a_single_file_needs_only_the_arch_and_brings_its_head(source: Source, tmp_path: Path) -> None:
    file = save_single(tmp_path / "trained.safetensors", source)
    found = load(SourceSpec("mine", arch=ARCH, checkpoint=str(file), labels=("x", "y", "z")))
    assert found.arch == MLPArch((1, 4, 4), (6, 5))
    assert found.weights.keys() == source.weights.keys()
    assert found.head is not None
    assert source.head is not None
    assert torch.equal(found.head.weight, source.head.weight)
    assert found.labels == ("x", "y", "z")
    assert (found.origin, found.sha256) == (str(file), file_sha256(file))


def test_a_single_file_takes_the_arch_of_the_config_beside_it(source: Source, tmp_path: Path) -> None:
    file = save_single(tmp_path / "trained.safetensors", source)
    (tmp_path / "config.json").write_text(json.dumps(model_config(source.family, source.arch)))
    assert load(SourceSpec("mine", checkpoint=str(file))).arch == source.arch


def test_labels_that_nobody_gave_are_numbers(source: Source, tmp_path: Path) -> None:
    file = save_single(tmp_path / "trained.safetensors", source)
    assert load(SourceSpec("mine", arch=ARCH, checkpoint=str(file))).labels == ("0", "1", "2")


def test_an_arch_that_is_given_wins_over_the_config(source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path, source, "task")
    found = load(SourceSpec("mine", arch={**ARCH, "activation": "tanh"}, checkpoint=str(folder)))
    assert found.arch == replace(source.arch, activation="tanh")


def test_of_several_heads_the_chosen_one_is_taken_with_its_labels(source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path, source, "birds", "cars")
    assert source.head is not None
    for number, name in enumerate(("birds", "cars")):
        found = load(SourceSpec("mine", checkpoint=str(folder), head=name))
        assert found.head is not None
        assert torch.equal(found.head.weight, source.head.weight + number)
        assert found.labels == tuple(f"{name}-task-{c}" for c in range(3))
    given = load(SourceSpec("mine", checkpoint=str(folder), head="cars", labels=("x", "y", "z")))
    assert given.labels == ("x", "y", "z")


def test_of_several_heads_one_has_to_be_chosen(source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path, source, "cars", "birds")
    assert refused(SourceSpec("mine", checkpoint=str(folder))) == (
        f"source 'mine': {folder} has 2 heads: birds, cars. "
        "Say which one this task uses: models.sources.N.head=NAME"
    )
    assert refused(SourceSpec("mine", checkpoint=str(folder), head="bird")) == (
        f"source 'mine': {folder}: unknown head 'bird'. Did you mean 'birds'? Available: birds, cars."
    )


def test_a_head_of_one_number_is_refused(source: Source, tmp_path: Path) -> None:
    save(tmp_path, source)
    save_file({"x.weight": torch.tensor(1.0)}, tmp_path / "heads.safetensors")
    assert refused(SourceSpec("a", checkpoint=str(tmp_path))) == (
        f"source 'a': {tmp_path}: x.weight is one number and no classifier [classes, features]."
    )


def test_a_head_that_is_not_there_is_refused(source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path, source)
    assert refused(SourceSpec("mine", checkpoint=str(folder), head="task")) == (
        f"source 'mine': {folder}: unknown head 'task'. Available: none."
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read_as_fp32(dtype: torch.dtype, source: Source, tmp_path: Path) -> None:
    assert source.head is not None
    weights = {name: tensor.to(dtype) for name, tensor in source.weights.items()}
    save_file({**weights, "head.weight": source.head.weight.to(dtype)}, tmp_path / "half.safetensors")
    found = load(SourceSpec("mine", arch=ARCH, checkpoint=str(tmp_path / "half.safetensors")))
    assert found.head is not None
    assert {tensor.dtype for tensor in (*found.weights.values(), found.head.weight)} == {torch.float32}
    assert all(torch.equal(found.weights[name], tensor.float()) for name, tensor in weights.items())
    assert found.head(network(found)(torch.rand(2, 1, 4, 4))).shape == (2, 3)


def test_counters_stay_whole_numbers(tmp_path: Path) -> None:
    source = mlp_source("task", [6, 5], 3, norm="batch")
    found = load(SourceSpec("mine", checkpoint=str(save(tmp_path, source, "task"))))
    assert found.weights["norm0.num_batches_tracked"].dtype == torch.int64


# Normalisation


@pytest.mark.parametrize(("mean", "std"), [((0.3,), (0.2,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
@pytest.mark.parametrize("stated", ["in the options", "in the checkpoint"])
def test_normalisation_is_folded_into_the_first_layer(
    mean: tuple[float, ...], std: tuple[float, ...], stated: str, tmp_path: Path
) -> None:
    source = mlp_source("task", [6, 5], 3, input_size=(3, 4, 4))
    folder = save(tmp_path, source, "task")
    spec = SourceSpec("mine", checkpoint=str(folder))
    if stated == "in the options":
        spec = replace(spec, mean=mean, std=std)
    else:
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"] |= {"mean": list(mean), "std": list(std)}
        (folder / "config.json").write_text(json.dumps(config))
    found = load(spec)
    pixels = torch.rand(7, 3, 4, 4)
    shape = (1, -1, 1, 1)
    normalised = (pixels - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(shape)
    torch.testing.assert_close(network(found)(pixels), network(source)(normalised))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_the_folded_normalisation_is_exact_in_fp64(channels: int, shared: bool) -> None:
    source = mlp_source("task", [6, 5], 3, input_size=(channels, 4, 4), activation="tanh")
    weights = {name: tensor.double() for name, tensor in source.weights.items()}
    count = 1 if shared else channels
    mean, std = (0.485, 0.456, 0.406)[:count], (0.229, 0.224, 0.225)[:count]
    folded = fold_normalisation(source.family, source.arch, weights, mean, std, "here")
    assert folded.keys() == weights.keys()
    assert all(folded[name] is weights[name] for name in weights if not name.startswith("fc0"))
    pixels = torch.rand(7, channels, 4, 4, dtype=torch.float64)
    shape = (1, -1, 1, 1)
    normalised = (pixels - torch.tensor(mean, dtype=torch.float64).reshape(shape)) / torch.tensor(
        std, dtype=torch.float64
    ).reshape(shape)
    direct = network(replace(source, weights=folded))(pixels)
    explicit = network(replace(source, weights=weights))(normalised)
    torch.testing.assert_close(direct, explicit, rtol=1e-12, atol=1e-13)
    assert not torch.allclose(direct, network(replace(source, weights=weights))(pixels), atol=1e-3)


def test_no_normalisation_changes_no_bit(source: Source) -> None:
    folded = fold_normalisation(source.family, source.arch, source.weights, (0.0,), (1.0,), "here")
    assert all(folded[name] is tensor for name, tensor in source.weights.items())


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5, 0.5), (1.0,)), ((0.5,), (1.0, 1.0)), ((0.5,), (0.0,)), ((0.5,) * 4, (1.0,) * 4)]
)
def test_mean_and_std_need_one_value_per_channel(
    mean: tuple[float, ...], std: tuple[float, ...], tmp_path: Path
) -> None:
    folder = save(tmp_path, mlp_source("task", [6, 5], 3, input_size=(3, 4, 4)), "task")
    assert refused(SourceSpec("mine", checkpoint=str(folder), mean=mean, std=std)) == (
        f"source 'mine': {folder}: mean {list(mean)} and std {list(std)} need 1 or 3 values each, "
        "std none of them 0."
    )


@pytest.mark.parametrize("shape", [(6, 16), (6, 4), (6,), (), (0, 48)])
def test_a_first_layer_of_another_shape_is_named_by_the_plan(shape: tuple[int, ...], tmp_path: Path) -> None:
    arch = {"family": "mlp", "input_size": [3, 4, 4], "widths": [6]}
    weights = {"fc0.weight": torch.ones(shape), "fc0.bias": torch.ones(6)}
    save_file(weights, tmp_path / "x.safetensors")
    spec = SourceSpec("a", arch=arch, checkpoint=str(tmp_path / "x.safetensors"), mean=(0.5,), std=(0.25,))
    with pytest.raises(MismatchError) as error:
        compile_plan([load(spec), load(replace(spec, name="b"))])
    assert "fc0.weight" in str(error.value)


@pytest.mark.parametrize("other", ["patch_embed.proj.bias", "pos_embed"])
def test_a_shift_is_not_folded_into_what_has_another_shape(other: str) -> None:
    source = vit_source("class token", 1)
    weights = {**source.weights, other: torch.ones(1, 5, 7)}
    if other == "pos_embed":
        del weights["patch_embed.proj.bias"]
    folded = fold_normalisation(source.family, source.arch, weights, (0.5,), (0.25,), "here")
    assert torch.equal(folded[other], weights[other])


def test_a_mean_needs_a_bias_to_be_folded_into(tmp_path: Path) -> None:
    source = mlp_source("task", [6, 5], 3, bias=False)
    folder = save(tmp_path, source, "task")
    assert refused(SourceSpec("mine", checkpoint=str(folder), mean=(0.5,))) == (
        f"source 'mine': {folder}: mean [0.5] cannot be folded into fc0, which has no bias. "
        "Pass images that are already centred and models.sources.N.mean=[0.0]."
    )
    scaled = load(SourceSpec("mine", checkpoint=str(folder), std=(0.5,)))
    assert torch.equal(scaled.weights["fc0.weight"], source.weights["fc0.weight"] * 2)


# What cannot be read


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


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    assert refused(SourceSpec("mine", arch=ARCH, checkpoint=str(tmp_path))) == (
        f"source 'mine': {tmp_path}: there is no file model.safetensors. Check the path of the checkpoint."
    )


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.ckpt", "model"])
def test_a_pickle_runs_no_code(name: str, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    file = tmp_path / name
    for content in (pickle.dumps(Trap()), pickle.dumps({"fc0.weight": Trap()})):
        file.write_bytes(content)
        remedy = (
            "is damaged, or not a pickle of plain weights, which may run code and is not opened. Download it "
            "again, or convert it once, where you trust it, "
            "with safetensors.torch.save_file(state_dict, 'model.safetensors')."
        )
        if name == "model":
            remedy = (
                "is not a .safetensors file. Pass one, a folder with model.safetensors, or a state dict as .pt, "
                ".pth, .bin, .ckpt."
            )
        assert refused(SourceSpec("mine", arch=ARCH, checkpoint=str(file))) == f"source 'mine': {file} {remedy}"
        assert not (tmp_path / "sprung").exists()
        pickle.loads(content)
        assert (tmp_path / "sprung").exists()  # the trap is one
        (tmp_path / "sprung").unlink()


@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_weights_are_read_from_a_legacy_file(
    nested: str | None, zipped: bool, source: Source, tmp_path: Path
) -> None:
    weights = dict(source.weights)
    content = {nested: weights, "epoch": 3} if nested else weights
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    found = load(SourceSpec("mine", arch=ARCH, checkpoint=str(tmp_path / "model.pt")))
    assert found.weights.keys() == source.weights.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in source.weights.items())
    assert found.sha256 == file_sha256(tmp_path / "model.pt")


def test_a_torchscript_program_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "ViT-B-16.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("clip/constants.pkl", b"")
    assert refused(SourceSpec("mine", arch=ARCH, checkpoint=str(file))) == (
        f"source 'mine': {file} is a TorchScript program, as OpenAI publishes CLIP, and is not opened: it may run "
        "code. Take the same weights from timm or open_clip, or convert it once, where you trust it, "
        "with safetensors.torch.save_file(state_dict, 'model.safetensors')."
    )


def test_an_older_torch_opens_no_pickle(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.pt"
    torch.save(dict(source.weights), file)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert refused(SourceSpec("mine", arch=ARCH, checkpoint=str(file))) == (
        f"source 'mine': {file} is a pickle, which torch 2.9.1+cpu cannot open safely. Take torch 2.10 or later, "
        "or convert it once, where you trust it, "
        "with safetensors.torch.save_file(state_dict, 'model.safetensors')."
    )


@pytest.mark.parametrize("kept", [0, 5, 200])
@pytest.mark.parametrize("name", ["model.safetensors", "heads.safetensors"])
def test_a_truncated_file_is_refused(name: str, kept: int, source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path, source, "task")
    file = folder / name
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(SafetensorError) as reason:
        safe_open(file, framework="pt")
    assert refused(SourceSpec("mine", checkpoint=str(folder))) == (
        f"source 'mine': {folder} cannot be read: {reason.value}. Copy or download the file again."
    )


def test_a_dict_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"weight": torch.ones(2)}
    content["again"] = content
    torch.save(content, tmp_path / "x.pt")
    assert refused(SourceSpec("a", checkpoint=str(tmp_path / "x.pt"))).startswith(
        f"source 'a': {tmp_path}/x.pt is damaged, or not a pickle of plain weights, which may run code and is not "
        "opened. Download it again, or "
    )


def test_weights_that_are_not_finite_are_refused(source: Source, tmp_path: Path) -> None:
    broken = source.weights["fc1.weight"].clone()
    broken[2, 3] = float("nan")
    file = save_single(tmp_path / "model.safetensors", source, **{"fc1.weight": broken})
    assert refused(SourceSpec("mine", arch=ARCH, checkpoint=str(file))) == (
        f"source 'mine': {file}: fc1.weight holds values that are not finite. Train or download the model again."
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "{",
            "config.json is not valid JSON (Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)).",
        ),
        ("", "config.json is not valid JSON (Expecting value: line 1 column 1 (char 0))."),
        ("[]", "config.json should hold an object, it holds list."),
        ("3", "config.json should hold an object, it holds int."),
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
    spec = SourceSpec("mine", arch=None if "mlp" in text else ARCH, checkpoint=str(folder))
    assert refused(spec) == f"source 'mine': {folder}: {complaint}"


def test_a_config_that_is_not_text_is_refused(source: Source, tmp_path: Path) -> None:
    folder = save(tmp_path, source, "task")
    (folder / "config.json").write_bytes(b"\xff\xfe")
    assert refused(SourceSpec("mine", checkpoint=str(folder))) == (
        f"source 'mine': {folder}: config.json is not valid JSON "
        "('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)."
    )


def test_an_architecture_has_to_be_said_and_known(source: Source, tmp_path: Path) -> None:
    file = save_single(tmp_path / "model.safetensors", source)
    where = f"source 'mine': {file}"
    assert refused(SourceSpec("mine", checkpoint=str(file))) == (
        f"{where} says no architecture. Put a config.json beside the weights or pass "
        "models.sources.N.arch=..., a timm name (vit_base_patch16_224) or {family: ..., ...} "
        f"({', '.join(sorted(SPECS))})."
    )
    glued = {"family:mlp": None, "widths:[6]": None}  # YAML without spaces after its colons
    assert refused(SourceSpec("mine", arch=glued, checkpoint=str(file))) == (
        f"{where}: arch={glued} says no family. Pass arch={{family: ..., ...}} ({', '.join(sorted(SPECS))}), in a "
        "file with a space after every colon."
    )
    known = ", ".join(sorted(SPECS))
    assert refused(SourceSpec("mine", arch={**ARCH, "family": "mpl"}, checkpoint=str(file))) == (
        f"{where}: unknown arch.family 'mpl'. Did you mean 'mlp'? Available: {known}."
    )
    (tmp_path / "config.json").write_text('{"architecture": "resnet999_of_somebody"}')
    assert refused(SourceSpec("mine", checkpoint=str(file))) == (
        f"{where}: arch: {unknown('timm architecture', 'resnet999_of_somebody', list_models('vit_*'))}"
    )


def test_options_of_the_architecture_are_checked(source: Source, tmp_path: Path) -> None:
    file = save_single(tmp_path / "model.safetensors", source)
    spec = SourceSpec("mine", arch={**ARCH, "activation": "sin", "width": 3}, checkpoint=str(file))
    assert refused(spec, ConfigError) == (
        f"unknown key in source 'mine': {file}: arch 'width'. Did you mean 'widths'? "
        "Available: activation, bias, input_size, norm, widths.\n"
        f"source 'mine': {file}: arch.activation: should be 'relu', 'gelu', 'tanh' or 'silu', got 'sin'."
    )
