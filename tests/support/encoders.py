"""Tiny text encoders of every kind, random texts, and transformers' own models with the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fsmerge_cli.architectures.bert import BERT, NAMES, TextArch
from fsmerge_cli.architectures.modernbert import ModernArch
from fsmerge_cli.checkpoints.text_models import text_family
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.inputs import NamedTensors
from fsmerge_cli.data.draw import Images
from fsmerge_cli.data.text.grammar import KINDS, words
from fsmerge_cli.data.text.sentences import Sentences, vocabulary
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.problem import Problem

TOKENS = {"pooler": False, "pooling": "tokens"}

VARIANTS: dict[str, dict[str, Any]] = {
    "BERT": {"model_type": "bert"},
    "BERT without pooler, tanh-GELU": {"model_type": "bert", "pooler": False, "activation": "gelu_new"},
    "BERT, mean of the tokens": {"model_type": "bert", "pooler": False, "pooling": "mean"},
    "RoBERTa": {"model_type": "roberta", "types": 1, "padding": 1},
    "DistilBERT": {"model_type": "distilbert", "types": 0},
    "ELECTRA": {"model_type": "electra", "embedding_size": 8},
    "ModernBERT": {"model_type": "modernbert"},
    "ModernBERT, mean, biases": {
        "model_type": "modernbert",
        "pooling": "mean",
        **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "pooler_bias"), True),
    },
    "ModernBERT without pooler": {"model_type": "modernbert", "pooler": False},
    "BERT, tokens": {"model_type": "bert", **TOKENS},
    "DistilBERT, tokens": {"model_type": "distilbert", "types": 0, **TOKENS},
}


CLASSIFIERS = [name for name, own in VARIANTS.items() if own.get("pooler", True) or own.get("pooling") == "tokens"]
"""Those of which transformers has classifiers, of texts or of tokens."""

MORE_VARIANTS: dict[str, dict[str, Any]] = {
    "XLM-R": {"model_type": "xlm-roberta", "types": 1, "padding": 1},
    "RoBERTa, tokens": {"model_type": "roberta", "types": 1, "padding": 1, **TOKENS},
    "ELECTRA, tokens": {"model_type": "electra", "embedding_size": 8, **TOKENS},
    "ModernBERT, tokens": {"model_type": "modernbert", "pooling": "tokens"},
}
"""Classifiers that differ from some of VARIANTS only in names and in what they read."""


def arch_of(variant: str, **options: Any) -> Any:
    """Two blocks, width 16, four heads."""
    tiny = {"vocab_size": 40, "hidden_size": 16, "layers": 2, "heads": 4, "intermediate_size": 24, "positions": 20}
    own = {**tiny, **{**VARIANTS, **MORE_VARIANTS}[variant], **options}
    return ModernArch(**{"window": 4, **own}) if own["model_type"] == "modernbert" else TextArch(**own)


def encoder_source(variant: str, seed: int, classes: int = 3, **options: Any) -> Source:
    """An encoder with random values in every tensor, norms included."""
    arch = arch_of(variant, **options)
    random = torch.Generator().manual_seed(seed)
    weights = {
        n: 0.3 * torch.randn(t.shape, generator=random)
        + (1.0 if "norm" in n.lower() and n.endswith("weight") else 0.0)
        + (2.0 if n == "pre_classifier.bias" else 0.0)  # no unit of the ReLU is dead
        for n, t in text_family(arch.model_type).skeleton(arch).state_dict().items()
    }
    labels = tuple(f"{seed}-{c}" for c in range(classes))
    weight, bias = torch.randn(classes, arch.features, generator=random), torch.randn(classes, generator=random)
    head = Head(weight, bias, labels)
    return Source(f"s{seed}", text_family(arch.model_type), arch, weights, head, origin="random", sha256="0" * 64)


def texts(arch: Any, count: int, seed: int = 0) -> NamedTensors:
    """Random texts of random lengths."""
    return BERT.sample(arch, count, torch.Generator().manual_seed(seed))  # type: ignore[return-value]


def text_problem(sources: list[Source], per_task: int = 8, width: int | None = None) -> Problem:
    """A merge of the sources with random texts of every task."""
    task = torch.arange(len(sources)).repeat_interleave(per_task)
    inputs = texts(sources[0].arch, len(task))
    images = Images(inputs, task, torch.arange(len(task)), torch.arange(0))
    return Problem(compile_plan(sources, width), sources, images, Hardware(features="memory"))


def transformers_model(source: Source) -> Any:
    """transformers' classifier of texts, or of tokens, with the weights of a source."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

    names, head = NAMES[source.arch.model_type].of(source.arch.pooling), source.head
    of_tokens = source.arch.pooling == "tokens"
    stated = source.family.config(source.arch).items()
    config = {k: v for k, v in stated if k not in ("architecture", "architectures")}
    assert head is not None
    auto = AutoModelForTokenClassification if of_tokens else AutoModelForSequenceClassification
    module = auto.from_config(
        AutoConfig.for_model(**config, num_labels=len(head.weight)), attn_implementation="eager"
    ).eval()
    state = {names.in_classifier(n): tensor for n, tensor in source.weights.items()}
    module.load_state_dict({**state, f"{names.head}.weight": head.weight, f"{names.head}.bias": head.bias})
    return module


