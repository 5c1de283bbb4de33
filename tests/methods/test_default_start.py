"""`start: null` of fs_merge: the closed form where maps and sources have one, else matched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli.cli import main
from fsmerge_cli.methods import closed_form_solution
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation, at_equal_budget
from fsmerge_cli.models.source import Source
from fsmerge_cli.runs.merge_notes import start_notes
from tests.methods.test_closed_form_start import pair, problem_of
from tests.support.sources import mlp_source

MATCHED = "method.start=matched with 2000 steps: the closed form "


def test_the_default_is_the_closed_form_with_its_own_number_of_steps() -> None:
    method, notes = FSMerge().settled(pair("vit"))
    assert (method, notes) == (FSMerge(start="closed_form"), ())
    assert (method.total_steps, replace(method, budget="fast").total_steps) == (500, 125)
    assert (Distillation().total_steps, Distillation(start="closed_form").total_steps) == (2000, 500)
    plan = FSMerge().plan(pair("vit"))
    assert plan.family.heads(plan.arch) == 6


@pytest.mark.parametrize(
    ("options", "count", "reason"),
    [
        ({"maps": "low_rank"}, 2, "needs full maps, and these are method.maps=low_rank"),
        ({"maps": "diagonal"}, 2, "needs full maps, and these are method.maps=diagonal"),
        ({"sequential": True}, 3, "solves for all sources at once, and method.sequential=true"),
        ({"width": 99}, 2, "has no network of this width and number of heads"),
    ],
)
def test_another_start_is_named_with_the_reason(options: dict[str, Any], count: int, reason: str) -> None:
    sources: list[Source] = [mlp_source(f"s{i}", [8, 6], i) for i in range(count)]
    method, notes = FSMerge(**options).settled(sources)
    assert method == FSMerge(start="matched", **options)
    assert notes == (MATCHED + reason,)


def test_a_start_that_is_given_is_kept() -> None:
    for given in (FSMerge(start="first"), FSMerge(start="matched", maps="low_rank")):
        assert given.settled(pair("mlp")) == (given, ())
    assert FSMerge(sequential=True).settled(pair("mlp"))[0].start == "closed_form"  # of two there is one stage


def test_distillation_at_equal_budget_starts_where_the_method_does() -> None:
    solved = at_equal_budget(FSMerge(start="closed_form"), 2)
    assert (solved.start, solved.total_steps) == ("closed_form", 500)
    other = at_equal_budget(FSMerge(start="first"), 2)
    assert (other.start, other.total_steps) == ("matched", 2000)


def test_the_default_gives_the_bytes_of_the_start_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form_solution, "IMAGES_PER_TASK", 20)
    for options, start in (({}, "closed_form"), ({"maps": "diagonal"}, "matched")):
        method = FSMerge(steps=3, batch_size=8, **options)  # type: ignore[arg-type]
        problem = problem_of(method, pair("mlp"))
        expected = replace(method, start=start).fit(problem)  # type: ignore[arg-type]
        found = method.fit(problem)
        assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.weights.items())


def test_more_heads_from_the_closed_form_are_no_reason_for_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form_solution, "IMAGES_PER_TASK", 20)
    for options, notes in (({}, 0), ({"start": "first", "heads": 1}, 1)):
        method = FSMerge(steps=2, batch_size=8, **options)  # type: ignore[arg-type]
        problem = problem_of(method, pair("vit"))
        assert not problem.plan.same_shape
        found = start_notes(problem.plan, method.fit(problem))
        assert [note.partition(";")[0] for note in found] == [
            "widths or heads differ, so the initial model reproduces no source"
        ] * notes


def test_a_run_records_null_and_says_which_start_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["merge", "+models=digits_mlp_pair", "method.steps=4", "hardware.threads=1", "resume=true"]
    command += ["data.images_per_task=20", "-q"]
    for name, maps, notes in (("full", "full", 0), ("low", "low_rank", 1)):
        arguments = [*command, f"output.dir={name}", f"method.maps={maps}", "method.rank=2"]
        assert main(arguments) == 0, capsys.readouterr().err
        evaluation = json.loads(Path(name, "evaluation.json").read_text())
        assert evaluation["config"]["method"]["start"] is None
        found = [note for note in evaluation["notes"] if "start" in note or "initial" in note]
        text = MATCHED.replace("2000", "4") + "needs full maps, and these are method.maps=low_rank"
        assert found == [text] * notes
        assert main(arguments) == 0  # finished already
        assert json.loads(Path(name, "evaluation.json").read_text()) == evaluation
