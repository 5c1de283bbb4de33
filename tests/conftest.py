"""Shared fixtures: small problems, and a cache that lasts for one test session."""

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
    """Embedded sources: where the caller says (the Makefile), else trained once per session."""
    patch = pytest.MonkeyPatch()
    # Tiny models: more threads only wait for each other. Here, and in the processes that tests start.
    torch.set_num_threads(1)
    patch.setenv("OMP_NUM_THREADS", "1")
    if "FSMERGE_CACHE" not in os.environ:
        patch.setenv("FSMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """A shell's background job ignores Ctrl-C, and so do its children, unless they are told otherwise."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def make_problem() -> Callable[..., Problem]:
    """Problem from a list of sources (default: two 8-wide MLPs) and some random images."""

    def make(sources: list[Source] | None = None, per_task: int = 12, held: int = 0, **options: object) -> Problem:
        sources = sources or [mlp_source("a", [8, 8], 1), mlp_source("b", [8, 8], 2)]
        images = random_images(len(sources), per_task, sources[0].arch.input_size, held)
        width = options.pop("width", None)
        return Problem(compile_plan(sources, width), sources, images, **options)  # type: ignore[arg-type]

    return make
