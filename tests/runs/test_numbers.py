"""Text encoders that predict a number: squared errors and correlations from the file to the page."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from fsmerge_cli import evaluate, load_merged, merge
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.data.base import Task
from fsmerge_cli.data.text.in_memory import TextsInMemory
from fsmerge_cli.data.text.sentences import Sentences
from fsmerge_cli.data.text.tokens import ToTokens
from fsmerge_cli.evaluation.metrics import pearson, spearman
from fsmerge_cli.evaluation.scoring import NumberScore, Score, TaskScore
from fsmerge_cli.methods.kd import StudentNetwork
from fsmerge_cli.methods.task_vectors.ada_merging import AdaMerging
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.reporting.measures import outcome
from fsmerge_cli.runs.export import prepared
from fsmerge_cli.runs.predict import Prediction
from fsmerge_cli.runs.result import row
from fsmerge_cli.training.objective import Batch, LossWeights, objective
from tests.support.encoders import (
    TOPIC,
    encoder_source,
    save_encoder,
    sentence_pair,
    sentence_source,
    text_problem,
)
from tests.support.sources import capture_in_memory

TASKS: Mapping[str, tuple[str, ...]] = {"likeness": ("score",), "topic": TOPIC}
WORDS = ("the cake", "anna baked", "a match", "we left", "paul won", "the ticket")
NOTE = (
    "'likeness': its head predicts a number (regression): it is measured by its correlations with the labels, and "
    "has no part in joint accuracy"
)


def rows(task: str, count: int, seed: int) -> list[tuple[str, Any]]:
    random = torch.Generator().manual_seed(seed)
    texts = [" ".join(WORDS[i] for i in torch.randint(6, (4,), generator=random)) for _ in range(count)]
    labels = torch.randn(count, generator=random).tolist() if task == "likeness" else TOPIC * count
    return list(zip(texts, labels))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("texts")
    for seed, task in enumerate(TASKS):
        (folder / task).mkdir()
        for split, count in (("train", 12), ("test", 9)):
            with (folder / task / f"{split}.csv").open("w") as file:
                csv.writer(file).writerows([("text", "label"), *rows(task, count, 10 * seed + count)])
    return {"name": "text", "root": str(folder), "images_per_task": 12}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return sentence_pair(tmp_path_factory.mktemp("pair"), "BERT", TASKS)


@pytest.fixture(scope="module")
def run(pair: Any, data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "out"
    merge(pair, method={"name": "kd", "steps": 2, "batch_size": 8}, data=data, output=folder)
    return folder


@pytest.mark.full
def test_the_numbers_of_a_merged_model_are_those_of_transformers(run: Path, data: Any) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    own = AutoModelForSequenceClassification.from_pretrained(run / "tasks/likeness").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "tasks/likeness")
    assert (own.config.problem_type, own.config.num_labels) == ("regression", 1)
    with (Path(data["root"]) / "likeness/test.csv").open() as file:
        texts, labels = zip(*list(csv.reader(file))[1:])
    with torch.no_grad():
        found = own(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits[:, 0].tolist()
    expected = [float(label) for label in labels]
    evaluation = json.loads((run / "evaluation.json").read_text())
    numbers = evaluation["rows"]["merged"]["numbers"]["likeness"]
    assert numbers["count"] == 9
    assert numbers["pearson"] == pytest.approx(stats.pearsonr(found, expected)[0], abs=1e-4)
    assert numbers["spearman"] == pytest.approx(stats.spearmanr(found, expected)[0], abs=1e-9)
    assert numbers["loss"] == pytest.approx(sum((a - b) ** 2 for a, b in zip(found, expected)) / 9, rel=1e-4)
    predictions = load_merged(run).predict(list(texts))
    assert [own.numbers["likeness"] for own in predictions] == pytest.approx(found, abs=1e-4)
    assert {candidate.task for own in predictions for candidate in own.top} == {"topic"}
    assert NOTE in evaluation["notes"]
    assert evaluation["rows"]["merged"]["joint_top1"] == {}
    assert {c["status"] for c in evaluation["certificates"].values()} <= {"holds", "not applicable"}


@pytest.mark.full
def test_every_output_has_the_correlation_beside_the_accuracy(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = json.loads((run / "evaluation.json").read_text())["rows"]["merged"]["numbers"]["likeness"]
    shown = f"{numbers['pearson']:.3f}"
    card, page = ((run / name).read_text() for name in ("merged/README.md", "report.html"))
    for text in (card, page):
        assert f"a Pearson correlation of {shown} with the labels" in text
        assert "likeness (Pearson)" in text.replace("\\", "")
    assert "metric_type" not in card
    assert "type: pearsonr" in card
    assert main(["compare", str(run), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)[0]
    for name in ("pearson", "spearman"):
        assert compared[f"{name}.likeness"] == numbers[name]
    assert main(["predict", str(run), "a cake", "--task", "likeness", "--json"]) == 0
    (own,) = json.loads(capsys.readouterr().out)
    assert (own["task"], own["label"], own["probability"]) == ("likeness", None, None)
    assert own["value"] == pytest.approx(load_merged(run).predict("a cake", "likeness").numbers["likeness"])
    again = evaluate(run, data="from_run").evaluation()["rows"]["merged"]["numbers"]["likeness"]
    assert again["pearson"] == pytest.approx(numbers["pearson"], abs=1e-5)


@pytest.mark.full
def test_a_task_of_numbers_beside_one_of_classes_is_not_checked_and_a_note_says_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "data=from_run", "--fail-under=0"]) == 0
    out, err = capsys.readouterr()
    assert "note: --fail-under=0: 'likeness' predicts a number, which has no accuracy; it was not checked\n" in err
    assert " ".join(out.split()).startswith("Top-1 accuracy on test texts, %, and Pearson's correlation (kd)")
    assert "note: 'likeness': its head predicts a number" in out
    page, card = (run / "report.html").read_text(), (run / "merged/README.md").read_text()
    assert "<h2>Top-1 accuracy and correlation</h2>" in page
    assert "<dt>top-1 accuracy, mean over tasks of classes</dt>" in page
    assert "<dt>Pearson's correlation, mean over tasks of numbers</dt>" in page
    assert (
        "in brackets the 95 % interval (Wilson); of tasks of numbers Pearson's correlation with the labels of the "
        "test texts." in card
    )
    assert "`joint`" not in card


def test_a_prediction_of_numbers_has_no_label() -> None:
    found = Prediction((), {"likeness": 2.5})
    for name in ("label", "probability", "task"):
        with pytest.raises(ConfigError) as error:
            getattr(found, name)
        assert str(error.value) == (
            "'likeness' predicts a number, which has no label and no probability. The number is "
            ".numbers['likeness']."
        )
    assert found.numbers["likeness"] == 2.5


@pytest.mark.full
@pytest.mark.parametrize("method", ["fisher", "fs_closed_form", "regmean"])
def test_methods_that_read_logits_or_none_merge_two_tasks_of_numbers(
    method: str, pair: Any, data: Any, tmp_path: Path
) -> None:
    save_encoder(tmp_path / "other", sentence_source("BERT", 5, ("value",)))
    other = {"name": "other", "checkpoint": str(tmp_path / "other")}
    texts = {"likeness": rows("likeness", 8, 1), "other": rows("likeness", 8, 2)}
    result = merge([pair[0], other], method=method, data=texts)
    found = result.evaluation()["rows"]["merged"]
    assert (found["tasks"], found["mean_top1"]) == ({}, None)
    assert result.evaluation()["config"]["method"]["name"] == method


@pytest.mark.full
def test_one_file_of_all_tasks_needs_classes(run: Path) -> None:
    with pytest.raises(ConfigError) as error:
        prepared(load_merged(run), None)
    assert str(error.value) == (
        "likeness predicts a number, which is not compared with the labels of other tasks. Pass --task NAME for a "
        "file of one task."
    )
    assert prepared(load_merged(run), "likeness").labels == ("score",)


def number_sources() -> list[Source]:
    """Two encoders with a head that predicts a number."""
    sources = [encoder_source("BERT", seed, classes=1) for seed in (1, 2)]
    return [replace(own, head=replace(own.head, regression=True)) for own in sources if own.head]


def test_a_method_of_predicted_classes_refuses_a_number() -> None:
    sources = number_sources()
    with pytest.raises(ConfigError) as error:
        AdaMerging().check(replace(text_problem(sources), base=sources[0]))
    assert str(error.value) == (
        "method=ada_merging minimises the entropy of predicted classes, and s1, s2 predict a number. Take another "
        "method."
    )


@pytest.mark.parametrize("stated", ["regression", None])
def test_one_output_is_a_number_as_in_transformers(stated: str | None, tmp_path: Path) -> None:
    save_encoder(tmp_path, sentence_source("BERT", 1, ("score",)))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "problem_type": stated}))
    found = load(SourceSpec("likeness", checkpoint=str(tmp_path)))
    assert found.head is not None
    assert (found.head.regression, found.labels, len(found.head.weight)) == (True, ("score",), 1)
    assert found.notes == (NOTE,)


def test_the_loss_of_numbers_is_their_squared_error_relative_to_the_variance() -> None:
    sources = number_sources()
    problem = text_problem(sources, per_task=6)
    targets = capture_in_memory(problem)
    student = StudentNetwork(problem, "average", "linear")
    batch = Batch.of(problem.images.images, targets, torch.arange(12))
    plain, both = (
        objective(student, batch, targets, weights)
        for weights in (LossWeights(), LossWeights(0.7, outlier_exposure=0.5))
    )
    z, expected = student(problem.images.images), 0.0
    for i, source in enumerate(sources):
        teacher = source.head(batch.targets(i, batch.positions()))
        assert targets[i].output_variance == pytest.approx(teacher.var(correction=0).item(), rel=1e-4)
        error = (source.head(student.project(z, i)) - teacher).square().mean() / teacher.var(correction=0)
        expected += error.item() / 2
    assert (both - plain).item() == pytest.approx(0.7 * expected, rel=1e-3)


def test_correlations_are_those_of_scipy_and_of_a_constant_there_is_none() -> None:
    x, y = torch.tensor([1.0, 2.0, 2.0, 5.0, 3.0]), torch.tensor([0.5, 2.0, 1.0, 1.5, 1.5])
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0])
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0])
    assert spearman(x, x.exp()) == pytest.approx(1.0)
    assert pearson(x, torch.ones(5)) is None


def score(top1: float | None, number: float) -> Score:
    tasks = {} if top1 is None else {"a": TaskScore(10, top1, (0.0, 1.0), None, 1.0, 0.1)}
    return Score(tasks, {}, {}, numbers={"b": NumberScore(10, number, number, 1.0)})


def test_per_cent_of_the_sources_is_the_mean_over_accuracies_and_correlations() -> None:
    rows = {"a": score(0.8, 0.5), "b": score(0.8, 0.5), "merged": score(0.6, 0.45)}
    found = {name: row(own, rows) for name, own in rows.items()}
    assert found["merged"]["mean_relative"] == pytest.approx((0.75 + 0.9) / 2)
    evaluation = {"tasks": ["a", "b"], "rows": found}
    assert outcome(evaluation, "It") == (
        "It has a top-1 accuracy of 60.0 % (mean over its tasks of classes) and a Pearson correlation of 0.450 "
        "with the labels (mean over its tasks of numbers): 82.5 % of its sources' accuracy and correlation."
    )
    assert row(score(None, 0.4), {"b": score(None, -0.5)})["mean_relative"] is None
    only = {"tasks": ["b"], "rows": {"merged": row(score(None, 0.4), {"b": score(None, 0.5)})}}
    assert outcome(only, "It") == (
        "It has a Pearson correlation of 0.400 with the labels: 80.0 % of its sources' correlation."
    )


READER = ToTokens(Sentences.tokenization().state, 64, 2)
NUMBERS: dict[str, tuple[Any, Callable[[str], str] | list[float]]] = {
    "floats": ([("a", 0.5), ("b", -1.0)], [0.5, -1.0]),
    "strings": ([{"text": "a", "label": " 2.5 "}, {"text": "b", "label": "1e-3"}], [2.5, 0.001]),
    "a name": ([{"text": "a", "label": "good"}], lambda where: _refusal(where, "'good'")),
    "a truth": ([{"text": "a", "label": True}], lambda where: _refusal(where, "True")),
    "no number": ([{"text": "a", "label": "nan"}], lambda where: _refusal(where, "'nan'")),
    "infinity": ([{"text": "a", "label": "inf"}], lambda where: _refusal(where, "'inf'")),
    "a list": ([{"text": "a", "label": [1.0]}], lambda where: _refusal(where, "[1.0]")),
}


def _refusal(where: str, label: str) -> str:
    return (
        f"{where}: this task predicts a number, and the label is {label}. Repair the file, or pass "
        "data.label_column=NAME of another column."
    )


@pytest.mark.parametrize("kind", NUMBERS)
def test_labels_are_read_as_numbers(kind: str) -> None:
    content, expected = NUMBERS[kind]
    task = Task("x", None, number=True)
    if isinstance(expected, list):
        found = TextsInMemory(content=content).build("train", task, READER)
        assert found is not None
        assert (found.values, found.labelled, found.labels(0)) == (expected, True, [-1])
        assert found.only([1]).values == expected[1:]
        return
    with pytest.raises(DataError) as error:
        TextsInMemory(content=content).build("train", task, READER)
    assert str(error.value) == expected(str(error.value).partition(":0: ")[0] + ":0")
