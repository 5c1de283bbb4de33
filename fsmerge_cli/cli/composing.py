"""Configurations of single-run commands: composed by Hydra, without jobs and sweeps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fsmerge_cli.cli.overrides import checked_override, config_folder
from fsmerge_cli.cli.plugin_presets import store_plugins
from fsmerge_cli.common.options import refuse_code


def config_dir_of(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments without --config-dir, and the folder it names."""
    rest = [*arguments]
    for place, argument in enumerate(rest):
        name, _, value = argument.partition("=")
        if name == "--config-dir":
            search = value or (rest[place + 1] if place + 1 < len(rest) else "")
            rest[place : place + (1 if value else 2)] = []
            return rest, search
    return rest, None


def added(argument: str) -> str:
    """Prefix keys of mappings that are empty by default (data.tasks.cars.name=...) with ++."""
    inside = re.match(r"data\.(tasks|args|train_args|test_args|auxiliary)\.", argument)
    return f"++{argument}" if inside else argument


def composed(config: str, overrides: Sequence[str], search: str | None) -> dict[str, Any]:
    """configs/CONFIG.yaml with overrides, as plain values; search: folder of --config-dir. Raises ConfigError."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from fsmerge_cli.cli.hydra_errors import explain
    from fsmerge_cli.cli.hydra_version import HYDRA_DEFAULTS  # imports both

    own = [] if search is None else [f"hydra.searchpath=['file://{config_folder(search)}']"]
    overrides = [checked_override(override) for override in overrides]
    store_plugins(overrides)
    overrides = ["~data" if override == "data=null" else added(override) for override in overrides]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("fsmerge_cli.configs", **HYDRA_DEFAULTS):
            values = OmegaConf.to_container(compose(config, overrides=[*overrides, *own]), resolve=True)
    except (HydraException, OmegaConfBaseException, RecursionError) as error:
        raise explain(error, overrides, config) from error
    keys = {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}
    refuse_code(keys, "")
    return keys
