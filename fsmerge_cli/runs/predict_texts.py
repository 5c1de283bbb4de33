"""Predictions of a written text encoder: for texts, and for the lines of .txt files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.foreign_files import UnreadableError, lines_of, read_text
from fsmerge_cli.common.inputs import Inputs, stack
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.common.shown import shown
from fsmerge_cli.data.base import Transform
from fsmerge_cli.data.text.tokens import ToTokens
from fsmerge_cli.data.text.words import Words
from fsmerge_cli.runs.predict import BATCH, Prediction


@dataclass(frozen=True)
class Tagged:
    """The words of one text, and the prediction for each (None: it was cut off, or no token is left of it)."""

    words: tuple[str, ...]
    predictions: tuple[Prediction | None, ...]

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The most probable tag of every word."""
        return tuple(None if own is None else own.label for own in self.predictions)

    def __repr__(self) -> str:
        """The words with their tags."""
        return f"Tagged({' '.join(f'{word}/{label}' for word, label in zip(self.words, self.labels))})"


def tagged(texts: Sequence[Any], predictions: Sequence[Prediction], transform: ToTokens) -> list[Tagged]:
    """The predictions for the words that are read, text by text."""
    found, rest = [], iter(predictions)
    for text in texts:
        words, numbers = Words.of(text).words, {*transform.word_numbers(text)}
        found.append(Tagged(words, tuple(next(rest) if i in numbers else None for i in range(len(words)))))
    return found


def is_one_text(texts: Any) -> bool:
    """Whether it is one text, or one pair of texts as a tuple, not several."""
    return isinstance(texts, str | tuple | Words)


def text_batches(texts: Any, transform: Transform) -> Iterator[Inputs]:
    """The tokens of at most BATCH texts at a time. Raises DataError."""
    if not isinstance(texts, list):
        raise DataError(
            f"a text should be a string, a pair of strings, or a list of them, got {type(texts).__name__}."
        )
    for start in range(0, len(texts), BATCH):
        yield stack([transform(text) for text in texts[start : start + BATCH]])


def texts_in(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The texts of a command line, and the files that were read: every line of a .txt file is a text.

    Raises DataError where a file cannot be read, or where there is no text.
    """
    texts: list[str] = []
    files: list[Path] = []
    for argument in arguments:
        path = Path(argument).expanduser() if argument.lower().endswith(".txt") else None
        if path is None:
            _refuse_path(argument)
            texts.append(argument)
            continue
        try:
            texts += [line for line in lines_of(read_text(path)) if line.strip()]
        except UnreadableError as error:
            raise DataError(
                f"{shown(path)} cannot be read: {error.why}. Give texts in quotes, or .txt files of one text "
                "per line."
            ) from None
        files.append(path)
    if not texts:
        raise DataError("there is no text. Give texts in quotes, or .txt files of one text per line.")
    return texts, files


def _refuse_path(text: str) -> None:
    """Raise DataError for a file or folder, whose name would be taken for a text."""
    try:
        exists = Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a path, for example
        return
    if text.strip() and exists:
        raise DataError(
            f"{shown(text)} is a path, and not a .txt file of one text per line. Save its texts as such a file, "
            "or give texts in quotes."
        )


def text_predictions(
    model: Any, texts: Sequence[str], task: str | None, top_k: int, progress: Progress = silent
) -> list[Any]:
    """The predictions of a `Merged` model for texts, or for their words (`Tagged`)."""
    found: list[Any] = []
    for start in range(0, len(texts), BATCH):
        found += model.predict(list(texts[start : start + BATCH]), task, top_k)
        progress(Event("predict", min(start + BATCH, len(texts)), len(texts)))
    return found
