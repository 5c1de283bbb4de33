"""The time of a forward pass is that of the model as it is served."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fsmerge_cli import merge


def test_the_merged_model_is_timed_with_its_folded_heads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []

    def timed(forward: Any, pixels: torch.Tensor, device: torch.device) -> float:
        outputs.append(forward(pixels[:4]))
        return 1.0

    monkeypatch.setattr("fsmerge_cli.evaluation.serving.milliseconds_per_image", timed)
    merge("digits_mlp_pair", method="average", data={"name": "digits", "images_per_task": 20})
    (merged, sources) = outputs
    assert [len(own) for own in merged] == [0, 2]
    assert [len(own) for own in sources] == [2, 2]
