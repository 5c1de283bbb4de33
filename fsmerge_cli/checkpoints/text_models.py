"""Text encoders in folders of transformers: their options, and their tensors under fsmerge's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from fsmerge_cli.architectures.bert import BERT, NAMES, NO_LAYER, Names, TextArch
from fsmerge_cli.architectures.bert.family import POOLING
from fsmerge_cli.architectures.family import Family
from fsmerge_cli.architectures.modernbert import MODERNBERT
from fsmerge_cli.checkpoints.modernbert import of_language_model
from fsmerge_cli.checkpoints.modernbert import options as modern_options
from fsmerge_cli.checkpoints.other_text_models import ENCODERS
from fsmerge_cli.checkpoints.prefixes import EMA, strip, unwrapped
from fsmerge_cli.checkpoints.sentence_modules import KEY, Modules, read_modules
from fsmerge_cli.checkpoints.text_sizes import require_classes, stated_options
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import brief, few
from fsmerge_cli.models.dense import Dense
from fsmerge_cli.models.source_spec import SourceSpec

OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
"""Names of norms in checkpoints that were converted from TensorFlow."""

CONSTANT = re.compile(r"(^|\.)embeddings\.(position_ids|token_type_ids)$")

PRETRAINING = re.compile(
    r"(^|\.)(cls|lm_head|vocab_(transform|layer_norm|projector)|generator_\w+|discriminator_predictions)\."
)
"""Heads of pretraining, which no task uses."""

OF_TOKENS = "ForTokenClassification"

TASKS = (
    "ForSequenceClassification",
    OF_TOKENS,
    "Model",
    "ForPreTraining",
    "ForMaskedLM",
    "ForNextSentencePrediction",
)
"""Ends of the classes that are read: classifiers of texts and of tokens, and encoders without a head of a task."""

OTHER_TASKS = {
    "ForQuestionAnswering": "a model for question answering, whose features are one vector per token",
    "ForMultipleChoice": "a model for multiple choice, which reads several texts at a time",
    "ForCausalLM": "a decoder",
    "LMHeadModel": "a decoder",
}

FAMILIES: Mapping[str, Family] = {own.name: own for own in (BERT, MODERNBERT)}
"""The families of text encoders, by name."""


def text_family(model_type: str) -> Family:
    """The family of a `model_type` in a config.json."""
    return FAMILIES.get(model_type, BERT)


def is_text(spec: SourceSpec, config: Mapping[str, Any]) -> bool:
    """Whether an entry is a text encoder: by its family, or by the model_type in its config.json."""
    if isinstance(spec.arch, dict) and spec.arch.get("family") in FAMILIES:
        return True
    return isinstance(config.get("model_type"), str) and config["model_type"] in NAMES


NUMBER = ("value",)
"""What a predicted number is called where nothing states its name."""


OF_NUMBERS = (
    "its head predicts a number (regression): it is measured by its correlations with the labels, and has no part "
    "in joint accuracy"
)
"""A note on such a head."""


def predicts_a_number(spec: SourceSpec, config: Mapping[str, Any], weight: Tensor) -> bool:
    """Whether a head of a text encoder is a regression: as stated, or one output, as in transformers."""
    if not is_text(spec, config):
        return False
    stated = str(config.get("problem_type") or "").lower()
    return stated == "regression" or (not stated and weight.ndim == 2 and len(weight) == 1)


@dataclass(frozen=True)
class TextModel:
    """The tensors of one encoder under fsmerge's names, its head, and notes.

    head: `weight` and `bias`; empty: there is none. prefix: of the encoder in the file. dense: layers behind its
    pooled features.
    """

    arch: Any
    tensors: Mapping[str, Tensor]
    head: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    prefix: str = ""
    dense: tuple[Dense, ...] = ()


def read_text_model(
    spec: SourceSpec, config: Mapping[str, Any], stored: Mapping[str, Tensor], where: str, own_heads: bool
) -> TextModel:
    """The encoder of an entry. Raises SourceError.

    stored: its tensors without the names of wrappers. own_heads: whether its heads lie in heads.safetensors.
    """
    given = {k: v for k, v in spec.arch.items() if k != "family"} if isinstance(spec.arch, dict) else {}
    modern = isinstance(spec.arch, dict) and spec.arch.get("family") == MODERNBERT.name
    kind = MODERNBERT.name if modern else str(given.get("model_type", config.get("model_type")))
    if kind not in NAMES:
        raise SourceError(f"{where}: model_type {brief(kind)} is no text encoder that can be merged. {ENCODERS}")
    _refuse_variants(config, NAMES[kind], where)
    of_tokens = reads_tokens(config, given)
    names = NAMES[kind].of("tokens" if of_tokens else "first")
    found = _split(spec, stored, names, where)
    _refuse_targets(config, where)
    require_classes(config, found.head, where)
    if found.head and not (own_heads or of_tokens or names.pooler_weight in found.tensors):
        raise SourceError(
            f"{where}: there is a head and no pooler ({names.pooled}), so this is no sequence classifier of "
            f"transformers, and its config.json does not state a token classifier. {ENCODERS}"
        )
    family = text_family(kind)
    read = modern_options if family is MODERNBERT else partial(stated_options, kind)
    options = given or read(config, found.tensors, where, of_tokens)
    arch = family.parse(family.name, options, config, f"{where}: config.json")
    folder = config.get(KEY)
    if folder is None or found.head or spec.head is not None or own_heads:
        return replace(found, arch=arch)
    headers = any(tensor.is_meta for tensor in stored.values())
    return _embedding_model(spec, replace(found, arch=arch), read_modules(folder, where, arch.features, headers))


def reads_tokens(config: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether the features are one vector per token: as the given options or else config.json state."""
    if given:
        return given.get("pooling") == "tokens"
    kinds = [str(name) for name in config.get("architectures") or ()]
    return config.get(POOLING) == "tokens" or any(name.endswith(OF_TOKENS) for name in kinds)


