"""tokenizer_config.json and tokenizer.json: one tokenizer, or a refusal, since transformers follows the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli.checkpoints.tokenizer import given_tokenizer, read_tokenizer
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.data.text.tokens import ToTokens
from tests.support.encoders import with_tokenizer

TEXTS = ("The Soup, good", "un café naïf", "的 汤", "a [MASK] b")

CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "case": ({"do_lower_case": False}, "do_lower_case is False in the first and True in the second"),
    "accents": ({"strip_accents": False}, "strip_accents is False in the first and True in the second"),
    "Chinese": (
        {"tokenize_chinese_chars": False},
        "tokenize_chinese_chars is False in the first and True in the second",
    ),
    "first token": (
        {"cls_token": {"content": "the"}},
        "cls_token is 'the' in the first and '[CLS]' in the second",
    ),
    "last token": ({"sep_token": "the"}, "sep_token is 'the' in the first and '[SEP]' in the second"),
    "unknown words": ({"unk_token": "the"}, "unk_token is 'the' in the first and '[UNK]' in the second"),
    "kind": (
        {"tokenizer_class": "RobertaTokenizer"},
        "tokenizer_class is 'RobertaTokenizer' in the first and 'WordPiece' in the second",
    ),
    "special tokens": (
        {"split_special_tokens": True},
        "split_special_tokens is True in the first and False in the second",
    ),
    "an added token": (
        {"added_tokens_decoder": {"2": {"content": "the"}}},
        "token 2 is 'the' in the first and '[CLS]' in the second",
    ),
}


def state_config(folder: Path, **keys: Any) -> Path:
    with_tokenizer(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return folder


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_refused(case: str, tmp_path: Path) -> None:
    keys, what = CONTRADICTIONS[case]
    with pytest.raises(SourceError) as error:
        read_tokenizer(state_config(tmp_path, **keys), "x")
    assert str(error.value) == (
        f"x: tokenizer_config.json and tokenizer.json contradict each other ({what}), and transformers follows "
        "the first. Save the tokenizer that the model was trained with again: "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
    )


SAME: list[dict[str, Any]] = [
    {"strip_accents": True},
    {"strip_accents": None, "tokenize_chinese_chars": True},
    {"cls_token": "[CLS]", "added_tokens_decoder": {"2": {"content": "[CLS]"}}},
    {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False},
    {"padding_side": "left", "model_max_length": 10**30},
]


@pytest.mark.full
@pytest.mark.parametrize("keys", SAME)
def test_otherwise_the_tokens_are_those_of_transformers(keys: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    found = read_tokenizer(state_config(tmp_path, **keys), "x")
    reference = AutoTokenizer.from_pretrained(tmp_path)
    for state in (found.state, given_tokenizer(reference, "x").state):
        for text in TEXTS:
            assert ToTokens(state, 64, 2)(text).tensors["input_ids"].tolist() == reference(text)["input_ids"]


def test_the_end_at_which_texts_are_cut_is_that_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = "the unbelievable cake was not bad at all"
    for side in ("right", "left"):
        folder = state_config(tmp_path / side, truncation_side=side)
        found = read_tokenizer(folder, "x")
        assert found.side == side
        own = ToTokens(found.state, 7, 2, side=found.side)(text).tensors["input_ids"].tolist()
        assert own == AutoTokenizer.from_pretrained(folder)(text, truncation=True, max_length=7)["input_ids"]
    other = read_tokenizer(tmp_path / "right", "x")
    assert (other.refusals(found), other.differences(found)) == ([], ["truncation_side left"])
    with pytest.raises(SourceError) as error:
        read_tokenizer(state_config(tmp_path / "none", truncation_side="both"), "x")
    assert str(error.value) == ("x: truncation_side in tokenizer_config.json should be right or left, is 'both'.")