WORD_TAGS = {"length": ("long", "short"), "letter": ("O", "A", "E")}
"""Two tasks of words, with their tags."""


def tag_of(task: str, word: str) -> str:
    """The tag of a word."""
    if task == "length":
        return "long" if len(word) > 4 else "short"
    return "A" if word[0] in "aeiou" else "E" if word.endswith("e") else "O"


def tagged_texts(folder: Path, count: int = 24) -> Path:
    """TASK/train.jsonl and TASK/test.jsonl of random words with their tags."""
    known = words()
    for seed, task in enumerate(WORD_TAGS):
        own = folder / task
        own.mkdir(parents=True)
        for split, size in (("train", count), ("test", count // 2)):
            random = torch.Generator().manual_seed(2 * seed + (split == "test"))
            lengths = torch.randint(2, 8, (size,), generator=random).tolist()
            rows = [
                [known[i] for i in torch.randint(len(known), (n,), generator=random).tolist()] for n in lengths
            ]
            lines = [json.dumps({"tokens": row, "tags": [tag_of(task, word) for word in row]}) for row in rows]
            (own / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def save_encoder(folder: Path, source: Source) -> Path:
    """A folder as save_pretrained of a classifier and of its tokenizer write it."""
    module = transformers_model(source)
    assert source.labels is not None
    module.config.id2label = dict(enumerate(source.labels))
    module.config.label2id = {label: row for row, label in enumerate(source.labels)}
    module.config.problem_type = "regression" if len(source.labels) == 1 else None
    module.save_pretrained(folder)
    return with_tokenizer(folder)


def with_tokenizer(folder: Path) -> Path:
    """The folder with the tokenizer of the generated sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in Sentences.tokenization().files.items():
        (folder / name).write_bytes(content)
    return folder


def sentence_source(variant: str, seed: int, labels: tuple[str, ...], **options: Any) -> Source:
    """A random encoder for the vocabulary of the generated sentences; one label: it predicts a number."""
    size = len(vocabulary())
    source = encoder_source(variant, seed, len(labels), vocab_size=size, positions=66, **options)
    assert source.head is not None
    return replace(source, head=replace(source.head, labels=labels, regression=len(labels) == 1))


TOPIC, POLARITY = KINDS["topic"], KINDS["polarity"]


def sentence_pair(
    folder: Path, variant: str, tasks: Mapping[str, tuple[str, ...]] | None = None
) -> list[dict[str, str]]:
    """Folders of two random encoders, one for each task, as entries of a merge.

    tasks: labels by name (None: those of the generated sentences).
    """
    entries = []
    for seed, (name, labels) in enumerate((tasks or {"topic": TOPIC, "polarity": POLARITY}).items(), 1):
        save_encoder(folder / name, sentence_source(variant, seed, labels))
        entries.append({"name": name, "checkpoint": str(folder / name)})
    return entries
