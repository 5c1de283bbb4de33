"""Messages for Hydra's composition errors: what is wrong, where, the closest match and the options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf

from fsmerge_cli.cli.hydra_version import HYDRA_DEFAULTS
from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError, FsmergeError, OutputError, reason, unknown, unknown_key

PLUGINS = {
    "hydra/launcher=joblib": ("Hydra's joblib launcher", "launcher=joblib", "hydra-joblib-launcher"),
    "hydra/sweeper=optuna": ("Hydra's Optuna sweeper", "sweep=optuna", "hydra-optuna-sweeper"),
}


def explain(error: Exception, arguments: Sequence[str], config: str = "merge") -> ConfigError:
    """The ConfigError for an error of Hydra or OmegaConf; config: the configuration of the command."""
    if isinstance(error, RecursionError):
        return ConfigError(
            "a file of --config-dir contains itself, directly or by way of others. Check its defaults: list."
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if name.startswith("submitit_"):
            return ConfigError(
                f"{group}={name} (of hardware=slurm) needs Hydra's submitit launcher, which is not installed. "
                "Install it: pip install hydra-submitit-launcher"
            )
        if f"{group}={name}" in PLUGINS:
            what, key, package = PLUGINS[f"{group}={name}"]
            return ConfigError(f"{key} needs {what}, which is not installed. Install it: pip install {package}")
        return ConfigError(unknown(group or "configuration", name, error.options or []))
    unknown_keys = _unknown_keys(arguments, config)
    if unknown_keys:
        return ConfigError("\n".join(unknown_keys))
    return ConfigError(_sentence(error))


ADVICE = {
    r"Ambiguous value for argument '(?P<key>.+)'": "gives several values. Write a list as [a,b], one text with "
    "commas as 'KEY=\"a,b\"'; several runs need `fsmerge merge --multirun`",
    r"Sweep parameters '(?P<key>.+)' requires --multirun": "gives several values, which needs "
    "`fsmerge merge --multirun`",
    r"Could not delete from config. '(?P<key>.*)' does not exist": "cannot be removed: there is no such key",
    r"Could not delete '(?P<key>.*)'. No match in the defaults list": "cannot be removed: nothing is chosen there",
    r"Could not override '(?P<key>.*)'. No match in the defaults list": "is no group of this command",
    r"Could not override '(?P<key>.*)'": "cannot be set: there is no such key",
    r"Error merging override (?P<key>.*)": "cannot be set",
    r"(?P<key>.*) appears more than once in the final defaults list": "is chosen twice",
}
"""What Hydra reports -> what it means for the key or override that it names."""


def _sentence(error: Exception) -> str:
    """One line for an error of Hydra or OmegaConf: the override, and the reason without their internal names."""
    text = str(error).strip()
    cause = next((line for line in str(error.__cause__ or "").splitlines() if line.strip()), "")
    for pattern, meaning in ADVICE.items():
        if found := re.match(pattern, text):
            return f"{found['key'].lstrip('+')} {meaning}" + (f" ({cause.strip().rstrip('.')})." if cause else ".")
    first = text.splitlines()[0].rstrip(".") if text else type(error).__name__
    return f"{first} ({cause.strip().rstrip('.')})." if cause and cause not in first else f"{first}."


def explain_cluster(error: Exception) -> FsmergeError | None:
    """The error for a job that a launcher or sweeper cannot start or that has no result; None for other errors."""
    if isinstance(error, RuntimeError) and "srun" in str(error):
        return ConfigError(
            "hardware=slurm: Slurm is not available on this machine (no `srun`). Run the command on a login node, "
            "or use torchrun with hardware=multi_gpu."
        )
    if type(error).__module__.startswith("joblib."):
        return FsmergeError(
            "a process of this sweep died before its job finished, possibly for lack of memory. Run fewer jobs at "
            "once (hydra.launcher.n_jobs=1) and pass resume=true to skip finished jobs."
        )
    if isinstance(error, ValueError) and str(error) == "No trials are completed yet.":
        return FsmergeError(
            "all jobs of this search failed, so there is no best one. Their errors are shown above."
        )
    if type(error).__module__.startswith("submitit."):
        return FsmergeError(
            f"a job ended without a result: {error}\nIts log is in the folder .submitit of the sweep."
        )
    return None


def explain_sweep(error: Exception, arguments: Sequence[str]) -> OutputError | None:
    """The error for a file of a sweep that Hydra cannot write, where the system does not name it; else None."""
    sweeps = {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*arguments}
    if not sweeps or not isinstance(error, OSError) or error.filename is not None or error.errno is None:
        return None
    return OutputError(
        f"cannot write the folder of the sweep: {reason(error)}. Make room and pass resume=true, or "
        "choose another hydra.sweep.dir=..."
    )


def _unknown_keys(arguments: Sequence[str], config: str) -> list[str]:
    """One message per override whose key is not in the configuration of the chosen groups."""
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    groups = [o for o in parsed if o.get_key_element().lstrip("+~") in (*presets.GROUPS, *presets.SWEEPS)]
    keys = [o.get_key_element() for o in parsed if o not in groups]
    for choice in product(*(_choices(group) for group in groups)):  # of a sweep, until one has an error
        base = _compose(choice, config)
        messages = [_missing(base, key) for key in keys if not key.startswith(("+", "~", "hydra"))]
        messages += [_missing_index(base, key.lstrip("+")) for key in keys if key.startswith("++")]
        if any(messages):
            return [message for message in messages if message]
    return []


def _choices(group: Override) -> list[str]:
    """The overrides of a sweep over a group; the override itself where it is not a sweep."""
    if not group.is_sweep_override():
        return [str(group.input_line)]
    return [f"{group.get_key_element()}={value}" for value in group.sweep_string_iterator()]


def _compose(groups: Sequence[str], config: str) -> DictConfig:
    """The configuration of the chosen groups without other overrides."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("fsmerge_cli.configs", **HYDRA_DEFAULTS):
            return compose(config, overrides=list(groups))
    except HydraException:  # the groups are wrong too, or lie in the folder of --config-dir
        return OmegaConf.create()


def _missing(base: DictConfig, key: str) -> str | None:
    place: Any = base
    path: list[str] = []
    for part in key.split("."):
        if not isinstance(place, DictConfig):
            return _whole(place, ".".join(path), part)
        if part not in place:
            options = [str(k) for k in place]
            if not options:
                return None
            return unknown_key(".".join(path), part, options)
        path.append(part)
        place = place[part]
    return None


def _whole(place: object, key: str, part: str) -> str | None:
    """A message where a key inside a plain value is set; None inside a list."""
    if isinstance(place, ListConfig):
        return None
    return f"{key}.{part} cannot be set: {key} is {'null' if place is None else repr(place)}. Write {key}=..."


def _missing_index(base: DictConfig, key: str) -> str | None:
    """A message where `key` contains a list index that is out of range."""
    place: Any = base
    path: list[str] = []
    for part in key.split("."):
        if isinstance(place, ListConfig):
            indices = [str(i) for i in range(len(place))]
            if part not in indices:
                return unknown(f"key in {'.'.join(path)}", part, indices)
            place = place[int(part)]
        elif isinstance(place, DictConfig) and part in place:
            place = place[part]
        else:
            return None
        path.append(part)
    return None
