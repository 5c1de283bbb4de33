"""An adapter that does not fit its base, or holds what is not merged here, is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fsmerge_cli.common.errors import SourceError
from tests.support.adapters import source, stated, tensors

QKV = "base_model.model.blocks.0.attn.qkv.lora_"
MERGE = "Merge it with PEFT itself: merge_and_unload() returns the model, whose state_dict() gives the weights."
TRAINED = "Pass the base that the adapter was trained on."
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "another kind": (
        stated(peft_type="IA3"),
        f"is an adapter of PEFT of the type 'IA3', and only LORA is merged here. {MERGE}",
    ),
    "a start that changes the base": (
        stated(init_lora_weights="pissa"),
        f": adapter_config.json has init_lora_weights='pissa', which is not supported here. {MERGE}",
    ),
    "a key that changes the sum": (
        stated(use_qalora=True),
        f": adapter_config.json has use_qalora=True, which is not supported here. {MERGE}",
    ),
    "a pattern that takes for ever": (
        stated(target_modules="(a+)+$"),
        f": adapter_config.json has target_modules='(a+)+$', which is not supported here. {MERGE}",
    ),
    "modules of another kind": (
        stated(modules_to_save="head"),
        f": adapter_config.json has modules_to_save='head', which is not supported here. {MERGE}",
    ),
    "a pattern that is none": (
        stated(rank_pattern={"(": 2}),
        f": adapter_config.json has rank_pattern='(', which is not supported here. {MERGE}",
    ),
    "a number for a matrix": (
        tensors(lambda t: t.update({f"{QKV}A.weight": torch.tensor(1.0)})),
        ": lora_A.weight of blocks.0.attn.qkv has the shape [], not that of a matrix. Save or download the "
        "adapter again.",
    ),
    "another rank": (
        stated(r=1_000_000_000),
        ": adapter_config.json has rank 1000000000, its tensors 2. They come from different saves: save or "
        "download the adapter again.",
    ),
    "a tensor that is nothing known": (
        tensors(lambda t: t.update({"base_model.model.blocks.0.prompt": torch.ones(2)})),
        "has tensors that belong neither to a layer of LoRA nor to modules_to_save: "
        f"base_model.model.blocks.0.prompt. {MERGE}",
    ),
    "half a layer": (
        tensors(lambda t: t.pop(f"{QKV}B.weight")),
        "lacks lora_A or lora_B of blocks.0.attn.qkv. Save or download the adapter again.",
    ),
    "a missing layer": (
        tensors(lambda t: [t.pop(f"{QKV}{part}.weight") for part in "AB"]),
        "has no tensors for layers of {base} that its target_modules choose: blocks.0.attn.qkv. Save or download "
        "the adapter again, or pass the base that it was trained on.",
    ),
    "a missing head": (
        tensors(lambda t: [t.pop(f"base_model.model.head.{part}") for part in ("weight", "bias")]),
        "has no tensors of its modules_to_save: head. Save it again.",
    ),
    "layers that the base does not have": (
        tensors(lambda t: [t.update({n.replace("blocks.1", "blocks.9"): t.pop(n)}) for n in [*t] if ".1." in n]),
        ": {base} lacks layers that the adapter changes: blocks.9.attn.qkv, blocks.9.mlp.fc1. " + TRAINED,
    ),
    "layers of another width": (
        tensors(lambda t: t.update({f"{QKV}A.weight": torch.ones(2, 7)})),
        ": lora_A [2, 7] and lora_B [36, 2] of blocks.0.attn.qkv do not fit [36, 12] in {base}. " + TRAINED,
    ),
    "no weights": (
        lambda: Path("adapter/adapter_model.safetensors").unlink(),
        "has an adapter_config.json, but no adapter_model.safetensors. Save or download the adapter again.",
    ),
    "no adapter": (
        lambda: Path("adapter/adapter_config.json").unlink(),
        "is no adapter of PEFT (a folder with adapter_config.json), so that models.sources.N.base has no meaning. "
        "Pass the adapter's folder, or remove the key.",
    ),
}


@pytest.fixture
def place(adapted_place: Path) -> Path:
    return adapted_place


@pytest.mark.full
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, place: Path) -> None:
    change, expected = REFUSED[case]
    change()
    with pytest.raises(SourceError) as error:
        source(place)
    start = f"source 'a': {place}/adapter{'' if expected.startswith(':') else ' '}"
    assert str(error.value) == start + expected.replace("{base}", f"{place}/base")
