"""The start of a training of a text encoder: its tokenizer, its pooler, random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fsmerge_cli.architectures.bert import NAMES
from fsmerge_cli.architectures.bert.module import START
from fsmerge_cli.checkpoints.architecture import architecture
from fsmerge_cli.checkpoints.files import tensors_sha256
from fsmerge_cli.checkpoints.load import tokenization
from fsmerge_cli.checkpoints.open import TOKENIZER
from fsmerge_cli.checkpoints.text_models import FAMILIES
from fsmerge_cli.checkpoints.tokenizer import given_tokenizer, require_vocabulary
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.seeding import derive, generator
from fsmerge_cli.data import DataConfig
from fsmerge_cli.data.text.tokens import padding_of, vocabulary_size
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.finetune_labels import Predicts
from fsmerge_cli.training.finetuning_options import TrainingOptions

OF_IMAGES = ("mixup", "cutmix", "randaugment", "stochastic_depth", "patch_drop")
"""Options of the training that only exist for images and their networks."""


def is_text(arch: Any) -> bool:
    """Whether `model.arch` is the one of a text encoder."""
    return isinstance(arch, Mapping) and arch.get("family") in FAMILIES


def require_text_options(training: TrainingOptions) -> None:
    """Raise ConfigError for an option of images."""
    if given := [f"training.{name}" for name in OF_IMAGES if getattr(training, name)]:
        raise ConfigError(
            f"{', '.join(given)}: only for images, and this model reads texts. Leave it out; data.augment=strong "
            "hides or replaces a random share of the tokens at every step."
        )


def read_as(source: Source, predicts: Predicts, seed: int) -> Source:
    """The same encoder with the features that transformers' classifiers read: of every word, or pooled ones.

    A new pooler gets random weights. Classifiers of tokens have none, except that of ModernBERT.
    """
    names, arch = NAMES[source.arch.model_type], reading_arch(source.arch, predicts)
    dropped = [name for name in source.weights if not arch.pooler and name.startswith(f"{names.pooler}.")]
    random, own = generator(seed, "finetune", "pooler"), {}
    for key, tensor in source.family.skeleton(arch).state_dict().items():
        if key not in source.weights and key.startswith(f"{names.pooler}."):
            start = START * torch.randn(tensor.shape, generator=random) if tensor.ndim == 2 else None
            own[key] = torch.full(tensor.shape, float(key.endswith("weight"))) if start is None else start
    notes = source.notes
    if own:
        what = f"its files have no pooler, so that {names.pooler} starts from random weights"
        notes = (*notes, f"'{source.name}': {what}")
    if dropped:
        what = f"not used, no part of the features of words: {', '.join(dropped)}"
        notes = (*notes, f"'{source.name}': {what}")
    kept = {name: tensor for name, tensor in source.weights.items() if name not in dropped}
    return replace(source, arch=arch, weights={**kept, **own}, notes=notes)


def reading_arch(arch: Any, predicts: Predicts) -> Any:
    """The options of the encoder with these features, see `read_as`."""
    if predicts == "tags":
        return replace(arch, pooler=NAMES[arch.model_type].pooler_norm, pooling="tokens", unit_length=False)
    if arch.pooler and arch.pooling != "tokens":
        return arch
    return replace(arch, pooler=True, pooling="first")


def random_encoder(
    spec: SourceSpec, tokenizer: str | None, data: DataConfig, predicts: Predicts, seed: int, where: str
) -> Source:
    """Random weights for the tokenizer in a folder, or for that of the data set (None).

    The size of the vocabulary and the number of the padding token are those of the tokenizer, where `spec.arch`
    does not state others. Raises ConfigError, SourceError.
    """
    own = data.of(spec.name).tokenization() if tokenizer is None else given_tokenizer(tokenizer, where)
    if own is None:
        raise ConfigError(
            "model.tokenizer is missing: random weights of a text encoder need the folder of a tokenizer "
            "(tokenizer.json)."
        )
    found = tokenization(spec, {TOKENIZER: own}, where)
    known = {"vocab_size": vocabulary_size(found.state), "padding": padding_of(found.state)}
    family, arch = architecture(replace(spec, arch={**known, **dict(spec.arch or {})}), {}, where)  # type: ignore[arg-type]
    require_vocabulary(found, arch.vocab_size, where)
    arch = reading_arch(arch, predicts)
    with torch.random.fork_rng(devices=[]):  # layers sample initial weights from the global generator
        torch.manual_seed(derive(seed, "finetune", "start"))
        weights = family.build(arch).state_dict()
    digest = tensors_sha256(weights)
    return Source(spec.name, family, arch, weights, None, "random weights", digest, found)
