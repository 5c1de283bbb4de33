"""What differs between the versions of Hydra (1.3 and 1.4) and of omegaconf (2.3 and 2.4)."""

from __future__ import annotations

from typing import Any

import hydra
import omegaconf
from omegaconf import OmegaConf


def _at_least(found: str, major: int, minor: int) -> bool:
    return tuple(int(part) for part in found.split(".")[:2]) >= (major, minor)


HYDRA_DEFAULTS: dict[str, Any] = {} if _at_least(hydra.__version__, 1, 4) else {"version_base": "1.3"}
"""Of hydra.main and initialize: 1.3 has to be told whose defaults to take, 1.4 warns where it is."""

HYDRA_MAIN: dict[str, Any] = HYDRA_DEFAULTS or {
    "execution_whitelist": ("fsmerge_cli.*", "hydra.*", "hydra_plugins.*", "optuna.*")
}
"""Of hydra.main: 1.4 asks which classes a configuration may name (callbacks, launchers, sweepers, samplers)."""

register_resolver: Any = (
    OmegaConf.register_resolver
    if _at_least(omegaconf.__version__, 2, 4)
    else OmegaConf.register_new_resolver  # before 2.4 the other name is that of an older one
)
