"""What is said to Hydra 1.3 and to 1.4, whichever is installed."""

from __future__ import annotations

import importlib
from typing import Any

import hydra
import omegaconf
import pytest
from omegaconf import OmegaConf

from fsmerge_cli.cli import hydra_version


@pytest.mark.parametrize(
    ("versions", "defaults", "main", "resolver"),
    [
        (("1.3.2", "2.3.0"), {"version_base": "1.3"}, {"version_base"}, "register_new_resolver"),
        (("1.4.0rc3", "2.4.1rc1"), {}, {"execution_whitelist"}, "register_resolver"),
        (("1.10.0", "2.10.0"), {}, {"execution_whitelist"}, "register_resolver"),
    ],
)
def test_the_arguments_follow_the_versions(
    versions: tuple[str, str],
    defaults: dict[str, Any],
    main: set[str],
    resolver: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(hydra, "__version__", versions[0])
        patch.setattr(omegaconf, "__version__", versions[1])
        found = importlib.reload(hydra_version)
        assert defaults == found.HYDRA_DEFAULTS
        assert found.HYDRA_MAIN.keys() == main
        assert found.register_resolver is getattr(OmegaConf, resolver)
    importlib.reload(hydra_version)
