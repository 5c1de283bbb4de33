"""A merge of text encoders from start to end: every method, every family, and what lies in the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli import evaluate, load_merged, merge
from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.runs.push import repository_files, shown_inputs
from tests.support.encoders import VARIANTS, sentence_pair

POOLED = [name for name, options in VARIANTS.items() if options.get("pooler", True)]
DATA = {"name": "sentences", "images_per_task": 10}
TEXTS = ["the cake was not bad!", "anna baked the bread and forgot about the ticket"]
APPLY = [name for name, cls in METHODS.items() if not cls.uses_base]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return sentence_pair(tmp_path_factory.mktemp("pair"), "BERT")


@pytest.mark.full
def test_what_is_pushed_is_all_that_the_card_names(pair: Any, tmp_path: Path) -> None:
    merge(pair, method="average", data=DATA, output=tmp_path / "out")
    files = repository_files(tmp_path / "out")
    root = {name for name in files if "/" not in name}
    assert root >= {"config.json", "model.safetensors", "heads.safetensors", "tokenizer.json", "README.md"}
    for task in ("topic", "polarity"):
        parts = ("config.json", "model.safetensors", "tokenizer.json")
        assert {f"tasks/{task}/{name}" for name in parts} <= {*files}
    assert shown_inputs(files) == "texts"


@pytest.mark.full
@pytest.mark.parametrize("name", APPLY)
def test_every_method_merges_encoders_and_their_certificates_hold(name: str, pair: Any, tmp_path: Path) -> None:
    own = {"importance": "uniform"} if name == "neuron_interpolation" else {}  # conductance follows pixels
    trained = {"steps": 3, "batch_size": 8} if issubclass(METHODS[name], Trained) else {}
    merge(pair, method={"name": name, **own, **trained}, data=DATA, output=tmp_path / "out")
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    checks = {n: c["status"] for n, c in found["certificates"].items()}
    assert checks["reloaded"] == checks["heads"] == checks["evaluated"] == checks["tasks"] == "holds"
    assert list(found["rows"]) == ["topic", "polarity", "ensemble", "average", "merged"]
    assert found["rows"]["ensemble"]["feature_error"] == {"topic": 0.0, "polarity": 0.0}


@pytest.mark.full
@pytest.mark.parametrize("variant", POOLED)
def test_the_written_folders_load_with_transformers(variant: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    result = merge(sentence_pair(tmp_path, variant), method="average", data=DATA, output=tmp_path / "out")
    model = load_merged(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/merged")
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    base = AutoModel.from_pretrained(tmp_path / "out/merged")
    assert base.config.hidden_size == result.plan.arch.features
    if variant in ("DistilBERT", "RoBERTa"):  # they have no second text
        inputs.pop("token_type_ids", None)
    for task in ("topic", "polarity"):
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/tasks" / task)
        with torch.no_grad():
            expected = classifier(**inputs).logits.softmax(1)
        assert tuple(classifier.config.id2label.values()) == model.labels[task]
        for row, prediction in enumerate(model.predict(TEXTS, task)):
            found = {own.label: own.probability for own in prediction.top}
            for label, value in zip(model.labels[task], expected[row].tolist()):
                assert found[label] == pytest.approx(value, abs=1e-4)


@pytest.mark.full
def test_the_card_and_the_page_show_texts(pair: Any, tmp_path: Path) -> None:
    merge(pair, method="average", data=DATA, output=tmp_path / "out")
    card, page = ((tmp_path / "out" / name).read_text() for name in ("merged/README.md", "report.html"))
    assert "pipeline_tag: text-classification" in card
    assert "library_name: transformers" in card
    assert "Input: texts of up to 66 tokens, by the tokenizer of this folder." in card
    assert 'pipeline("text-classification", model="tasks/topic")' in card
    assert "<h2>Example texts</h2>" in page
    assert '<p class="text"><bdi>' in page
    assert "<img" not in page


@pytest.mark.full
def test_a_merge_without_texts_uses_random_words(pair: Any) -> None:
    result = merge(pair, method="regmean", data={"name": "none", "images_per_task": 20})
    assert "20 auxiliary unlabelled texts (generated)" in result.notes


@pytest.mark.full
def test_a_written_encoder_is_evaluated_again(pair: Any, tmp_path: Path) -> None:
    result = merge(pair, method="average", data=DATA, output=tmp_path / "out")
    again = evaluate(tmp_path / "out", data="from_run")
    assert again.scores["merged"].tasks == result.scores["merged"].tasks


@pytest.mark.full
def test_one_text_or_a_pair_has_one_prediction(pair: Any, tmp_path: Path) -> None:
    merge(pair, method="average", data=DATA, output=tmp_path / "out")
    model = load_merged(tmp_path / "out")
    assert model.predict(TEXTS[0], "topic", 1).top == model.predict(TEXTS, "topic", 1)[0].top
    assert model.predict((TEXTS[0], TEXTS[1]), "topic", 1).probability > 0
    with pytest.raises(DataError, match=r"a text should be a string, or a pair of strings, got 3\."):
        model.predict([3])


@pytest.mark.full
def test_data_of_images_and_views_of_images_are_refused(pair: Any) -> None:
    with pytest.raises(ConfigError) as error:
        merge(pair, method="average", data="digits")
    assert str(error.value) == (
        "data=digits holds images, and these sources read texts. Pass one of hf_text, none, per_task, "
        "sentences, text: data=NAME"
    )
    with pytest.raises(ConfigError) as error:
        merge(pair, method="fs_merge_paper", data=DATA)
    assert str(error.value) == (
        "method.augment=paper is an augmentation of images, and these sources read texts. Pass "
        "method.augment=none, or method.augment=strong (a random share of the tokens is hidden or replaced)."
    )


@pytest.mark.full
def test_the_embedded_pair_is_trained_and_merged() -> None:
    rows = merge("text_pair", method="average").evaluation()["rows"]
    assert rows["ensemble"]["mean_top1"] > 0.95
