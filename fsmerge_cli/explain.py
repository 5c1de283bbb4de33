"""Hydra's composition errors in the user's words: what, where, the nearest name, the options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from fsmerge_cli import presets
from fsmerge_cli.errors import ConfigError, unknown


def explain(error: Exception, arguments: Sequence[str]) -> ConfigError:
    """A ConfigError that says what Hydra or OmegaConf found wrong with `arguments`."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return ConfigError(unknown(group or "configuration", name, error.options or []))
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"cannot read '{error.override}'. Write KEY=VALUE; quote a value with spaces or symbols: "
            "'KEY=\"a, b\"'."
        )
    strangers = _unknown_keys(arguments)
    if strangers:
        return ConfigError("\n".join(strangers))
    text = str(error).strip()
    cause = error.__cause__
    return ConfigError(f"{text}\n{cause}" if cause is not None else text)


def _unknown_keys(arguments: Sequence[str]) -> list[str]:
    """One message per override whose key is not in the configuration that the chosen groups give."""
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    groups = [o for o in parsed if o.get_key_element().lstrip("+~") in presets.GROUPS]
    base = _compose([str(o.input_line) for o in groups])
    messages = []
    for override in parsed:
        key = override.get_key_element()
        if override in groups or key.startswith(("+", "~", "hydra")):
            continue
        message = _missing(base, key)
        if message:
            messages.append(message)
    return messages


def _compose(groups: Sequence[str]) -> DictConfig:
    """The configuration of the chosen groups alone; of a sweep, its first choice."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("fsmerge_cli.configs", version_base="1.3"):
            return compose("merge", overrides=[re.sub(r"=([^,\[]*),.*", r"=\1", g) for g in groups])
    except HydraException:  # the groups are wrong too, or lie in a folder of the user's own
        return OmegaConf.create()


def _missing(base: DictConfig, key: str) -> str | None:
    place: Any = base
    path: list[str] = []
    for part in key.split("."):
        if not isinstance(place, DictConfig):
            return None
        if part not in place:
            options = [str(k) for k in place]
            if not options:
                return None
            return unknown(f"key in {'.'.join(path)}" if path else "key", part, options)
        path.append(part)
        place = place[part]
    return None
