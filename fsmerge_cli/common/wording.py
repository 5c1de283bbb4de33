"""The word for an input: messages and reports are written for images, and say `texts` where these are read."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Literal

from fsmerge_cli.common.progress import Progress

Kind = Literal["image", "text"]
Word = Literal["image", "text", "word"]
"""What is counted: inputs, or the words of texts."""

# Not in the name of a file or folder, nor in "image-net".
WORD = re.compile(r"(?<![\w./\\-])([Ii])mage(s?)\b(?![-/\\]|\.\w)")
QUOTED = re.compile(r"('[^']*'|`[^`]*`|\{[^{}]*\}|data=\S+)")


def worded(text: str, kind: Word) -> str:
    """`text` with the word for this kind of input, outside of quotes, code and placeholders.

    >>> worded("12 test images of 'images': one image each; data=images", "text")
    "12 test texts of 'images': one text each; data=images"
    >>> worded("images/bert/images has other images.", "text")
    'images/bert/images has other texts.'
    """
    if kind == "image":
        return text
    parts = QUOTED.split(text)
    return "".join(part if place % 2 else WORD.sub(partial(_noun, kind), part) for place, part in enumerate(parts))


def worded_progress(progress: Progress, kind: Kind) -> Progress:
    """The callback with the word for this kind of input in the names of phases and in the throughput."""
    if kind == "image":
        return progress
    return lambda event: progress(replace(event, phase=worded(event.phase, kind), noun=worded(event.noun, kind)))


def _noun(kind: Word, found: re.Match[str]) -> str:
    return (kind.capitalize() if found[1] == "I" else kind) + found[2]
