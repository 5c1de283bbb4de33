"""The options of a ModernBERT."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.architectures.bert.arch import Activation
from fsmerge_cli.common.options import FORBID, Count, Flag, Positive, PositiveFloat


@dataclass(frozen=True, config=FORBID)
class ModernArch:
    """Options of a ModernBERT.

    vocab_size: rows of the table of words. hidden_size: width of the blocks. layers, heads: of attention.
    intermediate_size: units of the hidden layer of a block, behind the gate. positions: largest number of tokens.
    padding: number of the padding token. activation: of the gate, by transformers' name; pooler_activation: of the
    pooler. eps: of the norms. full: blocks (from 0) whose attention reads the whole text; the others read up to
    window / 2 tokens on each side. theta, local_theta: base of the rotary positions of both. norm_bias,
    attention_bias, mlp_bias, pooler_bias: whether these layers have one. pooler: whether a layer, its activation
    and a norm lie behind the tokens, as in classifiers. pooling: the features, or what the pooler reads: the first
    token, the mean of all, or every token that is read. unit_length: whether who uses the features divides them by
    their length.
    """

    vocab_size: Positive
    hidden_size: Positive
    layers: Positive
    heads: Positive
    intermediate_size: Positive
    full: tuple[Count, ...] = (0,)
    model_type: Literal["modernbert"] = "modernbert"
    positions: Positive = 8192
    padding: Count = 0
    activation: Activation = "gelu"
    pooler_activation: Activation = "gelu"
    eps: PositiveFloat = 1e-5
    window: Positive = 128
    theta: PositiveFloat = 160_000.0
    local_theta: PositiveFloat = 10_000.0
    norm_bias: Flag = False
    attention_bias: Flag = False
    mlp_bias: Flag = False
    pooler_bias: Flag = False
    pooler: Flag = True
    pooling: Literal["first", "mean", "tokens"] = "first"
    unit_length: Flag = False

    @property
    def features(self) -> int:
        """Width of the features (units)."""
        return self.hidden_size

    @property
    def types(self) -> int:
        """Rows of the table of token types, which there is none of."""
        return 0

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.layers

    @property
    def longest(self) -> int:
        """Largest number of tokens of a text."""
        return self.positions
