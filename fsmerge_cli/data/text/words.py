"""Texts as their words, with a tag for each: what classifiers of tokens are trained and measured on."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.shown import brief, shown
from fsmerge_cli.data.base import ImageSet, Task
from fsmerge_cli.data.matching import of_task

NO_TAG = (None, "", -1, "-1", -100, "-100")
"""Tags that are none; -100 as transformers marks tokens that are not learned."""


@dataclass(frozen=True)
class Words:
    """A text as its words, in order. As one text they stand with a space between."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        """The words with a space between."""
        return " ".join(self.words)

    @classmethod
    def of(cls, text: Any) -> Words:
        """The words of a text, which white space separates. Raises DataError for a pair of texts."""
        if isinstance(text, Words):
            return text
        if isinstance(text, str):
            return cls(tuple(text.split()))
        raise DataError(
            f"these sources read words, each with its own features, and {brief(text)} is no text. Pass a text, or "
            "its words."
        )


def first_tokens(words: Words, encoding: Any) -> list[tuple[int, int]]:
    """(Place of a token, number of the word) for the first token of every word, in order.

    encoding: of the words as one text, by the library tokenizers. Words of which no token is left have none, and
    neither has the one in which a text begins that is cut there.
    """
    text, ends = str(words), list(itertools.accumulate(len(word) + 1 for word in words.words))
    found: list[tuple[int, int]] = []
    for place, ((start, end), special) in enumerate(zip(encoding.offsets, encoding.special_tokens_mask)):
        if special:
            continue
        # A token of byte-level BPE begins with the space before its word, or is that space.
        start += text[start:end].startswith(" ")
        word = bisect_right(ends, start)
        if not found and encoding.overflowing and start > ends[word - 1] * (word > 0):
            continue
        if word < len(ends) and (not found or word > found[-1][1]):
            found.append((place, word))
    return found


def word_set(
    task: Task,
    rows: Sequence[Any],
    where: str,
    transform: Any,
    notes: Sequence[str],
    names: Sequence[str] = (),
) -> ImageSet:
    """The texts of a task as words, each with the class of its tag (-1: none). Raises DataError.

    rows: with a text or `Words`, and the tags of the words as label (None: none). where: prefix of messages.
    names: of tags that may be of no word among these.
    """
    texts = [_words_of(row) for row in rows]
    tags = [_tags_of(row, own) for row, own in zip(rows, texts)]
    flat = plain_tags(tag for own in tags for tag in own)
    kept, places, found = of_task(task, flat, names or None, where, "words")
    classes = [-1] * len(flat)
    for place, row in zip(places, kept):
        classes[row] = place
    ends = [0, *itertools.accumulate(map(len, tags))]
    labelled = any(place >= 0 for place in classes)
    found = (*found, *_notes(task, rows, labelled))
    return ImageSet(
        len(rows),
        partial(_read, texts),
        transform,
        labelled=labelled,
        notes=(*found, *notes),
        title_of=partial(_title, rows),
        tags=partial(_tags, texts, classes, ends, transform),
    )


def plain_tags(tags: Any) -> list[Any]:
    """Tags as names, or as numbers where all of them are whole numbers; None where there is none."""
    found = [None if tag in NO_TAG else tag for tag in tags]
    texts = [str(tag) for tag in found if tag is not None]
    numbers = all(text.isdecimal() for text in texts)
    return [None if tag is None else int(tag) if numbers else str(tag) for tag in found]


def untagged(read: Callable[[int], Any], transform: Any, i: int) -> list[int]:
    """No class for every word of item i."""
    return [-1] * len(transform.word_numbers(read(i)[0]))


def _words_of(row: Any) -> Words:
    try:
        return Words.of(row.text)
    except DataError as error:
        raise DataError(f"{shown(row.place)}: {error}") from None


def _tags_of(row: Any, words: Words) -> Sequence[Any]:
    """The tag of every word. Raises DataError where they are not as many."""
    if not isinstance(row.label, tuple):
        return (None,) * len(words.words)
    if len(row.label) != len(words.words):
        raise DataError(
            f"{shown(row.place)}: there are {len(words.words)} words and {len(row.label)} tags. Repair the file: "
            "every word has one."
        )
    return row.label


def _notes(task: Task, rows: Sequence[Any], labelled: bool) -> tuple[str, ...]:
    start, found = f"task '{task.name}': " if task.name else "", list[str]()
    if labelled:
        found.append(
            f"{start}the tag of a word is that of its first token, which is learned and measured; its other "
            "tokens have none"
        )
    count = sum(row.label not in (None, "") and not isinstance(row.label, tuple) for row in rows)
    if count:
        found.append(
            f"{start}{count} of {len(rows)} texts have one label, and its source predicts a tag for every word: "
            "these labels are not used"
        )
    return tuple(found)


def _read(texts: Sequence[Words], i: int) -> tuple[Words, int]:
    return texts[i], -1


def _tags(
    texts: Sequence[Words], classes: Sequence[int], ends: Sequence[int], transform: Any, i: int
) -> list[int]:
    return [classes[ends[i] + word] for word in transform.word_numbers(texts[i])]


def _title(rows: Sequence[Any], i: int) -> str:
    place: str = rows[i].place
    return place
