"""The groups of sources of the benchmark, written as +models= files.

The weights of the vision transformers are stored in docs/results/sources, most in float16. Training them again on
another processor or with another number of threads would give different weights, so that new rows could not be
compared with existing ones. A missing source is trained from its recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from fsmerge_cli.alignment.permutation import blocks
from fsmerge_cli.checkpoints.dtype import rounded, to_dtype
from fsmerge_cli.checkpoints.embedded import ENTRY, ensure_trained
from fsmerge_cli.checkpoints.files import file_sha256
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.atomic import claim
from fsmerge_cli.common.cache import cache_folder
from fsmerge_cli.common.progress import silent
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.models.plan import Plan, compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import Recipe, SourceSpec
from fsmerge_cli.runs.finetune import finetune
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import maps_of_spaces

SOURCES = Path(__file__).resolve().parents[2] / "docs/results/sources"
"""Contains one folder per source, in the format that `fsmerge merge` reads."""

SEEDS = {
    **{"digits": 1, "capitals": 2, "greek": 3, "cyrillic": 4},
    **{"lower": 11, "hebrew": 12, "armenian": 13, "symbols": 14},
}
"""Per alphabet: seed of the source's initialisation and of the order of its training images."""


@dataclass(frozen=True)
class Group:
    """Sources to be merged.

    alphabets: one task each. width: of the vision transformers. scrambled: the last source is replaced by the same
    function in another basis (heads and hidden units permuted, Q/K and V/O rotated inside every head). parent: the
    alphabet whose source is the shared pretrained initialisation of all of them.
    """

    alphabets: tuple[str, ...]
    width: int = 96
    scrambled: bool = False
    parent: str | None = None


GROUPS: dict[str, Group | None] = {
    "digits_mlp_pair": None,  # included in the package
    "lower_hebrew": Group(("lower", "hebrew")),
    "armenian_symbols": Group(("armenian", "symbols")),
    "symbols_lower": Group(("symbols", "lower")),
    "lower_hebrew_64": Group(("lower", "hebrew"), width=64),
    "lower_hebrew_scrambled": Group(("lower", "hebrew"), scrambled=True),
    "hebrew_armenian_of_lower": Group(("hebrew", "armenian"), parent="lower"),
    "lower_hebrew_armenian": Group(("lower", "hebrew", "armenian")),
    "four_alphabets": Group(("lower", "hebrew", "armenian", "symbols")),
    "digits_capitals": Group(("digits", "capitals")),
    "greek_cyrillic": Group(("greek", "cyrillic")),
    "four_for_tuning": Group(("digits", "capitals", "greek", "cyrillic")),
}

FOR_TUNING = ("digits_capitals", "greek_cyrillic", "four_for_tuning")
"""Groups of the alphabets used for tuning; not reported."""


def prepare(names: Sequence[str]) -> Path:
    """Train missing sources and write one models file per group; returns the folder for `--config-dir`."""
    folder = cache_folder() / "quality"
    (folder / "models").mkdir(parents=True, exist_ok=True)
    for name in names:
        group = GROUPS[name]
        if group is None:
            continue
        specs = [_source(alphabet, group) for alphabet in group.alphabets]
        if group.scrambled:
            specs[-1] = _scrambled(specs[-1], SOURCES / f"{specs[-1].name}_scrambled_{group.width}")
        text = yaml.safe_dump({"sources": [_entry(spec) for spec in specs]}, sort_keys=False, allow_unicode=True)
        head = f"# {len(specs)} glyph transformers for the quality benchmark\ndefaults:\n"
        data = "  - override /data@_global_.data: glyphs\n\n"
        (folder / "models" / f"quality_{name}.yaml").write_text(head + data + text)
    return folder


def fingerprints(name: str) -> dict[str, str]:
    """SHA-256 of the weights of a prepared group's sources; {} for the pair that is trained on first use."""
    group = GROUPS[name]
    if group is None:
        return {}
    text = (cache_folder() / "quality" / "models" / f"quality_{name}.yaml").read_text()
    entries = yaml.safe_load(text)["sources"]
    return {entry["name"]: file_sha256(Path(entry["checkpoint"]) / "model.safetensors") for entry in entries}


def _source(alphabet: str, group: Group) -> SourceSpec:
    """One source of a group; trained and stored if it is missing."""
    spec = _spec(alphabet, group.width)
    folder = SOURCES / f"{alphabet}{f'_of_{group.parent}' if group.parent else ''}_{group.width}"
    if not (folder / "model.safetensors").is_file():
        if group.parent is None:
            store(ensure_trained(spec, silent), folder)
        else:
            store(_fine_tuned(alphabet, group), folder)
    return replace(spec, checkpoint=str(folder), labels=None)  # the folder contains the labels