def _embedding_model(spec: SourceSpec, found: TextModel, modules: Modules) -> TextModel:
    """With the features that sentence-transformers computes, which leaves a pooler out."""
    pooler = NAMES[found.arch.model_type].pooler
    kept = {name: tensor for name, tensor in found.tensors.items() if not name.startswith(f"{pooler}.")}
    what = "the mean of the tokens" if modules.pooling == "mean" else "the first token"
    notes = [f"'{spec.name}': its features are {what}, as its modules.json states (sentence-transformers)"]
    if modules.dense:
        units = len(modules.dense[-1].weight)
        notes.append(
            f"'{spec.name}': its embeddings have {units} units, behind a Dense of its features; it is kept beside "
            "the merged encoder, and the agreement with the source is that of embeddings"
        )
    arch = replace(found.arch, pooler=False, pooling=modules.pooling, unit_length=modules.unit_length)
    return replace(found, arch=arch, tensors=kept, notes=(*found.notes, *notes), dense=modules.dense)


def _split(spec: SourceSpec, stored: Mapping[str, Tensor], names: Names, where: str) -> TextModel:
    """Backbone and head among the tensors of a file, under fsmerge's names."""
    tensors = {_modern(name): tensor for name, tensor in stored.items() if not CONSTANT.search(name)}
    predicting = names.pooler_norm and of_language_model(tensors)
    anchor = f"{names.word}.weight"
    prefix = strip(tensors, anchor, where, spec.prefix, spec.ema).prefix
    scope = prefix.removesuffix(names.prefix)
    own: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    predictor: list[str] = []
    pooled = any(name.startswith(f"{scope}{names.pooled}.") for name in tensors)
    runs_none = pooled or names.pooled == NO_LAYER
    for name, tensor in tensors.items():
        inner = name.removeprefix(prefix) if name.startswith(prefix) else ""
        if predicting and name.startswith((f"{scope}{names.pooled}.", f"{scope}decoder.")):
            predictor.append(name)
        elif pooled and name.startswith(f"{scope}{names.pooled}."):
            own[names.pooler + name.removeprefix(f"{scope}{names.pooled}")] = tensor
        elif name.startswith(f"{scope}{names.head}."):
            head[name.removeprefix(f"{scope}{names.head}.")] = tensor
        elif runs_none and inner.startswith("pooler."):  # of the encoder, which the classifier does not run
            rest[name] = tensor
        elif name.startswith(prefix) and not PRETRAINING.search(name):
            own[name.removeprefix(prefix)] = tensor
        else:
            rest[name] = tensor
    copies = [name for name in rest if EMA.search(name)]
    poolers = [name for name in rest if name.startswith(f"{prefix}pooler.")]
    unknown = [name for name in rest if not PRETRAINING.search(name) and name not in (*copies, *poolers)]
    if unknown:
        raise SourceError(
            f"{where} contains tensors that are no part of {names.title} and its classifier: "
            f"{few(sorted(unknown))}. {ENCODERS}"
        )
    notes: tuple[str, ...] = ()
    if rest or predictor:
        notes = (f"'{spec.name}': not used, no part of the features: {few(sorted([*rest, *predictor]))}",)
    placeholder = TextArch("bert", 1, 1, 1, 1, 1)
    return TextModel(placeholder, own, head, notes, prefix)


def _modern(name: str) -> str:
    name = unwrapped(name)
    for old, new in OLD_NAMES:
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _refuse_variants(config: Mapping[str, Any], names: Names, where: str) -> None:
    kinds = [str(name) for name in config.get("architectures") or ()]
    for name in kinds:
        what = next((text for end, text in OTHER_TASKS.items() if name.endswith(end)), None)
        if what is None and not name.endswith(TASKS):
            what = "not read by fsmerge"
        if what is not None:
            raise SourceError(f"{where} is {name}: {what}. {ENCODERS}")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise SourceError(f"{where} is a decoder (is_decoder in config.json). {ENCODERS}")
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise SourceError(
            f"{where} has position_embedding_type {brief(positions)}, which belongs to pairs of tokens. Only "
            f"{names.title} with absolute positions can be merged."
        )


def _refuse_targets(config: Mapping[str, Any], where: str) -> None:
    """Raise SourceError for a head that predicts several labels at once."""
    if str(config.get("problem_type") or "").lower() == "multi_label_classification":
        raise SourceError(
            f"{where} predicts several labels per text (problem_type in config.json). fsmerge evaluates and "
            "distils one label per text. Remove its head from the file to merge it without one."
        )
