"""Sentences that the project generates itself, with a WordPiece vocabulary of its own."""

from __future__ import annotations

import json
import string
from functools import cache, partial
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.options import FORBID
from fsmerge_cli.data.base import DataConfig, ImageSet, Split, Task, Transform
from fsmerge_cli.data.text.grammar import KINDS, sentence, words
from fsmerge_cli.models.tokenization import Tokenization

COUNTS = {"train": 2000, "test": 500}
"""Sentences of each label set by split."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = ("ing", "ed", "er", "est", "ly", "ness", "ful", "less")
LONGEST = 64
"""Tokens of a text that the embedded encoders take."""


@dataclass(frozen=True, config=FORBID)
class Sentences(DataConfig):
    """Generated sentences of the label sets `topic` (sports, food, travel, music) and `polarity`."""

    kind: ClassVar[Literal["image", "text", "any"]] = "text"

    name: Literal["sentences"] = "sentences"

    @classmethod
    def label_sets(cls) -> dict[str, tuple[str, ...]]:
        """Topic and polarity."""
        return dict(KINDS)

    @classmethod
    def tokenization(cls) -> Tokenization:
        """WordPiece on the words of the grammars, word endings and single letters."""
        return _tokenization()

    def build(self, split: Split, task: Task, transform: Transform) -> ImageSet:
        """Sentences of the label set of a task, equally many per label; those of the splits differ."""
        kind = next((name for name, own in KINDS.items() if task.labels and {*task.labels} <= {*own}), None)
        if kind is None or task.labels is None:
            sets = "; ".join(f"{name}: {', '.join(own)}" for name, own in KINDS.items())
            raise DataError(
                f"data=sentences: the labels of task '{task.name}' are {list(task.labels or ())}, and the "
                f"data set has {sets}. Pass models.sources.N.labels=[...] or another data=..."
            )
        labels = task.labels
        classes = [i % len(labels) for i in range(COUNTS[split])]
        return ImageSet(
            len(classes), partial(_read, kind, labels, split), transform, labelled=True, classes=classes
        )


def _read(kind: str, labels: tuple[str, ...], split: str, i: int) -> tuple[str, int]:
    place = i % len(labels)
    return sentence(kind, labels[place], i // len(labels), split), place


def vocabulary() -> list[str]:
    """The tokens in the order of their numbers."""
    letters = [*string.ascii_lowercase, *string.digits, *".,!?'-"]
    pieces = [f"##{piece}" for piece in (*string.ascii_lowercase, *string.digits, *PIECES)]
    return list(dict.fromkeys([*SPECIAL, *letters, *pieces, *words()]))


@cache
def _tokenization() -> Tokenization:
    """The tokenizer as transformers' BERT has it."""
    try:
        from tokenizers import BertWordPieceTokenizer
    except ImportError:
        raise DataError(
            "data=sentences needs the package tokenizers, which is not installed: pip install 'fsmerge[text]'"
        ) from None
    found = BertWordPieceTokenizer({token: row for row, token in enumerate(vocabulary())}, lowercase=True)
    found.no_padding()
    found.no_truncation()
    state = json.dumps(json.loads(found.to_str()), sort_keys=True)
    stated = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": LONGEST,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    }
    files = {"tokenizer.json": state, "tokenizer_config.json": json.dumps(stated, indent=2)}
    files["vocab.txt"] = "\n".join(vocabulary()) + "\n"
    return Tokenization(state, {name: content.encode() for name, content in files.items()}, LONGEST)
