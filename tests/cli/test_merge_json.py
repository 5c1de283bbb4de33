"""`fsmerge merge --json`: one JSON object on standard output, everything else on standard error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fsmerge_cli.cli import main

MERGE = ["merge", "+models=digits_mlp_pair", "hardware=cpu", "method=average", "output.dir=out", "--json"]


@pytest.mark.full
def test_standard_output_is_one_json_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(MERGE) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found == {"folder": "out", "evaluation": json.loads(Path("out/evaluation.json").read_text())}
    assert "write: 2/2" in err
    assert main([*MERGE, "resume=true", "--quiet"]) == 0  # already finished
    again, err = capsys.readouterr()
    assert (json.loads(again), err) == (found, "")
    assert main(MERGE) == 2
    assert capsys.readouterr().out == ""


def test_several_runs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MERGE, "--multirun", "seed=0,1"]) == 2
    assert capsys.readouterr() == (
        "",
        "fsmerge: error: --json applies to one run. Leave out --multirun, and run fsmerge compare FOLDER "
        "--json.\n",
    )
