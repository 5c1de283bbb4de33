"""A module whose tensors cannot be read is refused; a compiled one is compared without compiling it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fsmerge_cli import check, load_source
from fsmerge_cli.common.errors import SourceError

ARCH = {"family": "mlp", "input_size": [1, 4, 4], "widths": [8, 8]}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc0, self.fc1, self.head = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.fc1(torch.relu(self.fc0(pixels.flatten(1)))))
        found: torch.Tensor = self.head(hidden)
        return found


class Failing(Net):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("no state")


class Listing(Net):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        return [1, 2]


def entry(module: Any) -> dict[str, Any]:
    return {"name": "a", "module": module, "arch": ARCH, "mean": [0.0], "std": [1.0]}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Failing(), "module Failing: its state_dict() fails (no state). Pass a torch module."),
        (Net, "module type: its state_dict() fails (Module.state_dict() missing 1 required positional argument: "),
        (Listing(), "module Listing: its state_dict() is no mapping of tensors: [1, 2]. Pass a torch module."),
        (
            Net().to("meta"),
            "module Net: fc0.weight is on the meta device, without values. Load the weights into it first.",
        ),
    ],
)
def test_a_module_without_readable_tensors_is_refused(module: Any, message: str) -> None:
    for read in (lambda: load_source(entry(module)), lambda: check([entry(module), entry(Net())])):
        with pytest.raises(SourceError) as error:
            read()
        assert str(error.value).startswith(f"source 'a': {message}")


def test_a_compiled_module_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_now(*args: object) -> None:
        raise AssertionError("compiled")

    module = torch.compile(Net(), backend=compile_now)
    assert load_source(entry(module)).notes == ()
    with pytest.raises(Exception, match="compiled"):
        module(torch.rand(2, 1, 4, 4))
