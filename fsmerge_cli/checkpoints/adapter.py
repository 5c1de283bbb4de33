"""LoRA adapters of PEFT: what is in their files, all of it accounted for.

Tensors: lora_A [r, in], lora_B [out, r]; merged: W + alpha / r * B A (other scales as PEFT has them).
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fsmerge_cli.architectures.bert import NAMES
from fsmerge_cli.checkpoints.files import read_config, read_tensors
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.shown import brief, few, shown

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
START = "base_model.model."
"""What PEFT writes before the name of every tensor."""

PARTS = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_magnitude_vector(?:\.weight)?)")
"""Tensors of one adapted layer: its name, the part."""

WRAPPED = re.compile(r"\.(base_layer|modules_to_save)\.")
"""What PEFT writes inside the name of a bias of an adapted layer, and once wrote inside that of a head."""

USED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias")
"""Keys of adapter_config.json that the merged weights depend on."""
CHOICE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Keys that choose the adapted layers."""
OTHERS = frozenset(
    {"peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "bias"}
    | {
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "qalora_group_size",
        "modules_to_save",
        "init_lora_weights",
    }
    | {"runtime_config", "ensure_weight_tying", "eva_config"}
)
"""Keys without effect on how tensors are merged; `bias` and `modules_to_save` are read from the tensors."""
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the weights of the base as they are."""

MAX_RANK = 4096
"""Largest `r` that is read where a pattern gives the ranks."""

CLASSES = ("num_classes", "label_names", "labels", "id2label", "label2id", "num_labels")
"""Keys of config.json that describe the head."""

MERGE = "Merge it with PEFT itself: merge_and_unload() returns the model, whose state_dict() gives the weights."


@dataclass(frozen=True)
class Adapter:
    """config: adapter_config.json. layers: name of a layer -> part -> tensor. whole: other tensors (heads)."""

    config: Mapping[str, Any]
    layers: Mapping[str, Mapping[str, Tensor]]
    whole: Mapping[str, Tensor]

    @property
    def modules(self) -> list[str]:
        """Names of the modules that are replaced, such as a head."""
        return sorted({name.rpartition(".")[0] for name in self.whole})

    @property
    def has_head(self) -> bool:
        """Whether a module with a matrix is replaced: the head, in every known use."""
        return any(tensor.ndim == 2 for tensor in self.whole.values())


def is_adapter(path: Path) -> bool:
    """Whether `path` is the folder of an adapter, or its file of weights."""
    folder = path if path.is_dir() else path.parent
    return os.path.lexists(folder / CONFIG) and (path.is_dir() or path.name in FILES)


def weights_file(path: Path, where: str) -> Path:
    """The file of an adapter's weights. Raises SourceError."""
    names = [name for name in FILES if os.path.lexists(path / name)] if path.is_dir() else []
    if path.is_dir() and not names:
        raise SourceError(f"{where} has an {CONFIG}, but no {FILES[0]}. Save or download the adapter again.")
    return path / names[0] if path.is_dir() else path


def read_adapter(path: Path, where: str, headers: bool = False) -> Adapter:
    """The adapter in a folder. Raises SourceError for what cannot be merged, by name."""
    if not path.exists() or not is_adapter(path):
        raise SourceError(
            f"{where} is no adapter of PEFT (a folder with {CONFIG}), so that models.sources.N.base has no "
            "meaning. Pass the adapter's folder, or remove the key."
        )
    if importlib.util.find_spec("peft") is None:
        raise SourceError(f"{where} is an adapter of PEFT, which merges it: pip install peft")
    config = _checked(read_config(path, where, CONFIG), where)
    tensors = read_tensors(weights_file(path, where), where, headers)[0]
    saved = tuple(config.get("modules_to_save") or ())
    inside = re.compile(rf"(^|\.)({'|'.join(map(re.escape, saved))})\.")
    layers: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        own = WRAPPED.sub(".", name.removeprefix(START))
        if ".original_module." in own:  # of the base, which modules_to_save replaces
            continue
        if found := PARTS.fullmatch(own):
            layers.setdefault(found[1], {})[found[2]] = tensor
        elif (saved and inside.search(own)) or (config.get("bias", "none") != "none" and own.endswith(".bias")):
            whole[own] = tensor
        else:
            unknown.append(name)
    if saved and not any(map(inside.search, whole)):
        raise SourceError(f"{where} has no tensors of its modules_to_save: {few(saved)}. Save it again.")
    if unknown:
        raise SourceError(
            f"{where} has tensors that belong neither to a layer of LoRA nor to modules_to_save: {few(unknown)}. "
            f"{MERGE}"
        )
    half = [n for n, parts in layers.items() if not {"lora_A.weight", "lora_B.weight"} <= parts.keys()]
    if half or not layers:
        what = f"lacks lora_A or lora_B of {few(half)}" if half else "has no layer of LoRA"
        raise SourceError(f"{where} {what}. Save or download the adapter again.")
    adapter = Adapter(config, layers, whole)
    require_ranks(adapter, where)
    return adapter


def _checked(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """adapter_config.json. Raises SourceError for another kind of adapter, and for keys that are not supported."""
    if config.get("peft_type") != "LORA":
        raise SourceError(
            f"{where} is an adapter of PEFT of the type {brief(config.get('peft_type'))}, and only LORA is merged "
            f"here. {MERGE}"
        )
    start = config.get("init_lora_weights", True)
    changed = (
        {} if any(start is plain or start == plain for plain in PLAIN_STARTS) else {"init_lora_weights": start}
    )
    known = {*USED, *CHOICE, *OTHERS}
    changed |= {
        key: value for key, value in config.items() if key not in known and value not in (None, False, {}, [])
    }
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            changed[key] = config[key]
    saved = config.get("modules_to_save")
    if saved is not None and not (isinstance(saved, list) and all(isinstance(name, str) for name in saved)):
        changed["modules_to_save"] = saved
    changed |= {key: value for key, value in _patterns(config) if not _is_quick(value)}
    if changed:
        key, value = next(iter(changed.items()))
        raise SourceError(
            f"{where}: {CONFIG} has {shown(key)}={brief(value)}, which is not supported here. {MERGE}"
        )
    return config


def _patterns(config: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Every regular expression of the configuration, with its key."""
    found: list[tuple[str, object]] = []
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        if isinstance(config.get(key), str):
            found.append((key, config[key]))
    listed = config.get("layers_pattern")
    found += [("layers_pattern", text) for text in (listed if isinstance(listed, list) else ())]
    return found + [(key, p) for key in ("rank_pattern", "alpha_pattern") for p in config.get(key) or {}]


def _is_quick(pattern: object) -> bool:
    """Whether a text is a regular expression that ends soon: no repetition of a group, few repetitions."""
    text = str(pattern)
    try:
        re.compile(text)
    except re.error:
        return False
    return len(text) < 500 and not re.search(r"\)\s*[*+{]", text) and sum(map(text.count, "*+{")) <= 4


def require_ranks(adapter: Adapter, where: str) -> None:
    """Raise SourceError where the ranks of the configuration are not those of the tensors."""
    for name, parts in adapter.layers.items():
        for part, tensor in parts.items():
            if part.startswith("lora_") and part.endswith("weight") and tensor.ndim not in (2, 4):
                raise SourceError(
                    f"{where}: {part} of {shown(name)} has the shape {list(tensor.shape)}, not that of a matrix. "
                    "Save or download the adapter again."
                )
    ranks = {len(parts["lora_A.weight"]) for parts in adapter.layers.values()}
    stated = adapter.config.get("r", 8)
    pattern = adapter.config.get("rank_pattern") or {}
    for rank in (stated, *pattern.values()):
        # With a pattern r may belong to no layer; PEFT compares the ranks of all layers with their tensors.
        most = max(*ranks, MAX_RANK) if pattern and rank is stated else max(ranks)
        if type(rank) is not int or not 1 <= rank <= most or (not pattern and ranks != {rank}):
            raise SourceError(
                f"{where}: {CONFIG} has rank {brief(rank)}, its tensors {', '.join(map(str, sorted(ranks)))}. "
                "They come from different saves: save or download the adapter again."
            )


def config_with(adapter: Adapter, config: Mapping[str, Any], path: Path, where: str) -> dict[str, Any]:
    """The config.json of the base; the classes are those beside the adapter where it has a head of its own.

    Of a text encoder that head classifies texts or tokens, as the adapter states its task.
    """
    if not adapter.has_head:
        return dict(config)
    own = read_config(path, where)
    kept = {n: v for n, v in config.items() if n not in CLASSES} | {n: own[n] for n in CLASSES if n in own}
    names = NAMES.get(str(config.get("model_type")))
    if names is None:
        return kept
    task = names.token_classifier if adapter.config.get("task_type") == "TOKEN_CLS" else names.classifier
    return {**kept, "architectures": [task], "problem_type": own.get("problem_type")}
