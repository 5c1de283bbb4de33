from __future__ import annotations

import pytest

from fsmerge_cli.models.source import Source
from tests.support.sources import mlp_source


@pytest.fixture
def source() -> Source:
    """A random MLP with the options MLP_ARCH of tests.support.checkpoints."""
    return mlp_source("task", [6, 5], 3)
