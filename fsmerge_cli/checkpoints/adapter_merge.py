"""Merging of a LoRA adapter into its base, by PEFT itself.

Only the adapted layers are built for that, without the rest of the network, so that it works for every layout of
the base.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fsmerge_cli.checkpoints.adapter import CHOICE, CONFIG, START, USED, Adapter
from fsmerge_cli.common.errors import SourceError, first_line
from fsmerge_cli.common.shown import few, shown

TRANSFORMERS_5 = {
    r"\bencoder\.layer\.(\d+)\.": r"layers.\1.",
    r"\battention\.attention\.(q|k|v)(uery|ey|alue)\.": r"attention.\1_proj.",
    r"\battention\.output\.dense\.": "attention.o_proj.",
    r"\bintermediate\.dense\.": "mlp.fc1.",
    r"(\blayers\.\d+)\.output\.dense\.": r"\1.mlp.fc2.",
}
"""Names in files of Hugging Face's ViT -> those of its modules since transformers 5, which its adapters have."""


def merge_adapter(
    adapter: Adapter, base: Mapping[str, Tensor], title: str, where: str, headers: bool = False
) -> tuple[dict[str, Tensor], str]:
    """The tensors of the base with the adapter merged into them, under the base's names, and what was merged.

    title: of the base, for messages. headers: tensors are on the `meta` device, and keep their shapes.
    """
    places = _places(adapter, base) or _places(adapter, base := _renamed(base))
    if len(places) != 1:
        missing = [name for name in adapter.layers if f"{name}.weight" not in base]
        what = "contains several models" if places else f"lacks layers that the adapter changes: {few(missing)}"
        raise SourceError(f"{where}: {title} {what}. Pass the base that the adapter was trained on.")
    place, base = places[0], places[0].base
    for name, parts in adapter.layers.items():
        weight, down, up = base[f"{place(name)}.weight"], parts["lora_A.weight"], parts["lora_B.weight"]
        fits = weight.ndim in (2, 4) and down.ndim == up.ndim == weight.ndim
        if not fits or (up.shape[0], down.shape[1]) != weight.shape[:2] or up.shape[1] != down.shape[0]:
            raise SourceError(
                f"{where}: lora_A {list(down.shape)} and lora_B {list(up.shape)} of {shown(name)} do not fit "
                f"{list(weight.shape)} in {title}. Pass the base that the adapter was trained on."
            )
    modules = tuple(f"{place(name)}." for name in adapter.modules if f"{name}.weight" in adapter.whole)
    found = {name: tensor for name, tensor in base.items() if not name.startswith(modules or "\0")}
    found |= {place(name): tensor for name, tensor in adapter.whole.items()}
    found |= _merged(adapter, found, place, title, where, headers)
    replaced = f"; from the adapter itself: {few(adapter.modules)}" if adapter.modules else ""
    return found, f"the LoRA adapter of {len(adapter.layers)} layers was merged into {title}{replaced}"


class _Places:
    """Names in the adapter -> names in the base, which may have one prefix more. base: its tensors."""

    def __init__(self, base: Mapping[str, Tensor], added: str = "") -> None:
        self.base, self.added = base, added

    def __call__(self, name: str) -> str:
        inside = f"{self.added}{name}"
        outside = name in self.base or f"{name}.weight" in self.base
        return name if outside and inside not in self.base and f"{inside}.weight" not in self.base else inside


def _places(adapter: Adapter, base: Mapping[str, Tensor]) -> list[_Places]:
    """Where all layers of the adapter are in the base: empty for nowhere, several for several models.

    A base without the module around its backbone (`vit.` of Hugging Face) gets its name.
    """
    targets = [f"{name}.weight" for name in adapter.layers]
    if all(name in base for name in targets):
        return [_Places(base)]
    first = targets[0]
    parts = first.split(".")
    added = sorted({name.removesuffix(first) for name in base if name.endswith(f".{first}")})
    around = [".".join(parts[:n]) + "." for n in range(1, len(parts) - 1)]
    found = [_Places(base, start) for start in added if all(f"{start}{name}" in base for name in targets)]
    return found + [
        _Places({f"{start}{name}": tensor for name, tensor in base.items()})
        for start in around
        if all(name.startswith(start) and name.removeprefix(start) in base for name in targets)
    ]


