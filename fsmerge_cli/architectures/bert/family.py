"""The family of text encoders with norms after every sum, as transformers' own classes describe them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fsmerge_cli.architectures.bert.arch import TextArch
from fsmerge_cli.architectures.bert.module import Encoder
from fsmerge_cli.architectures.bert.names import NAMES
from fsmerge_cli.architectures.bert.table import table
from fsmerge_cli.architectures.family import Family
from fsmerge_cli.common.errors import ConfigError, SourceError, first_line
from fsmerge_cli.common.inputs import IDS, MASK, READ, SPECIAL, TYPES, NamedTensors
from fsmerge_cli.common.options import build as build_options

POOLING = "fsmerge_pooling"
"""Key of config.json: the features are the mean of the tokens, or those of every token that is read."""

FEATURES = {"first": "the first token", "mean": "the mean of the tokens", "tokens": "every token"}

SAMPLED_LENGTH = 64
"""Longest random text (tokens)."""


def parse(name: str, options: Mapping[str, Any], config: Mapping[str, Any], where: str) -> TextArch:
    """Options from `{family: bert, ...}`. Raises SourceError where they contradict each other."""
    arch = build_options(TextArch, options, where)
    if arch.hidden_size % arch.heads:
        raise SourceError(
            f"{where}: hidden_size {arch.hidden_size} cannot be divided into {arch.heads} heads. Pass the sizes "
            "of the weights."
        )
    if arch.embedded != arch.hidden_size and NAMES[arch.model_type].project is None:
        raise SourceError(
            f"{where}: embedding_size {arch.embedded} differs from hidden_size {arch.hidden_size}, which only "
            "ELECTRA has."
        )
    if arch.pooling != "first" and arch.pooler:
        how = f"pooling: {arch.pooling}"
        raise SourceError(f"{where}: a pooler reads the first token. Pass pooler: false with {how}.")
    if arch.longest < 1:
        raise SourceError(f"{where}: {arch.positions} positions leave no room for a token.")
    require_buildable(lambda: Encoder(arch), where)
    return arch


def require_buildable(build: Callable[[], nn.Module], where: str) -> None:
    """Raise SourceError where torch cannot make an encoder of these sizes; nothing is allocated."""
    try:
        with torch.device("meta"):
            build()
    except (RuntimeError, TypeError, OverflowError) as error:  # raised by torch for sizes that are too large
        raise SourceError(f"{where}: torch cannot build this encoder ({first_line(error)}).") from None


def resize(arch: TextArch, width: int | tuple[int, ...] | None, heads: int | None) -> TextArch:
    """Options of the merged model. width: of the blocks; hidden layer and tables keep their proportion to it."""
    if isinstance(width, tuple):
        raise ConfigError(f"method.width: a text encoder has one width, got {list(width)}. Give one number.")
    size, count = width or arch.hidden_size, heads or arch.heads
    if size % count:
        raise ConfigError(
            f"method.width={size} cannot be divided into {count} heads. Pass method.heads=... that divides it."
        )

    def scaled(units: int) -> int:
        return max(1, round(units * size / arch.hidden_size))

    embedded = None if arch.embedded == arch.hidden_size else scaled(arch.embedded)
    return replace(
        arch,
        hidden_size=size,
        heads=count,
        intermediate_size=scaled(arch.intermediate_size),
        embedding_size=None if embedded == size else embedded,
    )


def signature(arch: TextArch) -> dict[str, Any]:
    """Properties that all sources have to share; widths and numbers of heads may differ."""
    return {
        "model type": NAMES[arch.model_type].title,
        "layers": arch.layers,
        "size of the vocabulary": arch.vocab_size,
        "positions": arch.positions,
        "token types": arch.types,
        "activation": arch.activation,
        "padding token": arch.padding,
        "features": features_read(arch),
        "projected embeddings": arch.embedded != arch.hidden_size,
    }


def features_read(arch: Any) -> str:
    """What the features of a text encoder are, in words."""
    return FEATURES[arch.pooling] + (" behind a pooler" if arch.pooler else "")


def config(arch: TextArch) -> dict[str, Any]:
    """config.json of transformers' model."""
    names = NAMES[arch.model_type]
    sizes: dict[str, Any] = {"vocab_size": arch.vocab_size, "pad_token_id": arch.padding}
    if arch.model_type == "distilbert":
        sizes |= {
            "dim": arch.hidden_size,
            "n_layers": arch.layers,
            "n_heads": arch.heads,
            "hidden_dim": arch.intermediate_size,
            "max_position_embeddings": arch.positions,
            "activation": arch.activation,
        }
    else:
        sizes |= {
            "hidden_size": arch.hidden_size,
            "num_hidden_layers": arch.layers,
            "num_attention_heads": arch.heads,
            "intermediate_size": arch.intermediate_size,
            "max_position_embeddings": arch.positions,
            "type_vocab_size": arch.types,
            "hidden_act": arch.activation,
            "layer_norm_eps": arch.eps,
        }
    if arch.model_type == "electra":
        sizes |= {"embedding_size": arch.embedded}
    if arch.pooling != "first":
        sizes |= {POOLING: arch.pooling}
    return {
        "architecture": arch.model_type,
        "model_type": arch.model_type,
        "architectures": [names.model],
        **sizes,
    }


