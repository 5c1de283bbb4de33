"""Text encoders from Python: loaded sources, modules with their tokenizers, and texts as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from fsmerge_cli import check, evaluate, finetune, load_merged, load_source, merge
from fsmerge_cli.common.errors import DataError, SourceError
from tests.support.encoders import (
    CLASSIFIERS,
    POLARITY,
    TOPIC,
    save_encoder,
    sentence_pair,
    sentence_source,
    transformers_model,
    with_tokenizer,
)
from tests.support.finetuning import CPU

TEXTS = [
    f"{who} {what}" for who in ("anna", "we", "paul") for what in ("baked the bread", "won the match", "left")
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return sentence_pair(tmp_path_factory.mktemp("pair"), "BERT")


@pytest.mark.full
def test_loaded_sources_and_a_list_of_texts_are_merged(pair: Any, tmp_path: Path) -> None:
    sources = [load_source(entry) for entry in pair]
    result = merge(sources, method="regmean", data=TEXTS, output=tmp_path / "out")
    assert "texts" in "".join(result.notes)
    assert not [note for note in result.notes if "image" in note]
    assert result.options["data"]["content"] == "list of 9"
    by_path = merge(pair, method="regmean", data={"topic": TEXTS, "polarity": TEXTS[:6]})
    assert by_path.plan.tasks == result.plan.tasks
    labelled = {
        "topic": (TEXTS[:2], ["food", "sports"]),
        "polarity": {"train": TEXTS, "test": (TEXTS[:4], [0, 1, 0, 1])},
    }
    found = evaluate(tmp_path / "out", data=labelled)
    assert found.scores["merged"].tasks["polarity"].count == 4
    model = load_merged(tmp_path / "out")
    for inputs, what in ((torch.zeros(2, 3), "Tensor"), ("a cake", "'a cake'"), (TEXTS, "list")):
        with pytest.raises(DataError) as error:
            model.logits(inputs, "topic")  # type: ignore[arg-type]
        assert str(error.value) == (
            "the tokens of texts should be those that `transform` gives of each text, as rows [n, length] of one "
            f"value, got {what}. `predict` takes texts as they are."
        )
    with pytest.raises(DataError, match=r"got tensors \[4\]"):
        model.logits(model.transform("the cake"), "topic")


@pytest.mark.full
def test_a_folder_from_python_holds_texts_where_the_sources_read_texts(pair: Any, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/mixed.txt").write_text("\n".join(TEXTS))
    result = merge([load_source(entry) for entry in pair], method="regmean", data=tmp_path / "texts")
    assert result.options["data"]["name"] == "text"


@pytest.mark.full
@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_a_module_with_its_tokenizer_is_the_source_that_save_pretrained_writes(
    variant: str, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    source = sentence_source(variant, 1, TOPIC)
    saved = load_source(save_encoder(tmp_path, source), name="topic")
    module = transformers_model(source)
    module.config.id2label = dict(enumerate(TOPIC))
    forms = {
        "transformers": AutoTokenizer.from_pretrained(tmp_path),
        "tokenizers": Tokenizer.from_file(str(tmp_path / "tokenizer.json")),
        "folder": str(tmp_path),
    }
    for form, tokenizer in forms.items():
        found = load_source(module, name="topic", tokenizer=tokenizer)
        assert (found.arch, found.labels) == (saved.arch, TOPIC)
        assert all(torch.equal(found.weights[name], tensor) for name, tensor in saved.weights.items())
        assert found.preprocessing.state == saved.preprocessing.state, form
    assert list(module.state_dict()) == list(transformers_model(source).state_dict())


@pytest.mark.full
def test_modules_are_checked_merged_and_written(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(with_tokenizer(tmp_path / "tokenizer"))
    entries = [
        {"name": name, "module": transformers_model(sentence_source("BERT", seed, labels)), "labels": labels}
        for seed, (name, labels) in enumerate((("topic", TOPIC), ("polarity", POLARITY)))
    ]
    models = [{**entry, "tokenizer": tokenizer} for entry in entries]
    assert check(models).tasks == ("topic", "polarity")
    result = merge(models, method="average", data=TEXTS, output=tmp_path / "out")
    assert type(tokenizer).__name__ in str(result.options["models"]["sources"][0]["tokenizer"])
    assert load_merged(tmp_path / "out").predict(TEXTS[0], "topic", 1).task == "topic"


@pytest.mark.full
def test_a_training_reads_texts_from_python(tmp_path: Path) -> None:
    start = save_encoder(tmp_path, sentence_source("BERT", 1, TOPIC))
    done = finetune(
        {"checkpoint": str(start), "task": "mood"},
        data=(TEXTS, ["good", "bad", "good"] * 3),
        training={"head_steps": 2, "steps": 3},
        hardware=CPU,
    )
    assert done.source.labels == ("bad", "good")


def test_a_module_without_a_tokenizer_and_a_tokenizer_of_images_are_refused(tmp_path: Path) -> None:
    module = transformers_model(sentence_source("BERT", 1, TOPIC))
    with pytest.raises(SourceError) as error:
        load_source(module, name="topic")
    assert str(error.value) == (
        "source 'topic': module BertForSequenceClassification: a text encoder needs its tokenizer, which a module "
        'does not have. Pass it as well: {"name": ..., "module": model, "tokenizer": tokenizer}, or '
        "load_source(model, tokenizer=tokenizer)."
    )
    images = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=16, embed_dim=12, depth=1, num_heads=3
    )
    with pytest.raises(SourceError, match=r"N\.tokenizer is of a text encoder, and this is none\."):
        load_source(images, tokenizer="x")
