"""The keys of a composed merge, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic.dataclasses import dataclass

from fsmerge_cli.cli.overrides import MODELS
from fsmerge_cli.cli.run_dirs import default_folder
from fsmerge_cli.common.errors import ConfigError, unknown, unknown_key
from fsmerge_cli.common.options import FORBID, Flag, Positive, Text, refuse_code
from fsmerge_cli.common.separation import expanded
from fsmerge_cli.reporting.trackers import TRACKERS

TOP = ("models", "data", "method", "hardware", "seed", "resume", "checkpoint", "evaluation", "output")


@dataclass(frozen=True, config=FORBID)
class Checkpoint:
    """every: how often the training state is saved: 60s, 5m, or a number of steps."""

    every: Positive | Text = "60s"


@dataclass(frozen=True, config=FORBID)
class Output:
    """The output of a run.

    dir: output folder (null: named after models, method and a hash). overwrite: replace a finished run. dtype: of
    the written weights: float32, float16 or bfloat16. license: of the merged model, for its card, as the hub names
    it (null: unknown). tensorboard, wandb, mlflow: also write the values of the run there.
    """

    dir: Text | None = None
    overwrite: Flag = False
    dtype: Text = "float32"
    license: Text | None = None
    tensorboard: Flag = False
    wandb: Flag = False
    mlflow: Flag = False

    @property
    def trackers(self) -> list[str]:
        """The trackers that were chosen."""
        return [name for name in TRACKERS if getattr(self, name)]


@dataclass(frozen=True, config=FORBID)
class Evaluation:
    """kd: also train a distillation baseline with the budget of the method."""

    kd: Flag = False


def folder_of(keys: Mapping[str, Any]) -> Path:
    """The output folder of a composed configuration."""
    return expanded(keys["output"]["dir"] or default_folder(keys, HydraConfig.get().runtime.choices))


def keys_of(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain values; ConfigError for keys that are unknown or missing."""
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:  # an interpolation of an unknown key
        message = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{error.full_key}: {message}. Use an existing key in ${{...}}, or give a value."
        ) from None
    if not isinstance(values, dict):
        raise ConfigError("the configuration is not a mapping.")
    keys = {str(key): value for key, value in values.items()}
    if isinstance(keys.get("method"), dict):
        keys["method"] = {name: _listed(value) for name, value in keys["method"].items()}
    problems = [unknown("key", key, TOP) for key in keys if key not in TOP]
    problems += [f"{key} is missing." for key in TOP if key not in keys and key != "data"]
    if "sources" not in (keys.get("models", {"sources": 0})):
        problems.append("models.sources is missing.")
    if isinstance(keys.get("models"), dict):
        problems += [unknown_key("models", str(key), MODELS) for key in keys["models"] if key not in MODELS]
    if problems:
        raise ConfigError("\n".join(problems))
    refuse_code(keys, "")
    return keys


def _listed(value: Any) -> Any:
    """A list whose entries were given separately (method.task_weights.0=1) as one list."""
    entries = {str(key): entry for key, entry in value.items()} if isinstance(value, dict) else {}
    if not entries or set(entries) != {str(i) for i in range(len(entries))}:
        return value
    return [entries[str(i)] for i in range(len(entries))]
