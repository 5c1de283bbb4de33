"""Apple's MPS has no fp64: what is computed in it is computed on the CPU, and trainings do without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.hardware import Hardware, double, with_fp64
from fsmerge_cli.methods import METHODS, Problem, base
from fsmerge_cli.runs.predict import chosen_device
from fsmerge_cli.training import loop
from tests.support.sources import distilling, folding

Make = Callable[..., Problem]
MPS = torch.device("mps")


def test_mps_is_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError) as error:
        Hardware(device="mps").resolve()
    assert str(error.value) == (
        "hardware.device=mps: no Apple GPU is available to this build of torch. Pass hardware=cpu."
    )
    with pytest.raises(ConfigError) as error:
        chosen_device("mps")
    assert str(error.value) == "--device mps: torch sees no such GPU. Leave the option out."


def test_mps_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert Hardware(device="mps").resolve() == MPS == chosen_device("mps")
    assert Hardware().resolve() == torch.device("cpu")  # it is taken by name only
    assert not Hardware(device="mps").bf16(MPS)


def test_statistics_are_taken_on_a_device_with_fp64(make_problem: Make) -> None:
    problem = make_problem()
    assert problem.in_fp64() is problem
    assert replace(problem, device=MPS).in_fp64().device == torch.device("cpu")
    assert with_fp64(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert double(torch.ones(2)).dtype == torch.float64


def test_methods_without_a_training_are_fitted_in_fp64() -> None:
    trained = {name for name, method in METHODS.items() if not method.solves}
    assert trained == {"kd", "fs_merge", "fs_closed_form", "straight_through"}


class _Found(TorchDispatchMode):
    """Collects the operations whose results are in fp64."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves(found)):
            self.names.add(str(func))
        return found


@pytest.mark.parametrize("method", [distilling(steps=3), folding(steps=3)], ids=["kd", "fs_merge"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_training_has_no_fp64(
    make_problem: Make, monkeypatch: pytest.MonkeyPatch, method: Any, optimizer: str
) -> None:
    train, errors, found = base.train, loop._errors, _Found()

    def observed(*args: Any) -> Any:
        with found:
            return train(*args)

    def summed(*args: Any) -> Any:
        with _disable_current_modes():  # their sum is taken on the CPU
            return errors(*args)

    monkeypatch.setattr(base, "train", observed)
    monkeypatch.setattr(loop, "_errors", summed)
    replace(method, optimizer=optimizer).fit(make_problem())
    assert not found.names
    with found:
        double(torch.ones(1))
    assert found.names == {"aten._to_copy.default"}
