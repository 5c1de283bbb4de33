"""Texts of random words, for merging without any text of the tasks."""

from __future__ import annotations

import json
from functools import lru_cache, partial

import numpy as np

from fsmerge_cli.common.seeding import derive
from fsmerge_cli.data.base import ImageSet
from fsmerge_cli.data.text.tokens import ToTokens
from fsmerge_cli.data.text.words import untagged

SHORTEST, LONGEST = 3, 32
"""Words of a text."""

CONTINUED, BEGINNINGS = "##", ("Ġ", "▁")
"""How tokenizers mark a token inside a word, or at its beginning."""


def random_texts(count: int, transform: ToTokens) -> ImageSet:
    """`count` texts of random words of the tokenizer; they are the same for equal tokenizers."""
    read = partial(_read, transform.state, transform.longest)
    tags = partial(untagged, read, transform) if transform.words else None
    return ImageSet(count, read, transform, labelled=False, tags=tags)


def _read(state: str, longest: int, i: int) -> tuple[str, int]:
    random, known = np.random.default_rng(derive(0, "random texts", i)), vocabulary(state)
    most = max(SHORTEST, min(LONGEST, longest - 2))
    size = int(random.integers(SHORTEST, most + 1))
    return " ".join(known[int(row)] for row in random.integers(len(known), size=size)), -1


@lru_cache(maxsize=4)
def vocabulary(state: str) -> tuple[str, ...]:
    """The tokens that stand for words or their beginnings, in the order of their numbers.

    Special tokens are none of them. state: the tokenizer, see `Tokenization`.
    """
    content = json.loads(state)
    stored = content["model"]["vocab"]
    pairs = stored.items() if isinstance(stored, dict) else [(entry[0], row) for row, entry in enumerate(stored)]
    special = {token["content"] for token in content.get("added_tokens") or ()}
    ordered = [token for token, _ in sorted(pairs, key=lambda pair: pair[1]) if token not in special]
    marked = [token for token in ordered if token.startswith(BEGINNINGS)]
    words = [token[1:] for token in marked] if marked else [t for t in ordered if not t.startswith(CONTINUED)]
    found = tuple(word for word in words if word.strip() and word.isprintable())
    return found or tuple(ordered)
