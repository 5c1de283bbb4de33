"""Text encoders in folders of transformers: every form in which they are saved, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.tokenizer import normal_form
from fsmerge_cli.common.errors import MismatchError, SourceError
from fsmerge_cli.common.inputs import NamedTensors
from fsmerge_cli.data.text.sentences import Sentences
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.encoders import (
    CLASSIFIERS,
    TOKENS,
    TOPIC,
    encoder_source,
    save_encoder,
    sentence_source,
    texts,
    transformers_model,
)


def logits_of(source: Source, inputs: NamedTensors) -> torch.Tensor:
    assert source.head is not None
    return source.head(network(source)(inputs))


def logits(source: Source) -> torch.Tensor:
    return logits_of(source, texts(source.arch, 4))


def read(folder: Path, **keys: Any) -> Source:
    return load(SourceSpec("topic", checkpoint=str(folder), **keys))


@pytest.mark.full
@pytest.mark.parametrize("variant", [*CLASSIFIERS, "RoBERTa, tokens", "ELECTRA, tokens"])
def test_a_saved_classifier_is_read_with_its_labels_and_its_tokenizer(variant: str, tmp_path: Path) -> None:
    kind, _, rest = variant.partition(", ")
    source = sentence_source(kind, 1, TOPIC, **TOKENS) if rest == "tokens" else sentence_source(variant, 1, TOPIC)
    found = read(save_encoder(tmp_path, source))
    assert (found.arch, found.labels) == (source.arch, TOPIC)
    assert torch.equal(logits(found), logits(source))
    assert found.preprocessing.longest == 64
    assert found.notes == ()


def renamed(folder: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({change(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")


def old_names(folder: Path) -> None:
    renamed(folder, lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"))


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def wrapped(folder: Path) -> None:
    renamed(folder, lambda name: f"module.{name}")


def with_constants(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    positions = torch.arange(66)[None]
    save_file({**tensors, "bert.embeddings.position_ids": positions}, folder / "model.safetensors")


def only_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.full
@pytest.mark.parametrize("form", [old_names, pickled, wrapped, with_constants, only_vocabulary])
def test_every_form_of_the_files_is_the_same_model(form: Callable[[Path], None], tmp_path: Path) -> None:
    source = sentence_source("BERT", 1, TOPIC)
    first = read(save_encoder(tmp_path, source))
    form(tmp_path)
    found = read(tmp_path)
    assert torch.equal(logits(found), logits(source))
    assert found.preprocessing.state == first.preprocessing.state


def test_an_encoder_without_a_head_and_without_the_prefix_is_read(tmp_path: Path) -> None:
    source = sentence_source("BERT", 1, TOPIC)
    save_encoder(tmp_path, source)
    tensors = load_file(tmp_path / "model.safetensors")
    own = {n.removeprefix("bert."): t for n, t in tensors.items() if not n.startswith("classifier.")}
    save_file({**own, "cls.predictions.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    found = read(tmp_path)
    assert found.head is None
    assert found.notes == ("'topic': not used, no part of the features: cls.predictions.bias",)
    inputs = texts(source.arch, 4)
    assert torch.equal(network(found)(inputs), network(source)(inputs))


def changed_config(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))


ENCODERS = (
    "Text encoders that can be merged are BERT, RoBERTa, XLM-R, DistilBERT, ELECTRA and ModernBERT, as "
    "classifiers of texts or of tokens, or without a head."
)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "questions": (
        {"architectures": ["BertForQuestionAnswering"]},
        "is BertForQuestionAnswering: a model for question answering, whose features are one vector per token. "
        f"{ENCODERS}",
    ),
    "several numbers": (
        {"problem_type": "regression"},
        "predicts 4 numbers per text (regression). fsmerge evaluates and distils one. Remove its head from the "
        "file to merge it without one.",
    ),
    "several labels": (
        {"problem_type": "multi_label_classification"},
        "predicts several labels per text (problem_type in config.json). fsmerge evaluates and distils one label "
        "per text. Remove its head from the file to merge it without one.",
    ),
    "MPNet": ({"model_type": "mpnet"}, f"is a MPNet (model_type 'mpnet'), which is not supported. {ENCODERS}"),
    "relative positions": (
        {"position_embedding_type": "relative_key"},
        "has position_embedding_type 'relative_key', which belongs to pairs of tokens. Only BERT with absolute "
        "positions can be merged.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_kind_of_text_model_is_refused_by_name(name: str, tmp_path: Path) -> None:
    keys, message = REFUSED[name]
    changed_config(save_encoder(tmp_path, sentence_source("BERT", 1, TOPIC)), **keys)
    with pytest.raises(SourceError) as error:
        read(tmp_path)
    assert str(error.value) == f"source 'topic': {tmp_path} {message}"


@pytest.mark.parametrize("variant", ["BERT", "RoBERTa"])
def test_the_pooler_of_an_encoder_beside_that_of_its_classifier_is_not_used(variant: str, tmp_path: Path) -> None:
    """Classifiers of RoBERTa from 2019 and 2020 have one."""
    source = sentence_source(variant, 1, TOPIC)
    save_encoder(tmp_path, source)
    tensors, extra = load_file(tmp_path / "model.safetensors"), torch.randn(16, 16)
    save_file({"roberta.pooler.dense.weight": extra, **tensors}, tmp_path / "model.safetensors")
    if variant == "BERT":
        with pytest.raises(
            SourceError, match=r"no part of BERT and its classifier: roberta\.pooler\.dense\.weight"
        ):
            read(tmp_path)
        return
    found = read(tmp_path)
    assert torch.equal(logits(found), logits(source))
    assert found.notes == ("'topic': not used, no part of the features: roberta.pooler.dense.weight",)


def test_a_config_json_of_another_number_of_blocks_is_refused(tmp_path: Path) -> None:
    changed_config(save_encoder(tmp_path, sentence_source("BERT", 1, TOPIC)), num_hidden_layers=1)
    with pytest.raises(SourceError) as error:
        read(tmp_path)
    assert str(error.value) == (
        f"source 'topic': {tmp_path}: num_hidden_layers in its config.json is 1, and its weights have 2. Put "
        "the config.json of these weights beside them."
    )


def test_a_padding_token_inside_a_text_has_no_position_of_its_own() -> None:
    """As in transformers, which counts the tokens that are no padding."""
    source = encoder_source("RoBERTa", 1)
    inputs = texts(source.arch, 3)
    inputs.tensors["input_ids"][:, 1] = source.arch.padding
    inputs.tensors["attention_mask"][:, :3] = 1
    reference = transformers_model(source)
    with torch.no_grad():
        expected = reference(
            input_ids=inputs.tensors["input_ids"], attention_mask=inputs.tensors["attention_mask"]
        ).logits
    torch.testing.assert_close(logits_of(source, inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stated", "padding"), [(0, 0), (3, 3), (None, 1)])
def test_the_number_of_the_padding_is_the_one_stated(stated: int | None, padding: int, tmp_path: Path) -> None:
    """RoBERTa counts positions from behind it, so that another number is another function."""
    save_encoder(tmp_path, sentence_source("RoBERTa", 1, TOPIC))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": stated}))
    assert read(tmp_path).arch.padding == padding


def test_words_with_other_separators_and_added_tokens(tmp_path: Path) -> None:
    save_encoder(tmp_path, sentence_source("BERT", 1, TOPIC))
    only_vocabulary(tmp_path)
    words = (tmp_path / "vocab.txt").read_text().split("\n")
    (tmp_path / "vocab.txt").write_text("\r\n".join([*words[:-3], "\u2028", *words[-2:]]))
    state = json.loads(read(tmp_path).preprocessing.state)
    assert state["model"]["vocab"] == {word: row for row, word in enumerate([*words[:-3], "\u2028", words[-2]])}
    (tmp_path / "added_tokens.json").write_text('{"<new>": 90}')
    with pytest.raises(SourceError) as error:
        read(tmp_path)
    assert str(error.value) == (
        f"source 'topic': {tmp_path}: added_tokens.json adds tokens to vocab.txt, and there is no tokenizer.json. "
        "Save it beside the weights: transformers' AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER) "
        "writes tokenizer.json."
    )


def test_the_special_tokens_of_bert_have_one_form_and_the_same_numbers() -> None:
    from tokenizers import Tokenizer

    own = Tokenizer.from_str(Sentences.tokenization().state)
    state = normal_form(own.to_str().encode(), "x")
    assert json.loads(own.to_str())["post_processor"]["type"] == "BertProcessing"
    assert json.loads(state)["post_processor"]["type"] == "TemplateProcessing"
    other = Tokenizer.from_str(state)
    for text in (("the soup",), ("the soup", "it was cold")):
        found, expected = (one.encode(*text) for one in (other, own))
        assert (found.ids, found.type_ids) == (expected.ids, expected.type_ids)
        assert found.special_tokens_mask == expected.special_tokens_mask
    assert normal_form(state.encode(), "x") == state


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    save_encoder(tmp_path, sentence_source("BERT", 1, TOPIC))
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(SourceError) as error:
        read(tmp_path)
    assert str(error.value) == (
        f"source 'topic': {tmp_path} has no tokenizer (tokenizer.json, or vocab.txt of BERT). Save it beside the "
        "weights: transformers' AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER) writes tokenizer.json."
    )


def test_a_key_of_images_means_nothing_for_texts(tmp_path: Path) -> None:
    save_encoder(tmp_path, sentence_source("BERT", 1, TOPIC))
    with pytest.raises(
        SourceError, match=r"this is a text encoder, for which models\.sources\.N\.mean means nothing"
    ):
        read(tmp_path, mean=(0.5,))


def test_different_tokenizers_are_refused_with_the_first_difference(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_encoder(tmp_path / name, sentence_source("BERT", 1, TOPIC))
    content = json.loads((tmp_path / "b/tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    (tmp_path / "b/tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "b/tokenizer_config.json").unlink()
    sources = [load(SourceSpec(name, checkpoint=str(tmp_path / name))) for name in ("a", "b")]
    with pytest.raises(MismatchError) as error:
        compile_plan(sources)
    assert error.value.reasons == (
        "'a' and 'b': the tokenizers differ (normalizer.lowercase: True, False); a text has to become the same "
        "tokens for every source. Their vocabularies are the same: models.sources.N.tokenizer=FOLDER reads the "
        "texts of both with one tokenizer, which changes what the other source predicts",
    )
    for source, folder in ((sources[0], "b"), (sources[1], "a")):  # the remedy
        given = load(SourceSpec(source.name, checkpoint=source.origin, tokenizer=str(tmp_path / folder)))
        compile_plan([given, next(own for own in sources if own is not source)])


@pytest.mark.parametrize(("kind", "shared"), [("other numbers", 217), ("fewer words", 200)])
def test_vocabularies_with_a_common_part_are_refused_with_what_can_be_done(kind: str, shared: int) -> None:
    own = Sentences.tokenization()
    content = json.loads(own.state)
    words = content["model"]["vocab"]
    changed = dict(zip(words, [*range(5), *reversed(range(5, len(words)))]))
    content["model"]["vocab"] = changed if kind == "other numbers" else dict([*words.items()][:200])
    (found,) = own.refusals(replace(own, state=json.dumps(content, sort_keys=True)))
    assert found.endswith(
        f". {shared} of 217 and {shared} tokens are in both: train one of the two again with the tokenizer of the "
        "other, from a model that has it (fsmerge finetune model.checkpoint=...), or with the rows of the common "
        "tokens moved to their places in its table of words"
    )


def test_the_form_in_which_a_tokenizer_is_padded_and_cut_is_no_difference(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_encoder(tmp_path / name, sentence_source("BERT", 1, TOPIC))
    content = json.loads((tmp_path / "b/tokenizer.json").read_text())
    content["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (tmp_path / "b/tokenizer.json").write_text(json.dumps(content))
    compile_plan([load(SourceSpec(name, checkpoint=str(tmp_path / name))) for name in ("a", "b")])
