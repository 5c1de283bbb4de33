from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from fsmerge_cli import merge
from fsmerge_cli.architectures import SPECS
from fsmerge_cli.cli.front_sweeper import register
from fsmerge_cli.cli.hydra_version import HYDRA_DEFAULTS
from fsmerge_cli.cli.keys import TOP, Evaluation, Output
from fsmerge_cli.cli.run_dirs import default_folder
from fsmerge_cli.common import presets
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.options import build, choose
from fsmerge_cli.data import DATASETS
from fsmerge_cli.methods import METHODS
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.paths import REPOSITORY

CONFIGS = REPOSITORY / "configs"
REGISTRIES: dict[str, Mapping[str, type[Any]]] = {"method": METHODS, "data": DATASETS}
OPTIONS = [(group, name) for group in presets.GROUPS for name in presets.names(group)]


@cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("fsmerge_cli.configs", **HYDRA_DEFAULTS):
        return compose("merge", overrides=list(overrides))


def plain(config: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def listed(value: Any) -> Any:
    return [listed(entry) for entry in value] if isinstance(value, tuple) else value


def defaults(cls: type[Any]) -> dict[str, Any]:
    return {key: listed(value) for key, value in asdict(cls()).items()}


@pytest.mark.parametrize(("group", "key"), [(group, key) for group in REGISTRIES for key in REGISTRIES[group]])
def test_the_yaml_of_a_registered_key_lists_every_field_with_its_default(group: str, key: str) -> None:
    values = yaml.safe_load((CONFIGS / group / f"{key}.yaml").read_text())
    assert values == defaults(REGISTRIES[group][key])
    assert values["name"] == key


@pytest.mark.parametrize(("group", "key"), [(group, key) for group in REGISTRIES for key in REGISTRIES[group]])
def test_a_registered_key_is_the_name_of_its_module(group: str, key: str) -> None:
    module = inspect.getmodule(REGISTRIES[group][key])
    assert module is not None
    assert module.__name__.rpartition(".")[2] == key


@pytest.mark.parametrize("group", REGISTRIES)
def test_every_other_yaml_is_a_preset_of_a_registered_key(group: str) -> None:
    files = sorted((CONFIGS / group).glob("*.yaml"))
    assert {file.stem for file in files} >= set(REGISTRIES[group])
    for file in files:
        values = yaml.safe_load(file.read_text())
        known = {field.name for field in fields(REGISTRIES[group][values["name"]])}
        assert set(values) <= known


def test_every_hardware_yaml_lists_every_field_and_auto_has_the_defaults() -> None:
    names = {field.name for field in fields(Hardware)}
    files = sorted((CONFIGS / "hardware").glob("*.yaml"))
    assert {file.stem for file in files} == {"auto", "cpu", "gpu", "multi_gpu", "slurm"}
    assert all(set(presets.load("hardware", file.stem)) == names for file in files)
    assert yaml.safe_load((CONFIGS / "hardware/auto.yaml").read_text()) == defaults(Hardware)


@pytest.mark.full
@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_composes_instantiates_and_reads_the_same_without_hydra(group: str, name: str) -> None:
    if name == "slurm":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `slurm` is not installed")
    config = composed(f"{'+' if group == 'models' else ''}{group}={name}")
    values = plain(config)
    assert set(values) <= set(TOP)
    assert values[group] == presets.load(group, name)
    if group == "hardware":
        assert asdict(build(Hardware, values[group], group)) == values[group]
    elif group == "models":
        specs = [build(SourceSpec, entry, group) for entry in values[group]["sources"]]
        assert len({spec.name for spec in specs}) == len(specs) >= 2
        for spec in specs:
            assert spec.arch is not None or spec.checkpoint is not None
            if isinstance(spec.arch, dict) and "family" in spec.arch:  # otherwise a timm name
                arch = dict(spec.arch)
                build(SPECS[arch.pop("family")].arch, arch, "arch")
    else:
        chosen = choose(REGISTRIES[group], values[group], group)
        assert chosen.name == values[group]["name"]
        assert {key: listed(asdict(chosen)[key]) for key in values[group]} == values[group]


@pytest.mark.full
@pytest.mark.parametrize("name", presets.names("models"))
def test_models_set_their_data_set_with_and_without_hydra(name: str) -> None:
    data = presets.default_data(name)
    found = plain(composed(f"+models={name}")).get("data")
    assert found == (None if data is None else presets.load("data", data))
    assert data is not None or not name.startswith("digits_")


def test_data_on_the_command_line_overrides_the_data_of_models() -> None:
    assert composed("+models=digits_mlp_pair", "data=folder").data.name == "folder"


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_a_yaml_begins_with_a_one_line_description(file: Path) -> None:
    first, second = file.read_text().removeprefix("# @package _global_\n").splitlines()[:2]
    assert re.fullmatch(r"# \S.{18,108}\S", first)
    assert not second.startswith("#")
    if file.parent != CONFIGS:
        assert presets.summary(file.parent.name, file.stem) == first[2:]


def test_presets_list_exactly_the_files() -> None:
    assert all(presets.names(group) for group in presets.GROUPS)
    folders = {folder.name for folder in CONFIGS.iterdir() if folder.is_dir() and not folder.name.startswith("_")}
    assert folders == {*presets.GROUPS, *presets.SWEEPS}
    assert sorted((g, file.stem) for g in presets.GROUPS for file in (CONFIGS / g).iterdir()) == sorted(OPTIONS)


@pytest.mark.full
@pytest.mark.parametrize(("group", "name"), [(g, name) for g in presets.SWEEPS for name in presets.names(g)])
def test_launchers_and_sweeps_change_no_key_of_a_job(group: str, name: str) -> None:
    register()  # our own sweepers, as the command does
    if name in PLUGINS:
        pytest.importorskip(f"hydra_plugins.hydra_{PLUGINS[name]}", reason="an extra is not installed")
    before, after = (plain(composed("+models=digits_mlp_pair", *more)) for more in ((), (f"{group}={name}",)))
    assert {key: value for key, value in after.items() if key != "resume"} == {
        key: value for key, value in before.items() if key != "resume"
    }


PLUGINS = {
    "joblib": "joblib_launcher",
    "submitit_local": "submitit_launcher",
    "submitit_slurm": "submitit_launcher",
    "optuna": "optuna_sweeper",
}


def test_top_level_defaults() -> None:
    values = plain(composed())
    assert values == {
        "seed": 0,
        "resume": False,
        "checkpoint": {"every": "60s"},
        "evaluation": {"kd": False},
        "output": {
            **{"dir": None, "overwrite": False, "dtype": "float32", "license": None},
            **{"tensorboard": False, "wandb": False, "mlflow": False},
        },
        "method": presets.load("method", "fs_merge"),
        "hardware": presets.load("hardware", "auto"),
    }
    assert asdict(Output()) == values["output"]


def test_the_python_api_has_the_same_defaults() -> None:
    given = {name: p.default for name, p in inspect.signature(merge).parameters.items()}
    values = plain(composed())
    assert given["method"] == values["method"]["name"]
    assert given["hardware"] == "auto"
    assert given["seed"] == values["seed"]
    assert given["overwrite"] == values["output"]["overwrite"]
    assert given["kd"] == values["evaluation"]["kd"] == Evaluation().kd
    assert given["data"] is None


CHOICES = {"models": "digits_mlp_pair", "method": "kd"}


def test_the_default_folder_is_named_after_models_method_and_a_hash() -> None:
    keys = plain(composed("+models=digits_mlp_pair", "method=kd"))
    assert re.fullmatch(r"outputs/digits_mlp_pair-kd-[0-9a-f]{8}", default_folder(keys, CHOICES))
    assert re.fullmatch(r"outputs/models-kd-[0-9a-f]{8}", default_folder(keys, {"method": "kd"}))
    odd = default_folder(keys, {"models": "my/own models", "method": "kd"})
    assert re.fullmatch(r"outputs/my_own_models-kd-[0-9a-f]{8}", odd)


def test_the_hash_ignores_the_output_keys_and_the_order_of_keys() -> None:
    keys = plain(composed("+models=digits_mlp_pair", "method=kd"))
    other = {**keys, "output": {"dir": "elsewhere", "overwrite": True}}
    assert default_folder(keys, CHOICES) == default_folder(other, CHOICES)
    assert default_folder(keys, CHOICES) == default_folder(dict(reversed(keys.items())), CHOICES)


@pytest.mark.full
@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "method.lr=0.5",
        "data.images_per_task=7",
        "hardware=cpu",
        "++models.sources.1.recipe.seed=7",
        "++models.sources.1.checkpoint=mine",
    ],
)
def test_the_hash_changes_with_every_key_that_may_change_the_result(override: str) -> None:
    common = ["+models=digits_mlp_pair", "method=kd"]
    assert default_folder(plain(composed(*common)), CHOICES) != default_folder(
        plain(composed(*common, override)), CHOICES
    )
