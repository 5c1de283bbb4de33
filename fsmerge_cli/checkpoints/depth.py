"""`models.sources.N.depth`: a source with more blocks, of which the added ones change nothing.

A block that adds to a residual stream is the identity where what writes into the stream is 0. An added block has
the other weights of the block before it, so that its units have activations to be matched by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fsmerge_cli.architectures import compile_table
from fsmerge_cli.architectures.ports import Mapped
from fsmerge_cli.architectures.vit.module import MAX_DEPTH
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import MATCH, SourceSpec

IMAGES = 2
"""Random inputs on which both networks are compared."""


def deepened(spec: SourceSpec, source: Source, where: str) -> Source:
    """The source with `spec.depth` blocks, spread evenly, and a note. Raises SourceError where it has more."""
    family = source.family
    if spec.depth is None:
        return source
    if spec.depth == MATCH:
        raise SourceError(
            f"{where}: depth=match is that of other sources, and this one is read alone. Pass a number."
        )
    blocks = family.blocks(family.skeleton(source.arch))
    if family.deepen is None or not blocks:
        raise SourceError(
            f"{where}: blocks that change nothing can be added to vision transformers, whose blocks add to a "
            f"stream, and this is a network of family '{family.name}'. Remove models.sources.N.depth."
        )
    if spec.depth > MAX_DEPTH:
        raise SourceError(f"{where}: depth={spec.depth} is more than {MAX_DEPTH} blocks. Pass fewer.")
    if spec.depth < len(blocks):
        raise SourceError(
            f"{where} has {len(blocks)} blocks, and depth={spec.depth} would remove some. Pass "
            f"models.sources.N.depth={len(blocks)} or more."
        )
    if spec.depth == len(blocks):
        return source
    arch = family.deepen(source.arch, spec.depth)
    weights = _with_blocks(source, list(blocks), list(family.blocks(family.skeleton(arch))))
    added = spec.depth - len(blocks)
    note = (
        f"'{spec.name}': {added} of its {spec.depth} blocks {'was' if added == 1 else 'were'} added and change "
        "nothing, so that it is as deep as the others"
    )
    found = replace(source, arch=arch, weights=weights, notes=(*source.notes, note))
    _require_same(source, found, where)
    return found


def _with_blocks(source: Source, old: list[str], new: list[str]) -> dict[str, Tensor]:
    """The weights under the names of the blocks `new`; what an added block writes into the stream is 0."""
    family = source.family
    roles = compile_table(family.table(family.skeleton(source.arch)), list(source.weights)).roles
    inside = {name: role for name, role in roles.items() if isinstance(role, Mapped) and role.read is not None}
    spaces = Counter(role.write[1][0].space for name, role in inside.items() if _owner(name, old))
    stream = spaces.most_common(1)[0][0]
    writers = {name.rpartition(".")[0] for name, role in inside.items() if role.write[1][0].space == stream}
    found: dict[str, Tensor] = {}
    for name, tensor in source.weights.items():
        owner = _owner(name, old)
        if not owner:
            found[name] = tensor
            continue
        group = [place for place in range(len(new)) if place * len(old) // len(new) == old.index(owner)]
        for place in group:
            zero = place != group[0] and name.rpartition(".")[0] in writers
            found[new[place] + name.removeprefix(owner)] = torch.zeros_like(tensor) if zero else tensor
    return found


def _owner(name: str, blocks: list[str]) -> str:
    return next((block for block in blocks if name.startswith(f"{block}.")), "")


def _features(source: Source, inputs: Inputs) -> Tensor:
    network = source.family.skeleton(source.arch)
    network.load_state_dict(dict(source.weights), assign=True)
    with torch.no_grad():
        found: Tensor = network.eval()(inputs)
    return found


def _require_same(before: Source, after: Source, where: str) -> None:
    """Raise SourceError unless the features of both are the same to the bit; nothing for headers."""
    known: Mapping[str, Tensor] = before.family.skeleton(before.arch).state_dict()
    fits = {name: t.shape for name, t in known.items()} == {name: t.shape for name, t in before.weights.items()}
    if not fits or any(tensor.is_meta for tensor in before.weights.values()):
        return  # what does not fit is reported later
    inputs = before.family.sample(before.arch, IMAGES, torch.Generator().manual_seed(0))
    if not torch.equal(_features(before, inputs), _features(after, inputs)):
        raise SourceError(f"{where}: added blocks would change its features. Remove models.sources.N.depth.")
