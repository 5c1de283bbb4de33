"""The runs of the quality benchmark: which are missing, which are refused, and their commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmark import run, sources
from tests.support.benchmark_rows import row


def test_rows_from_different_sources_are_refused_before_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = {**row(0, "kd", {"lower": [1, 0], "hebrew": [1, 1]}), "group": "lower_hebrew"}
    run.add(old, tmp_path)
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(sources, "SOURCES", tmp_path / "stored")
    for name in ("lower", "hebrew"):
        (tmp_path / f"stored/{name}_96").mkdir(parents=True)
        (tmp_path / f"stored/{name}_96/model.safetensors").write_text(name)
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("a run was started"))
    monkeypatch.setattr("sys.argv", ["benchmark", "--groups=lower_hebrew", f"--results={tmp_path}"])
    with pytest.raises(SystemExit) as refused:
        run.main()
    assert str(refused.value) == (
        f"{tmp_path / 'quality.jsonl'} has rows of lower_hebrew from different sources (lower, hebrew); trained "
        "weights depend on the machine. --results=FOLDER measures the group again in another folder."
    )
    with pytest.raises(SystemExit, match="from different sources"):
        run.add({**old, "sources_sha256": sources.fingerprints("lower_hebrew")}, tmp_path)
    assert len(list(run.rows(tmp_path))) == 1


@pytest.mark.full
def test_only_missing_rows_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One `fsmerge merge --multirun` per set of missing seeds; a second call does not run anything."""
    commands = []

    def merge(arguments: list[str]) -> int:
        keys = dict(part.split("=", 1) for part in arguments if "=" in part)
        commands.append((keys["method"], keys["seed"], keys.get("method.start")))
        jobs = Path(keys["hydra.sweep.dir"]) / "jobs"
        jobs.mkdir(parents=True)
        pairs = [(m, int(s)) for m in keys["method"].split(",") for s in keys["seed"].split(",")]
        for number, pair in enumerate(pairs):
            (jobs / f"{number}.json").write_text(json.dumps({"folder": f"{pair[0]}-{pair[1]}"}))
        return 0

    def read(folder: Path, group: str, images: str, name: str, overrides: list[str]) -> dict[str, Any]:
        return row(int(folder.name.split("-")[1]), name, {"a": [1, 1, 0, 0]})

    prepared: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "fsmerge", merge)
    monkeypatch.setattr(run, "row", read)
    monkeypatch.setattr(run, "prepare", lambda names: prepared.append(names) or tmp_path)
    options = ["--groups=digits_mlp_pair", "--results=here"]
    for more in (["--methods=kd", "--seeds=1"], ["--methods=average,kd,fs_merge", "--seeds=0,1"], []):
        monkeypatch.setattr(
            "sys.argv", ["benchmark", *options, *(more or ["--methods=kd,fs_merge", "--seeds=0,1"])]
        )
        run.main()
    assert commands == [
        *(("kd", "1", "matched"), ("average", "0,1", None)),
        *(("kd", "0", "matched"), ("fs_merge", "0,1", "matched")),
    ]
    assert prepared == [["digits_mlp_pair"], ["digits_mlp_pair"], []]
    lines = [json.loads(line) for line in Path("here/quality.jsonl").read_text().splitlines()]
    assert [(line["method"], line["seed"]) for line in lines] == [
        *(("kd", 1), ("average", 0), ("average", 1), ("kd", 0), ("fs_merge", 0), ("fs_merge", 1))
    ]