def _renamed(base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of Hugging Face's ViT under the names that its modules have since transformers 5."""
    found = {}
    for old, tensor in base.items():
        name = old
        for pattern, new in TRANSFORMERS_5.items():
            name = re.sub(pattern, new, name)
        found[name] = tensor
    return found


def _merged(
    adapter: Adapter, base: Mapping[str, Tensor], place: _Places, title: str, where: str, headers: bool
) -> dict[str, Tensor]:
    """The adapted weights (and biases) under the base's names, merged by PEFT in fp32."""
    import peft

    try:
        _require_all(adapter, base, place, title, where)
        if headers:
            return {f"{place(name)}.weight": base[f"{place(name)}.weight"].float() for name in adapter.layers}
        used = {key: adapter.config[key] for key in USED if key in adapter.config}
        config = peft.LoraConfig(**used, target_modules=[*adapter.layers], init_lora_weights=False)
        tree: Any = _tree({name: _layer(base, place(name)) for name in adapter.layers})
        model: Any = peft.get_peft_model(tree, config)
        state = {f"{START}{n}.{part}": t for n, parts in adapter.layers.items() for part, t in parts.items()}
        result: Any = peft.set_peft_model_state_dict(model, state)
        left = [*result.unexpected_keys, *(name for name in result.missing_keys if "lora_" in name)]
        if left:
            raise SourceError(f"{where}: PEFT did not read all tensors ({few(left)}). Save the adapter again.")
        merged = model.merge_and_unload()
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:  # PEFT's, for odd files
        raise SourceError(
            f"{where}: PEFT cannot merge it ({first_line(error)}). Check {CONFIG} and the base."
        ) from None
    return {
        f"{place(name)}.{part}": tensor.detach()
        for name in adapter.layers
        for part, tensor in merged.get_submodule(name).named_parameters()
    }


def _require_all(adapter: Adapter, base: Mapping[str, Tensor], place: _Places, title: str, where: str) -> None:
    """Raise SourceError for layers of blocks that the configuration chooses, by PEFT's rule, and the file lacks.

    Only of numbered blocks: a file of the base may hold more (a pooler, a head) than the model that was trained.
    """
    import peft
    from peft.tuners.tuners_utils import check_target_module_exists

    chosen: dict[str, Any] = {key: adapter.config[key] for key in CHOICE if adapter.config.get(key)}
    config = peft.LoraConfig(**chosen)
    have = {place(name) for name in (*adapter.layers, *adapter.modules)}
    matrices = [n.removesuffix(".weight") for n, t in base.items() if n.endswith(".weight") and t.ndim in (2, 4)]
    lacking = [
        name
        for name in matrices
        if name not in have
        and any(part.isdigit() for part in name.split("."))
        and name.startswith(place.added)
        and check_target_module_exists(config, name.removeprefix(place.added))
    ]
    if lacking:
        raise SourceError(
            f"{where} has no tensors for layers of {title} that its target_modules choose: {few(lacking)}. Save "
            "or download the adapter again, or pass the base that it was trained on."
        )


def _layer(base: Mapping[str, Tensor], name: str) -> nn.Module:
    weight, bias = base[f"{name}.weight"].float(), base.get(f"{name}.bias")
    out, inside = weight.shape[:2]
    layer: nn.Module
    if weight.ndim == 2:
        layer = nn.Linear(inside, out, bias=bias is not None)
    else:
        layer = nn.Conv2d(inside, out, (weight.shape[2], weight.shape[3]), bias=bias is not None)
    layer.load_state_dict({"weight": weight, **({} if bias is None else {"bias": bias.float()})})
    return layer


def _tree(layers: Mapping[str, nn.Module]) -> nn.Module:
    """Modules inside each other, with the layers at their names."""
    root = nn.Module()
    for name, layer in layers.items():
        *path, last = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.add_module(last, layer)
    return root