def sample(arch: Any, count: int, random: torch.Generator | None) -> NamedTensors:
    """Texts of random tokens and lengths; without a generator one length, on the meta device."""
    longest = min(arch.longest, SAMPLED_LENGTH)
    if random is None:
        empty = torch.empty(count, longest, dtype=torch.long, device="meta")
        return NamedTensors({IDS: empty, MASK: empty, TYPES: empty, SPECIAL: empty})
    ids = torch.randint(arch.vocab_size, (count, longest), generator=random)
    lengths = torch.randint(1, longest + 1, (count, 1), generator=random)
    mask = (torch.arange(longest)[None] < lengths).long()
    zeros = torch.zeros_like(ids)
    read = {READ: mask} if arch.pooling == "tokens" else {}
    return NamedTensors({IDS: ids * mask, MASK: mask, TYPES: zeros, SPECIAL: zeros, **read})


SNIPPET = """from safetensors.torch import load_file
import torch
from transformers import AutoModel, AutoTokenizer

backbone, tokenizer = AutoModel.from_pretrained(".").eval(), AutoTokenizer.from_pretrained(".")
heads = load_file("heads.safetensors")

{head}
texts = tokenizer(["a text"], return_tensors="pt")
logits = head({features})"""


def snippet(arch: TextArch, head: str) -> str:
    """Python that loads a merged encoder with transformers."""
    names = NAMES[arch.model_type]
    found = "backbone(**texts)"
    features = f"{found}.pooler_output" if arch.pooler else f"{found}.last_hidden_state[:, 0]"
    if arch.pooling == "tokens":
        features = f"{found}.last_hidden_state"
    if arch.pooling == "mean":
        used = "texts['attention_mask'][..., None]"
        features = f"({found}.last_hidden_state * {used}).sum(1) / {used}.sum(1)"
    if arch.pooler and not names.in_base:
        lines = [
            f'weights = load_file("model.safetensors")  # {names.title} has this layer only in its classifiers',
            f'W, b = weights["{names.pooler}.weight"], weights["{names.pooler}.bias"]',
        ]
        head = "\n".join([*lines, head])
        function = {"relu": "relu", "gelu": "gelu"}[names.pooling]
        features = f"torch.nn.functional.{function}({found}.last_hidden_state[:, 0] @ W.T + b)"
    return SNIPPET.format(head=head, features=features)


def block_names(module: nn.Module) -> list[str]:
    """Paths of the blocks."""
    encoder: Any = module
    arch: TextArch = encoder._arch
    return [NAMES[arch.model_type].block.format(i=i) for i in range(arch.layers)]


BERT = Family(
    name="bert",
    arch=TextArch,
    build=Encoder,
    resize=resize,
    table=table,
    entry="embeddings.word_embeddings",
    signature=signature,
    config=config,
    parse=parse,
    snippet=snippet,
    head=lambda arch: NAMES[arch.model_type].of(arch.pooling).head,
    heads=lambda arch: arch.heads,
    blocks=block_names,
    layers=block_names,
    kind="text",
    post_norm=True,
    activated_features=True,
    library="transformers",
    sample=sample,
)
