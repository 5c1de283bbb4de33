"""What happens to a text before the model: its tokenizer, which all sources have to share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fsmerge_cli.common.shown import brief

Side = Literal["right", "left"]
"""End of a text: right is its last token."""


@dataclass(frozen=True)
class Tokenization:
    """A tokenizer: its normal form, and the files that state it.

    state: the tokenizer as JSON of the library `tokenizers`, without truncation and padding; empty: there is none.
    files: by name, as they lie beside a model. longest: tokens of a text, the special ones included. side: at
    which end longer texts are cut, as transformers calls them (`truncation_side`).
    """

    state: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict, hash=False)
    longest: int = 512
    side: Side = "right"

    def limited(self, most: int | None) -> Tokenization:
        """The same with texts of at most `most` tokens (None: no other limit)."""
        return self if most is None or most >= self.longest else replace(self, longest=most)

    def differences(self, other: Tokenization) -> list[str]:
        """What `other` does differently, but could. Tokenizers have to be the same, see `refusals`."""
        return [] if self.side == other.side else [f"truncation_side {other.side}"]

    def refusals(self, other: Tokenization) -> list[str]:
        """Why models with these two tokenizers cannot be merged, and what can be done; empty for the same one."""
        found = self.difference(other)
        return [] if found is None else [f"{found}. {_remedy(self.state, other.state)}"]

    def difference(self, other: Tokenization) -> str | None:
        """Where two tokenizers differ first; None for the same one."""
        if self.state == other.state:
            return None
        found = first_difference(json.loads(self.state or "{}"), json.loads(other.state or "{}"))
        return f"the tokenizers differ ({found}); a text has to become the same tokens for every source"


def _remedy(own: str, other: str) -> str:
    """What can be done about two different tokenizers, by what their vocabularies have in common."""
    mine, theirs = (vocabulary(json.loads(state or "{}")) for state in (own, other))
    if mine == theirs and mine:
        return (
            "Their vocabularies are the same: models.sources.N.tokenizer=FOLDER reads the texts of both with one "
            "tokenizer, which changes what the other source predicts"
        )
    common = len(mine.keys() & theirs.keys())
    return (
        f"{common:,} of {len(mine):,} and {len(theirs):,} tokens are in both: train one of the two again with the "
        "tokenizer of the other, from a model that has it (fsmerge finetune model.checkpoint=...), or with the "
        "rows of the common tokens moved to their places in its table of words"
    )


def vocabulary(state: Mapping[str, Any]) -> dict[str, int]:
    """Token -> number, as a tokenizer's JSON states them.

    >>> vocabulary({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": [{"content": "[X]", "id": 2}]})
    {'a': 0, 'b': 1, '[X]': 2}
    """
    stated = (state.get("model") or {}).get("vocab") or {}
    if isinstance(stated, list):  # of Unigram: tokens with their scores
        stated = {str(entry[0]): number for number, entry in enumerate(stated)}
    added = {str(own.get("content")): own.get("id") for own in state.get("added_tokens") or ()}
    return {**stated, **added}


def first_difference(own: Any, other: Any, place: str = "") -> str:
    """Where two values read from JSON differ first: `model.vocab.the: 5, 7`.

    >>> first_difference({"a": {"b": 1}}, {"a": {"b": 2}})
    'a.b: 1, 2'
    """
    if isinstance(own, dict) and isinstance(other, dict):
        if len(own) != len(other) and len(own.keys() & other.keys()) > MANY:
            return f"{place} has {len(own)} entries, {len(other)}"
        for key in [*own, *other]:
            if key not in own or key not in other or own[key] != other[key]:
                inner = f"{place}.{key}" if place else str(key)
                return first_difference(own.get(key), other.get(key), inner)
    if isinstance(own, list) and isinstance(other, list) and len(own) == len(other):
        at = next(i for i, pair in enumerate(zip(own, other)) if pair[0] != pair[1])
        return first_difference(own[at], other[at], f"{place}.{at}")
    return f"{place}: {brief(own)}, {brief(other)}"


MANY = 100
"""From so many common entries on, the sizes of two tables are told instead of the first different entry."""
