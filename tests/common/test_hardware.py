"""The fields of the hardware group, on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.options import build
from fsmerge_cli.methods import Problem
from tests.support.sources import distilling, folding
from tests.support.vits import vit_source

PLAIN_METHODS = {"kd": distilling, "fs_merge": folding}


def test_a_session_sets_deterministic_operations_and_restores_them() -> None:
    for wanted in (True, False):
        with Hardware(deterministic=wanted).session():
            assert torch.are_deterministic_algorithms_enabled() == wanted
            with Hardware(deterministic=not wanted).session():
                assert torch.are_deterministic_algorithms_enabled() != wanted
            assert torch.are_deterministic_algorithms_enabled() == wanted
        assert not torch.are_deterministic_algorithms_enabled()


def test_compile_and_checkpointing_cannot_be_combined() -> None:
    with pytest.raises(ConfigError) as error:
        build(Hardware, {"compile": True, "checkpointing": True}, "hardware")
    assert str(error.value) == (
        "hardware.compile and hardware.checkpointing cannot be combined. Pass compile=true for speed or "
        "checkpointing=true for memory."
    )


def test_a_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def compile_nothing(function: object) -> Callable[..., torch.Tensor]:
        def run(*args: object) -> torch.Tensor:
            raise BackendCompilerFailed(lambda: None, RuntimeError("No C++ compiler"), [])

        return run

    monkeypatch.setattr(torch, "compile", compile_nothing)
    with pytest.raises(ConfigError) as error:
        Hardware(compile=True).compiled(torch.sin)(torch.zeros(1))
    assert str(error.value).startswith("hardware.compile=true: torch.compile failed")
    assert str(error.value).endswith("Pass hardware.compile=false.")
    assert "No C++ compiler" in str(error.value)


@pytest.mark.full
@pytest.mark.parametrize("method", ["kd", "fs_merge"])
@pytest.mark.parametrize("arch", ["mlp", "vit"])
def test_checkpointing_and_precision_do_not_change_the_result(
    make_problem: Callable[..., Problem], method: str, arch: str
) -> None:
    sources = [vit_source("class token", seed) for seed in (1, 2)] if arch == "vit" else None
    fits = {}
    for name, options in {
        "plain": {},
        "checkpointing": {"checkpointing": True},
        "bf16": {"precision": "bf16"},
        "eight": {"eval_batch": 8},
    }.items():
        problem = make_problem(sources, hardware=Hardware(**options), per_task=16)
        fits[name] = PLAIN_METHODS[method](steps=8, batch_size=8).fit(problem).trace.loss
    assert fits["checkpointing"] == pytest.approx(fits["plain"], rel=1e-4)
    assert fits["eight"] == pytest.approx(fits["plain"], rel=1e-6)
    assert fits["bf16"] == pytest.approx(fits["plain"], rel=0.1)
    assert fits["bf16"] != fits["plain"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kd", "fs_merge"])
def test_a_compiled_network_trains_to_the_same_losses(make_problem: Callable[..., Problem], method: str) -> None:
    losses = []
    for compiled in (False, True):
        problem = make_problem(hardware=Hardware(compile=compiled), per_task=16)
        losses.append(PLAIN_METHODS[method](steps=8, batch_size=8).fit(problem).trace.loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