def _fine_tuned(alphabet: str, group: Group) -> SourceSpec:
    """The group's parent source, fine-tuned on another alphabet."""
    parent = _source(group.parent or "", replace(group, parent=None))
    folder = cache_folder() / "quality" / f"{alphabet}_of_{group.parent}_{group.width}"
    finetune(
        {"checkpoint": parent.checkpoint, "task": alphabet, "labels": alphabet},
        data="glyphs",
        training={"head_steps": 100, "steps": 600, "lr": 0.001, "batch_size": 128, "patience": None},
        seed=SEEDS[alphabet],
        output=folder,
        overwrite=True,
    )
    return replace(_spec(alphabet, group.width), checkpoint=str(folder), labels=None)


def store(spec: SourceSpec, folder: Path) -> None:
    """Write a source into `folder` in float16; merges use the rounded weights."""
    source = load(spec)
    with claim(folder, overwrite=True, replaced=ENTRY) as temporary:
        _write(temporary, source, to_dtype(rounded(source.weights, "float16"), "float16"), "float16")


def _spec(alphabet: str, width: int) -> SourceSpec:
    args = {"img_size": 24, "patch_size": 4, "in_chans": 1, "embed_dim": width, "depth": 4, "num_heads": 4}
    return SourceSpec(
        name=alphabet,
        arch={"family": "vit", "name": "vit_tiny_patch16_224", "args": args},
        labels=alphabet,
        recipe=Recipe(
            data="glyphs", seed=SEEDS[alphabet], steps=1000, batch_size=128, lr=0.002, weight_decay=0.05
        ),
    )


def _entry(spec: SourceSpec) -> dict[str, Any]:
    values = {key: value for key, value in asdict(spec).items() if value is not None and key != "recipe"}
    if isinstance(values.get("labels"), tuple):
        values["labels"] = list(values["labels"])
    return values


def _scrambled(spec: SourceSpec, folder: Path) -> SourceSpec:
    """The same function with other weights, stored in `folder` in float32, so that it is not rounded."""
    if not (folder / "model.safetensors").is_file():
        source = load(spec)
        with claim(folder, overwrite=True, replaced=ENTRY) as temporary:
            _write(temporary, source, scramble(source, generator(0, "scramble", spec.name)))
    return replace(spec, checkpoint=str(folder))


def _write(folder: Path, source: Source, weights: Mapping[str, Tensor], dtype: str = "float32") -> None:
    """Write a source with its weights replaced by `weights`."""
    head = source.head
    if head is None:
        raise SystemExit(f"{source.name} has no classifier head")
    heads = {f"{source.name}.weight": head.weight}
    if head.bias is not None:
        heads[f"{source.name}.bias"] = head.bias
    config, facts = model_config(source.family, source.arch), {"labels": {source.name: list(head.labels)}}
    write_model(folder, config, weights, to_dtype(heads, dtype), facts)


def scramble(source: Source, random: torch.Generator) -> dict[str, torch.Tensor]:
    """Weights of the same function: rotations inside heads, permutations of heads and of hidden units.

    The residual stream is unchanged: every source of a group already has its own basis there.
    """
    plan = compile_plan([source, replace(source, name=f"{source.name} again")])
    merge, unmerge = {}, {}
    matrices = _matrices(plan, random)
    for name, space in plan.spaces.items():
        matrix = matrices.get(name, torch.eye(space.merged, dtype=torch.float64))
        zero = torch.zeros_like(matrix).float()
        merge[name] = [matrix.float(), zero]
        unmerge[name] = [matrix.T.float(), zero]  # orthogonal: the transpose is the inverse
    units = {n: source.weights[n] for n in plan.roles if n in _unit_vectors(plan)}
    maps = maps_of_spaces(plan, merge, unmerge, units)
    return fold(plan, maps, [source.weights, source.weights])


def _unit_vectors(plan: Plan) -> set[str]:
    """Names of the per-unit vectors; all belong to the residual stream, which is not scrambled."""
    from fsmerge_cli.architectures.ports import Unit

    return {name for name, role in plan.roles.items() if isinstance(role, Unit)}


def _matrices(plan: Plan, random: torch.Generator) -> dict[str, torch.Tensor]:
    """One orthogonal matrix per scrambled space; Q and K of a head share one."""
    found: dict[str, torch.Tensor] = {}
    orders: dict[str, torch.Tensor] = {}
    rotations: dict[str, torch.Tensor] = {}
    for name, space in plan.spaces.items():
        if name == plan.features.space:
            continue
        if space.heads is None or space.order is None:
            found[name] = torch.eye(space.merged, dtype=torch.float64)[
                torch.randperm(space.merged, generator=random)
            ]
            continue
        heads = space.heads[0]
        size = space.merged // heads
        order = orders.setdefault(space.order, torch.randperm(heads, generator=random))
        block = name.lstrip("qkv")
        kind = "v" if name.startswith("v") else "qk"
        if kind + block not in rotations:
            gaussian = torch.randn(heads, size, size, generator=random, dtype=torch.float64)
            rotations[kind + block] = torch.linalg.qr(gaussian)[0]
        inner = torch.arange(size).expand(heads, size)
        permutation = torch.eye(space.merged, dtype=torch.float64)[blocks(order, inner)]
        found[name] = permutation @ torch.block_diag(*rotations[kind + block])
    return found
