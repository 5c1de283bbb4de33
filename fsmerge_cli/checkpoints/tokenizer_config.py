"""What tokenizer_config.json says of a tokenizer, and where tokenizer.json says otherwise.

For its own classes transformers follows tokenizer_config.json, so that with a contradiction the tokens of a text
are others than those of tokenizer.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import brief

KINDS = {
    "WordPiece": r"(Bert|DistilBert|Electra)Tokenizer(Fast)?",
    "BPE": r"RobertaTokenizer(Fast)?",
    "Unigram": r"XLMRobertaTokenizer(Fast)?",
}
"""Kind of model in tokenizer.json -> transformers' classes that build it, and follow tokenizer_config.json."""

OF_NORMALIZER = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")


def require_no_contradiction(state: Mapping[str, Any], stated: Mapping[str, Any], where: str) -> None:
    """Raise SourceError where tokenizer_config.json contradicts `state`, the content of tokenizer.json."""
    name = str(stated.get("tokenizer_class") or "")
    kind = next((kind for kind, names in KINDS.items() if re.fullmatch(names, name)), None)
    if kind is None and name:
        return  # of a class that takes tokenizer.json as it is, or of none that transformers has
    for key, own, other in _contradictions(state, stated, kind):
        raise SourceError(
            f"{where}: tokenizer_config.json and tokenizer.json contradict each other ({key} is {brief(own)} in "
            f"the first and {brief(other)} in the second), and transformers follows the first. Save the "
            "tokenizer that the model was trained with again: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
        )


def _contradictions(
    state: Mapping[str, Any], stated: Mapping[str, Any], kind: str | None
) -> Iterator[tuple[str, Any, Any]]:
    """Key, and its values in tokenizer_config.json and in tokenizer.json."""
    model = state.get("model") or {}
    if kind is not None and model.get("type") != kind:
        yield "tokenizer_class", stated["tokenizer_class"], model.get("type")
    if model.get("type") == "WordPiece" and (kind is not None or {*OF_NORMALIZER} & {*stated}):
        yield from _of_normalizer(state.get("normalizer") or {}, stated)
    split = state.get("pre_tokenizer") or {}
    space = bool(stated.get("add_prefix_space")), split.get("add_prefix_space")
    if split.get("type") == "ByteLevel" and "add_prefix_space" in stated and space[0] != space[1]:
        yield "add_prefix_space", *space
    known = {token["content"]: token["id"] for token in state.get("added_tokens") or ()}
    known = {**(model["vocab"] if isinstance(model.get("vocab"), dict) else {}), **known}
    decoder = stated.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, Mapping) else ():
        if known and str(known.get(_content(token), "")) != str(number):
            yield f"token {number}", _content(token), next((n for n, i in known.items() if str(i) == number), None)
    if stated.get("split_special_tokens"):
        yield "split_special_tokens", True, False
    ends = _ends(state.get("post_processor") or {})
    for key, own in {"cls_token": ends[0], "sep_token": ends[1], "unk_token": model.get("unk_token")}.items():
        token = _content(stated.get(key))
        if token is not None and token != own and not (key == "unk_token" and model.get("type") != "WordPiece"):
            yield key, token, own


def _of_normalizer(own: Mapping[str, Any], stated: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Of BERT's normalizer; without a statement accents are stripped where letters become small."""
    if own.get("type") not in (None, "BertNormalizer"):
        return  # of several steps, which are compared by nobody
    small = bool(own.get("lowercase", False))
    found = {
        "do_lower_case": small,
        "strip_accents": small if own.get("strip_accents") is None else own["strip_accents"],
        "tokenize_chinese_chars": bool(own.get("handle_chinese_chars", False)),
    }
    told = {
        "do_lower_case": stated.get("do_lower_case", small),
        "strip_accents": stated.get("strip_accents"),
        "tokenize_chinese_chars": stated.get("tokenize_chinese_chars", found["tokenize_chinese_chars"]),
    }
    if told["strip_accents"] is None:
        told["strip_accents"] = told["do_lower_case"]
    yield from ((key, told[key], found[key]) for key in found if told[key] != found[key])


def _ends(processor: Mapping[str, Any]) -> tuple[Any, Any]:
    """The tokens around a text."""
    if processor.get("type") == "TemplateProcessing":
        names = [part["SpecialToken"]["id"] if "SpecialToken" in part else None for part in processor["single"]]
        return (names[0], names[-1]) if names else (None, None)
    if "cls" in processor and "sep" in processor:
        return processor["cls"][0], processor["sep"][0]
    return None, None


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token
