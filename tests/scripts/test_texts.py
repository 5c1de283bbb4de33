"""The real check of text encoders: its splits, the commands of its runs, and the page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import yaml

from scripts.texts import run, sources
from scripts.texts.sources import DOMAIN, DOMAINS, table
from tests.support.benchmark_rows import row


@pytest.fixture
def sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten sentences of each site, of which six are for training."""
    monkeypatch.setattr(sources, "TRAINING", 6)
    for site in DOMAINS:
        lines = [{"text": f"{site} {n}", "label": "positive" if n % 2 else "negative"} for n in range(10)]
        (tmp_path / f"{site}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_splits_are_disjoint_and_the_same_for_both_tasks(sentences: Path, tmp_path: Path) -> None:
    found = {
        (task, split): read(table(task, split, sentences, tmp_path / "work"))
        for task in (*DOMAINS, DOMAIN)
        for split in ("train", "test")
    }
    for site in DOMAINS:
        train, test = ({line["text"] for line in found[site, split]} for split in ("train", "test"))
        assert (len(train), len(test), train & test) == (6, 4, set())
        own = [line["text"] for line in found[DOMAIN, "train"] if line["label"] == site]
        assert {*own} == train
    assert {line["label"] for line in found[DOMAIN, "test"]} == {*DOMAINS}
    again = read(table("imdb", "train", sentences, tmp_path / "again"))
    assert found["imdb", "train"] == again


def test_a_run_is_one_command_and_one_line(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run, "fsmerge", lambda call: calls.append(call) or 0)
    monkeypatch.setattr(run, "ensure", lambda task, *rest: tmp_path / task)
    made = row(0, "tsv", {"amazon": [1, 0], "yelp": [1, 1]}) | {"group": "amazon_yelp", "images": "16"}
    monkeypatch.setattr(run, "row", lambda *given: made)
    given = argparse.Namespace(sentences=sentences, encoder=tmp_path / "minilm", rows=tmp_path / "rows.jsonl")
    for _ in range(2):
        run.one("amazon_yelp", "tsv", "16", 0, given)
    (call,) = calls
    entries = yaml.safe_load(call[2].removeprefix("+models.sources="))
    assert [entry["name"] for entry in entries] == ["amazon", "yelp"]
    assert {"method=tsv", f"models.base={tmp_path / 'minilm'}", "data.images_per_task=16"} <= {*call}
    assert (tmp_path / "cache/texts/tasks/yelp-test.jsonl").is_file()
    run.write_page(run.rows(given.rows), tmp_path / "rows.md")
    assert "| tsv | 1 |" in (tmp_path / "rows.md").read_text()


@pytest.mark.parametrize("name", run.METHODS)
def test_a_method_is_a_preset_with_its_keys(name: str) -> None:
    method, *others = run.METHODS[name]
    preset = yaml.safe_load(Path(f"configs/method/{method.removeprefix('method=')}.yaml").read_text())
    assert {own.partition("=")[0].removeprefix("method.") for own in others} <= preset.keys()
    assert (run.SHORT in others) is (name in run.TRAINED)
