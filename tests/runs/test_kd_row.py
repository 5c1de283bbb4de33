"""`evaluation.kd=true`: one more row, distillation at equal budget, and no other change."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fsmerge_cli import merge
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.progress import Event
from fsmerge_cli.data import DATASETS
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.average import Average
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation, at_equal_budget
from fsmerge_cli.methods.slerp import Slerp
from fsmerge_cli.reporting.tables import score_table

pytestmark = pytest.mark.full

SHORT = {"steps": 12, "batch_size": 16, "lr": 0.003, "targets": "all"}
DATA = {"name": "digits", "images_per_task": 40}


def read_evaluation(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def test_the_budget_is_all_options_shared_by_trained_methods() -> None:
    method = FSMerge(steps=7, batch_size=5, lr=0.1, targets="all", task_weights=(1.0, 2.0), width=9, retries=1)
    student = at_equal_budget(method, 2)
    shared = [f.name for f in fields(Trained) if f.name not in ("name", "lr")]  # lr differs
    assert student.lr is None
    assert {"steps", "batch_size", "augment", "weight_decay", "clip", "targets", "task_weights", "width"} <= set(
        shared
    )
    assert [getattr(student, name) for name in shared] == [getattr(method, name) for name in shared]
    assert (student.start, student.projector) == (Distillation().start, Distillation().projector)
    kd = Distillation(projector="identity")
    assert at_equal_budget(kd, 2) is kd


@pytest.mark.parametrize(("k", "sequential", "steps"), [(4, True, 30), (2, True, 10), (4, False, 10)])
def test_every_stage_of_a_sequential_merge_counts(k: int, sequential: bool, steps: int) -> None:
    assert at_equal_budget(FSMerge(steps=10, sequential=sequential), k).steps == steps


def test_a_method_without_training_only_sets_sizes_and_task_weights() -> None:
    assert at_equal_budget(Average(width=8, task_weights=(1.0, 3.0)), 2) == Distillation(
        width=8, task_weights=(1.0, 3.0)
    )
    assert at_equal_budget(Slerp(heads=2), 2) == Distillation(heads=2)
    assert all(isinstance(at_equal_budget(cls(), 3), Distillation) for cls in METHODS.values())


def test_the_row_equals_that_of_a_separate_run_and_other_rows_do_not_change(tmp_path: Path) -> None:
    events: list[Event] = []
    method, kd = {"name": "fs_merge", **SHORT}, {"name": "kd", "start": "closed_form", "lr": None}
    merge("digits_mlp_pair", method=method, data=DATA, output=tmp_path / "both", kd=True, progress=events.append)
    merge("digits_mlp_pair", method=method, data=DATA, output=tmp_path / "without")
    merge("digits_mlp_pair", method={**SHORT, **kd}, data=DATA, output=tmp_path / "separate")
    both, without, separate = (read_evaluation(tmp_path / name) for name in ("both", "without", "separate"))
    assert list(both["rows"]) == ["low", "high", "ensemble", "average", "kd", "merged"]
    assert both["rows"]["kd"] == separate["rows"]["merged"]
    assert {name: row for name, row in both["rows"].items() if name != "kd"} == without["rows"]
    for file in ("model", "heads"):
        weights = [load_file(tmp_path / run / f"merged/{file}.safetensors") for run in ("both", "without")]
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert both["cost"]["seconds"]["kd"] > 0
    assert "kd" not in without["cost"]["seconds"]
    assert both["cost"]["steps"] == 12
    assert both["training"] == without["training"]
    assert both["config"]["evaluation"] == {"kd": True}
    assert both["notes"] == [
        "the row kd is distillation with 12 steps (the method's budget); its seconds are part of this run's, "
        "and the peak memory is that of both trainings"
    ]
    assert [e.done for e in events if e.phase == "kd: train"] == list(range(1, 13))
    assert "distillation, same budget" in (tmp_path / "both/merged/README.md").read_text()


def test_method_kd_is_not_trained_twice() -> None:
    events: list[Event] = []
    result = merge("digits_mlp_pair", method={"name": "kd", **SHORT}, data=DATA, kd=True, progress=events.append)
    assert result.scores["kd"] is result.scores["merged"]
    assert not [e for e in events if e.phase.startswith("kd: ")]
    assert result.notes == ()
    shown = list(score_table(result.evaluation()).columns[0].cells)  # once
    assert [str(cell) for cell in shown] == ["low (source)", "high (source)", "ensemble", "average", "merged"]


def test_method_kd_is_evaluated_once_with_the_written_weights() -> None:
    result = merge("digits_mlp_pair", method={"name": "kd", **SHORT}, data=DATA, kd=True, dtype="bfloat16")
    assert result.scores["kd"] is result.scores["merged"]


class StopError(Exception):
    """Stops a run like a kill, but in this process."""


@pytest.mark.full
@pytest.mark.parametrize(
    ("models", "method", "phase"),
    [
        ("digits_mlp_pair", {"name": "fs_merge", **SHORT, "start": "matched"}, "train"),
        pytest.param("digits_mlp_pair", {"name": "fs_merge", **SHORT}, "kd: train", marks=pytest.mark.slow),
        ("digits_mlp_pair", {"name": "fs_merge", **SHORT, "start": "matched"}, "evaluate kd"),
        ("digits_mlp_pair", {"name": "average"}, "kd: train"),
        ("digits_mlp_trio", {"name": "fs_merge", **SHORT, "sequential": True}, "kd: train"),
    ],
)
def test_a_resumed_run_gives_the_same_bytes(
    models: str, method: dict[str, Any], phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(method: Any, k: int) -> Distillation:
        return at_equal_budget(method, k) if isinstance(method, Trained) else Distillation(steps=12)

    monkeypatch.setattr("fsmerge_cli.runs.merge.at_equal_budget", short)
    hardware = {"device": "cpu", "threads": 1}
    options: dict[str, Any] = {"method": method, "data": DATA, "hardware": hardware, "checkpoint_every": 3}

    def stop(event: Event) -> None:
        if event.phase == phase and (event.done == 8 or phase.startswith("evaluate")):
            raise StopError

    merge(models, **options, kd=True, output=tmp_path / "whole")
    with pytest.raises(StopError):
        merge(models, **options, kd=True, output=tmp_path / "cut", progress=stop)
    assert not (tmp_path / "cut").exists()
    merge(models, **options, kd=True, output=tmp_path / "cut", resume=True)
    for file in ("merged/model.safetensors", "merged/heads.safetensors", "correct.safetensors"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    cut, whole = (read_evaluation(tmp_path / run) for run in ("cut", "whole"))
    for part in ("rows", "training", "notes", "similarity", "predictions"):
        assert cut[part] == whole[part]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]  # the saved state is removed


def test_the_row_needs_images() -> None:
    entries = [{"name": name, "checkpoint": "nowhere"} for name in "ab"]
    with pytest.raises(DataError) as error:
        merge(entries, method="average", kd=True)
    assert str(error.value) == (
        "evaluation.kd=true trains a student, which needs unlabelled images, and no data set is given. Pass "
        f"data=NAME ({', '.join(sorted(DATASETS))}), or evaluation.kd=false."
    )


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["+models=digits_mlp_pair", "hardware=cpu", "method.steps=3", "data.images_per_task=40"]
    assert main(["merge", *common, "evaluation.kd=true", "output.dir=run"]) == 0
    printed = capsys.readouterr()
    assert "kd: train: 3/3" in printed.err
    assert [line for line in printed.out.splitlines() if line.split()[1:2] == ["kd"]]
    assert main(["merge", *common, "evaluation.kd=true", "output.dir=run", "resume=true"]) == 0
    assert "already finished: nothing was run" in capsys.readouterr().out
    assert main(["merge", *common, "output.dir=run", "resume=true"]) == 2
    assert "  - evaluation.kd was true and is now false\n" in capsys.readouterr().err
    assert main(["merge", *common, "evaluation.kd=yes"]) == 2
    assert capsys.readouterr().err == "fsmerge: error: evaluation.kd: should be a valid boolean, got 'yes'.\n"
    monkeypatch.setattr("fsmerge_cli.runs.estimate.throughput", lambda device: 1e9)
    seconds = []
    for kd in ("false", "true"):
        assert main(["check", *common, f"evaluation.kd={kd}", "--json"]) == 0
        seconds.append(json.loads(capsys.readouterr().out)["seconds"])
    assert 1.3 * seconds[0] < seconds[1] < 2 * seconds[0]
