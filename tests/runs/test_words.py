"""A merge of classifiers of tokens from start to end: every tag is that of the first token of a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli import check, evaluate, load_merged, merge
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import MismatchError
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.reporting import html, summary
from fsmerge_cli.reporting.schema import read_evaluation
from fsmerge_cli.runs.predict_texts import Tagged
from tests.support.encoders import WORD_TAGS, sentence_pair, tagged_texts

APPLY = ["kd", "fs_merge", "fs_closed_form", "fisher", "straight_through"]
"""Methods that read features or logits row by row."""
TEXT = "anna forgot about the unbelievable ticket"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return sentence_pair(tmp_path_factory.mktemp("pair"), "BERT, tokens", WORD_TAGS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "name": "text",
        "root": str(tagged_texts(tmp_path_factory.mktemp("texts") / "own")),
        "images_per_task": 10,
    }


@pytest.fixture(scope="module")
def run(pair: Any, data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "out"
    merge(pair, method="regmean", data=data, output=folder)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("name", APPLY)
def test_methods_that_train_or_read_logits_merge_classifiers_of_tokens(
    name: str, pair: Any, data: Any, tmp_path: Path
) -> None:
    method = {"name": name, **({"steps": 3, "batch_size": 8} if issubclass(METHODS[name], Trained) else {})}
    merge(pair, method=method, data=data, output=tmp_path / "out")
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    checks = {n: c["status"] for n, c in found["certificates"].items()}
    assert checks["reloaded"] == checks["heads"] == checks["evaluated"] == checks["tasks"] == "holds"
    assert found["rows"]["ensemble"]["feature_error"] == {"length": 0.0, "letter": 0.0}


@pytest.mark.full
def test_accuracies_count_the_words_of_the_test_texts(run: Path, data: Any) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    for task, labels in WORD_TAGS.items():
        own = AutoModelForTokenClassification.from_pretrained(run / "tasks" / task).eval()
        tokenizer = AutoTokenizer.from_pretrained(run / "tasks" / task)
        right = count = 0
        for line in (Path(data["root"]) / task / "test.jsonl").read_text().splitlines():
            words, tags = json.loads(line).values()
            inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt")
            with torch.no_grad():
                predicted = own(**inputs).logits[0].argmax(-1).tolist()
            places = inputs.word_ids()
            first = [places.index(number) for number in range(len(words))]
            right += sum(labels[predicted[place]] == tag for place, tag in zip(first, tags))
            count += len(words)
        assert (rows["merged"]["tasks"][task]["count"], count) == (count, count)
        assert rows["merged"]["tasks"][task]["top1"] == pytest.approx(right / count, abs=1.5 / count)


@pytest.mark.full
def test_a_prediction_has_a_tag_for_every_word(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import pipeline

    own = pipeline(
        "token-classification", model=str(run / "tasks/letter"), aggregation_strategy="first", device=-1
    )
    found = load_merged(run).predict([TEXT, "the cake"], "letter", 1)
    assert isinstance(found[0], Tagged)
    assert found[0].words == tuple(TEXT.split())
    expected = {word["start"]: word["entity_group"] for word in own(TEXT)}
    tags = {sum(len(w) + 1 for w in found[0].words[:i]): tag for i, tag in enumerate(found[0].labels)}
    assert {start: tag for start, tag in tags.items() if start in expected} == expected
    assert load_merged(run).predict(TEXT, "letter", 1) == found[0]
    assert main(["predict", str(run), TEXT, "--task", "letter", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["word"], row["label"]) for row in rows] == list(zip(found[0].words, found[0].labels))
    assert main(["predict", str(run), "a cake", "--task", "letter"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["a", "cake"]
    assert [line[0] for line in lines[1:]] == ["a", "cake"]
    (run.parent / "twice.txt").write_text("the cake\nAnna\nthe cake\n")
    assert main(["predict", str(run), str(run.parent / "twice.txt"), "--task", "letter"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["the", "the", "cake", "Anna", "Anna", "the", "the", "cake"]


@pytest.mark.full
def test_the_card_names_the_pipeline_of_tokens_and_the_page_shows_words(run: Path) -> None:
    card, page = ((run / name).read_text() for name in ("merged/README.md", "report.html"))
    assert "pipeline_tag: token-classification" in card
    assert 'pipeline("token-classification", model="tasks/length")' in card
    assert "<h2>Example texts</h2>" in page


@pytest.mark.full
def test_counts_of_the_test_are_words_in_page_card_and_terminal(
    run: Path, pair: Any, data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = read_evaluation(run / "evaluation.json", "")
    count = evaluation["rows"]["merged"]["tasks"]["length"]["count"]
    assert (evaluation["inputs"], evaluation["counted"]) == ("text", "word")
    card, page = ((run / name).read_text() for name in ("merged/README.md", "report.html"))
    assert "Top-1 accuracy on test words in per cent" in card
    assert f"| length | {count} |" in card.partition("| task | words |")[2]
    assert "On test words that the merge did not use, in per cent" in page
    assert f"{count} test words, task given" in page
    assert "20 unlabelled texts" in page
    for text in (card, page):
        assert "“% equal to source”: words on which merged model and source predict the same label." in text
    found = tmp_path / "found.json"
    assert main(["evaluate", str(run), "data=from_run", f"output.file={found}"]) == 0
    out = capsys.readouterr().out
    assert "Top-1 accuracy on test words, % (regmean)" in out
    assert [line.split()[1:6] for line in out.splitlines() if line.startswith("┃ task")] == [
        ["task", "┃", "words", "┃", "top-1"]
    ]
    assert json.loads(found.read_text())["counted"] == "word"
    sources = ",".join(f"{{name:{own['name']},checkpoint:{own['checkpoint']}}}" for own in pair)
    call = [f"+models.sources=[{sources}]", "data=text", f"data.root={data['root']}", "data.images_per_task=10"]
    assert main(["check", *call, "--fail-under=0"]) == 0
    assert "top-1 accuracy of the sources on their test words: length " in capsys.readouterr().out


@pytest.mark.full
def test_a_file_without_what_is_counted_is_read_as_before(run: Path, tmp_path: Path) -> None:
    content = json.loads((run / "evaluation.json").read_text())
    del content["counted"]
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    earlier = read_evaluation(tmp_path / "evaluation.json", "")
    assert summary.details(earlier).columns[1] == "texts"  # type: ignore[union-attr]
    assert "On test texts that the merge did not use" in html.page(earlier, (), "text")


@pytest.mark.full
def test_the_run_is_evaluated_again(run: Path) -> None:
    found = json.loads((run / "evaluation.json").read_text())
    again = evaluate(run, data="from_run").evaluation()["rows"]["merged"]["tasks"]
    for task, own in found["rows"]["merged"]["tasks"].items():
        assert (again[task]["count"], again[task]["top1"]) == (own["count"], own["top1"])
    warnings = [note for note in found["notes"] if note.startswith("warning: ")]
    assert warnings
    assert all("test words" in note for note in warnings)


@pytest.mark.full
def test_random_words_and_texts_without_tags_are_read_word_by_word(pair: Any) -> None:
    result = merge(pair, method="regmean", data={"name": "none", "images_per_task": 20})
    assert "20 auxiliary unlabelled texts (generated)" in result.notes
    found = merge(pair, method={"name": "kd", "steps": 2, "batch_size": 4}, data=[TEXT] * 3 + ["a cake"] * 3)
    assert found.evaluation()["rows"]["merged"]["agreement"].keys() == {"length", "letter"}


@pytest.mark.full
def test_a_classifier_of_texts_and_one_of_tokens_are_refused(pair: Any, tmp_path: Path) -> None:
    other = sentence_pair(tmp_path, "BERT")[0]
    with pytest.raises(MismatchError) as error:
        check([pair[0], other])
    assert error.value.reasons == (
        "features: 'length' has every token, 'topic' has the first token behind a pooler; a merged encoder "
        "computes one of them, so that classifiers of texts, classifiers of words and embedding models are merged "
        "each with their own kind",
    )
