"""The options of a text encoder."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.architectures.bert.names import NAMES
from fsmerge_cli.common.options import FORBID, Count, Flag, Positive, PositiveFloat

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"]
"""Activations by transformers' names."""


@dataclass(frozen=True, config=FORBID)
class TextArch:
    """Options of a text encoder.

    model_type: bert, roberta, xlm-roberta, distilbert or electra. vocab_size, positions, types: rows of the tables
    of words, positions and token types (types 0: there is no such table). hidden_size: width of the blocks.
    embedding_size: width of the tables (null: hidden_size; only ELECTRA has others). layers, heads: of attention.
    intermediate_size: units of the hidden layer of a block. activation: in a block, by transformers' name. eps: of
    the norms. padding: number of the padding token. pooler: whether there is a layer on the first token, whose
    output are the features; otherwise they are the first token, or the mean of all tokens, or every token that is
    read (pooling).
    unit_length: whether who uses the features divides them by their length.
    """

    model_type: Literal["bert", "roberta", "xlm-roberta", "distilbert", "electra"]
    vocab_size: Positive
    hidden_size: Positive
    layers: Positive
    heads: Positive
    intermediate_size: Positive
    positions: Positive = 512
    types: Count = 2
    embedding_size: Positive | None = None
    activation: Activation = "gelu"
    eps: PositiveFloat = 1e-12
    padding: Count = 0
    pooler: Flag = True
    pooling: Literal["first", "mean", "tokens"] = "first"
    unit_length: Flag = False

    @property
    def features(self) -> int:
        """Width of the features (units)."""
        return self.hidden_size

    @property
    def embedded(self) -> int:
        """Width of the tables."""
        return self.embedding_size or self.hidden_size

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.layers

    @property
    def longest(self) -> int:
        """Largest number of tokens of a text."""
        return self.positions - (self.padding + 1 if NAMES[self.model_type].after_padding else 0)
