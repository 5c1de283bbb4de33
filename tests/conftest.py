"""Shared fixtures: small problems, and a cache for one test session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import torch

from fsmerge_cli.methods import Problem
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from tests.support.sources import mlp_source, random_images


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Cache of the embedded sources: FSMERGE_CACHE if set, otherwise a new one per session."""
    patch = pytest.MonkeyPatch()
    # More threads are slower for tiny models. Also set for the processes that tests start.
    torch.set_num_threads(1)
    patch.setenv("OMP_NUM_THREADS", "1")
    if "FSMERGE_CACHE" not in os.environ:
        patch.setenv("FSMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Restore Ctrl-C, which background jobs of a shell and their children ignore, and SIGHUP, as nohup does."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def make_problem() -> Callable[..., Problem]:
    """Builds a problem from a list of sources (default: two 8-wide MLPs) and random images."""

    def make(sources: list[Source] | None = None, per_task: int = 12, held: int = 0, **options: object) -> Problem:
        sources = sources or [mlp_source("a", [8, 8], 1), mlp_source("b", [8, 8], 2)]
        images = random_images(len(sources), per_task, sources[0].arch.input_size, held)
        width = options.pop("width", None)
        return Problem(compile_plan(sources, width), sources, images, **options)  # type: ignore[arg-type]

    return make
