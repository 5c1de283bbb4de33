"""`make smoke`: every registered method on digits_mlp_pair, and invariants of every result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fsmerge_cli import merge
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.request import source_entries
from fsmerge_cli.training.teachers import network

pytestmark = pytest.mark.full

SMOKED = [name for name in METHODS if name == "ties" or not METHODS[name].uses_base]
"""Of the methods of task vectors only one: the others are in tests/runs/test_base.py."""
OTHER_WIDTHS = ["average", "fs_merge", "kd"]


def some_base(models: str, name: str) -> SourceSpec | None:
    """Source 1 for a method of task vectors, which merges whatever it is given."""
    return source_entries(models)[0] if METHODS[name].uses_base else None


@pytest.mark.parametrize(
    ("models", "name"),
    [("digits_mlp_pair", name) for name in SMOKED]
    + [pytest.param("digits_mlp_trio", name, marks=pytest.mark.full) for name in OTHER_WIDTHS],
)
def test_a_method_merges_digits_and_the_folder_holds_the_model_in_memory(
    models: str, name: str, tmp_path: Path
) -> None:
    method = {"name": name, **({"steps": 60} if issubclass(METHODS[name], Trained) else {})}
    result = merge(models, method=method, base=some_base(models, name), output=tmp_path / "out")
    stored = load_file(tmp_path / "out/merged/model.safetensors")
    assert stored.keys() == result.solution.weights.keys()
    assert all(torch.equal(stored[n], t) for n, t in result.solution.weights.items())
    pixels = torch.rand(3, 1, 8, 8)
    for task, head in result.heads.items():
        again = load(SourceSpec(task, checkpoint=str(tmp_path / "out/merged"), head=task))
        assert again.head is not None
        assert again.labels == head.labels
        assert torch.equal(again.head(result.backbone()(pixels)), head(result.backbone()(pixels)))
    rows = result.evaluation()["rows"]
    assert list(rows) == [*result.plan.tasks, "ensemble", "average", "merged"]
    assert rows["ensemble"]["mean_top1"] > 0.95
    assert rows["ensemble"]["feature_error"] == dict.fromkeys(result.plan.tasks, 0.0)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("fs_merge", "zipit") else [pytest.mark.slow]) for name in SMOKED],
)
def test_a_method_merges_convolutional_networks(name: str, tmp_path: Path) -> None:
    method = {"name": name, **({"steps": 20} if issubclass(METHODS[name], Trained) else {})}
    data = {"name": "glyphs", "images_per_task": 20}
    base = some_base("convnet_pair", name)
    result = merge("convnet_pair", method=method, data=data, base=base, output=tmp_path / "out")
    pixels = torch.rand(3, 1, 24, 24)
    for task, head in result.heads.items():
        again = load(SourceSpec(task, checkpoint=str(tmp_path / "out/merged"), head=task))
        assert again.head is not None
        found, expected = again.head(network(again)(pixels)), head(result.backbone()(pixels))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    rows = result.evaluation()["rows"]
    assert rows["ensemble"]["mean_top1"] > 0.95
    assert list(rows) == [*result.plan.tasks, "ensemble", "average", "merged"]


@pytest.mark.full
@pytest.mark.parametrize("models", ["digits_mlp_pair", "digits_mlp_trio"])
def test_the_model_cards_snippet_runs_without_fsmerge(models: str, tmp_path: Path) -> None:
    result = merge(models, method="average", output=tmp_path / "out")
    card = (tmp_path / "out/merged/README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0]
    task = result.plan.tasks[0]
    snippet += "\nfrom safetensors.torch import save_file"
    snippet += "\nsave_file({'images': images, 'logits': logits.detach()}, 'logits.safetensors')"
    blocked = "import sys\nsys.modules['fsmerge_cli'] = None\n"
    subprocess.run([sys.executable, "-c", blocked + snippet], cwd=tmp_path / "out/merged", check=True)
    written = load_file(tmp_path / "out/merged/logits.safetensors")
    assert torch.equal(written["logits"], result.heads[task](result.backbone()(written["images"])))
