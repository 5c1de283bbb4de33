"""A text -> the tokens that an encoder reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.inputs import IDS, MASK, READ, SPECIAL, TYPES, NamedTensors
from fsmerge_cli.common.shown import brief
from fsmerge_cli.data.text.augment import MASK_TOKEN
from fsmerge_cli.data.text.words import Words, first_tokens
from fsmerge_cli.models.tokenization import Side

MASK_TOKENS = ("[MASK]", "<mask>")
"""What tokenizers call the token that stands for a hidden one."""

PADDING = ("[PAD]", "<pad>")
"""What they call the padding."""

COUNTED = 5000
"""Most texts whose length is counted for a note."""

Text = str | tuple[str, str] | Words
"""A text, or a pair of them, or a text as its words."""


@dataclass(frozen=True)
class ToTokens:
    """Text, or a pair of texts -> its tokens, with their types and the mask.

    state: the tokenizer, see `Tokenization`. longest: tokens of a text, the special ones included; longer texts
    are cut. types: number of token types of the encoder; with fewer than two, all tokens have type 0. words:
    whether the features of the first token of every word are read, and not one vector per text. side: at which end
    longer texts are cut.
    """

    state: str
    longest: int
    types: int
    words: bool = False
    side: Side = "right"

    def __call__(self, text: Text) -> NamedTensors:
        """The tensors of one text, without an axis of rows. Raises DataError for something else."""
        text = Words.of(text) if self.words else text
        (found,) = self._encoded([text], self.longest)
        types = found.type_ids if self.types > 1 else [0] * len(found.ids)
        values = {IDS: found.ids, MASK: [1] * len(found.ids), TYPES: types, SPECIAL: found.special_tokens_mask}
        if isinstance(text, Words) and self.words:
            first = {place for place, _ in first_tokens(text, found)}
            values[READ] = [int(place in first) for place in range(len(found.ids))]
        tensors = {name: torch.tensor(own, dtype=torch.long) for name, own in values.items()}
        mask_token = mask_token_of(self.state)
        return NamedTensors(tensors, {} if mask_token is None else {MASK_TOKEN: mask_token})

    def word_numbers(self, text: Text) -> list[int]:
        """The words of a text whose features are read, by their numbers. Raises DataError for something else."""
        words = Words.of(text)
        (found,) = self._encoded([words], self.longest)
        return [word for _, word in first_tokens(words, found)]

    def limited(self, longest: int | None, pairs: bool = False, side: Side | None = None) -> ToTokens:
        """The same with texts of at most `longest` tokens (None: no other limit), cut at `side` (None: the same).

        pairs: whether there are pairs. Raises DataError where the special tokens alone are as many.
        """
        if side is not None:
            return replace(self, side=side).limited(longest, pairs)
        if longest is None:
            return self
        special = _tokenizer(self.state).num_special_tokens_to_add(pairs)
        if longest <= special:
            raise DataError(
                f"data.max_length={longest} leaves no token of a text: {special} are special ones. Pass "
                f"{special + 1} or more."
            )
        return replace(self, longest=min(self.longest, longest))

    def cut(self, texts: Sequence[Text]) -> tuple[int, int, float]:
        """Of the first COUNTED texts: how many were counted, how many are cut, and the share of tokens cut off."""
        lengths = [len(own.ids) for own in self._encoded(texts[:COUNTED], None)]
        over = [length - self.longest for length in lengths if length > self.longest]
        return len(lengths), len(over), sum(over) / max(1, sum(lengths))

    def _encoded(self, given: Sequence[Text], longest: int | None) -> list[Any]:
        texts = [str(text) if isinstance(text, Words) else text for text in given]
        for text in texts:
            pair = text if isinstance(text, tuple) else (text,)
            if not all(isinstance(part, str) for part in pair) or len(pair) > 2:
                raise DataError(f"a text should be a string, or a pair of strings, got {brief(text)}.")
            require_whole("".join(pair))
        tokenizer = _tokenizer(self.state)
        if longest is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(longest, direction=self.side)
        if len(texts) == 1:  # a batch starts threads, which takes longer
            return [tokenizer.encode(*texts) if isinstance(texts[0], str) else tokenizer.encode(*texts[0])]
        found: list[Any] = tokenizer.encode_batch(texts)
        return found


def require_whole(text: str, what: str = "a text") -> None:
    """Raise DataError for a half of a character (a lone surrogate), which no encoding of Unicode has."""
    if found := HALF.search(text):
        raise DataError(
            f"{what} holds {found[0]!r}, one half of a character, and so is no Unicode text: {brief(text)}. "
            "Repair or remove it."
        )


HALF = re.compile("[\ud800-\udfff]")


@lru_cache(maxsize=4)
def _tokenizer(state: str) -> Any:
    from tokenizers import Tokenizer  # an extra; `read_tokenizer` has said so where it is missing

    found = Tokenizer.from_str(state)
    found.no_padding()
    return found


@lru_cache(maxsize=4)
def mask_token_of(state: str) -> int | None:
    """The number of the token that stands for a hidden one; None: the tokenizer has none."""
    return _number(state, MASK_TOKENS)


def padding_of(state: str) -> int:
    """The number of the padding token; 0 where the tokenizer has none."""
    return _number(state, PADDING) or 0


def vocabulary_size(state: str) -> int:
    """One more than the largest number of a token."""
    return int(max(_tokenizer(state).get_vocab(True).values(), default=-1)) + 1


def _number(state: str, names: Sequence[str]) -> int | None:
    tokenizer = _tokenizer(state)
    found = (tokenizer.token_to_id(name) for name in names)
    return next((number for number in found if number is not None), None)
