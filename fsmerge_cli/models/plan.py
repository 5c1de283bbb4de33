"""Compile sources and their specification into an immutable plan, or report all reasons why they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures import Compiled, Family, compile_table
from fsmerge_cli.architectures.ports import Mapped, Port, Role, Unit
from fsmerge_cli.architectures.token_outputs import token_layout, with_tokens
from fsmerge_cli.common.errors import MismatchError
from fsmerge_cli.common.shown import shown
from fsmerge_cli.models.misfits import MAX_LISTED, head_reasons, tensor_reasons
from fsmerge_cli.models.source import Source

ROWS = ("ensemble", "average", "kd", "merged")
"""Rows of the score table besides the sources; no source can have one of these names."""


@dataclass(frozen=True)
class Space:
    """A feature space: its size in the merged model and in each source (units).

    heads: number of attention heads that it consists of, in the merged model and in each source; None for a space
    without heads. order: the space whose order of heads it shares. rotary: units keep their places inside a head.
    """

    name: str
    merged: int
    sources: tuple[int, ...]
    heads: tuple[int, tuple[int, ...]] | None = None
    order: str | None = None
    rotary: bool = False


@dataclass(frozen=True, repr=False)
class Plan:
    """Everything that the sources' architecture determines, validated. Later code can rely on it.

    arch: options of the merged model. roles: tensor name -> role. spaces: by name. writes, reads: the ports
    with a merge map and with an unmerge map (the ports of the features among the latter). feature_ports: of the
    equal parts of the features, all of one space. tasks: names of the sources. reads_tokens: whether the patch
    tokens of some source count. distilled: see `distilled_plan`.
    """

    family: Family
    arch: Any
    source_archs: tuple[Any, ...]
    roles: Mapping[str, Role]
    spaces: Mapping[str, Space]
    writes: tuple[Port, ...]
    reads: tuple[Port, ...]
    feature_ports: tuple[Port, ...]
    tasks: tuple[str, ...]
    reads_tokens: bool = False
    distilled: bool = False

    def __repr__(self) -> str:
        """One line: family, tasks, width and size of the merged model."""
        size = sum(tensor.numel() for tensor in self.skeleton().state_dict().values())
        tasks = ", ".join(map(shown, self.tasks))
        return f"Plan({self.family.name}: {tasks} -> width {self.arch.features}, {size:,} parameters)"

    def skeleton(self, arch: Any | None = None) -> nn.Module:
        """An ordinary network of the merged size (or of `arch`), in evaluation mode, weights on `meta`."""
        return self.family.skeleton(self.arch if arch is None else arch)

    def reader(self) -> nn.Module:
        """The network of the merged size whose outputs are all that counts, see `token_outputs.with_tokens`."""
        return with_tokens(self.skeleton(), self.family) if self.reads_tokens else self.skeleton()

    @property
    def features(self) -> Port:
        """The port of the features (of their first part), whose space is that of all of them."""
        return self.feature_ports[0]

    @property
    def width(self) -> int:
        """Units of the space of the features, and so of each of their parts."""
        return self.spaces[self.features.space].merged

    def projector(self, parts: Sequence[Tensor]) -> Tensor:
        """U_out of all features, block-diagonal, from those of their parts (or one for all of them)."""
        n = len(self.feature_ports)
        found: Tensor = torch.block_diag(*(parts if len(parts) == n else [*parts] * n))  # type: ignore[no-untyped-call]
        return found

    def feature_order(self, permutations: Mapping[str, Tensor]) -> Tensor:
        """The order of all features, from that of the units of their space."""
        order = permutations[self.features.space]
        return torch.cat([order + i * len(order) for i in range(len(self.feature_ports))])

    @property
    def outputs(self) -> int:
        """Width of the outputs of `reader`."""
        layout = token_layout(self.family, self.arch) if self.reads_tokens else None
        return int(self.arch.features) if layout is None else layout.size

    @property
    def same_shape(self) -> bool:
        """Whether every source has the merged model's widths and number of heads everywhere."""
        widths = all(size == s.merged for s in self.spaces.values() for size in s.sources)
        return widths and all(set(s.heads[1]) == {s.heads[0]} for s in self.spaces.values() if s.heads)

    @property
    def sources_alike(self) -> bool:
        """Whether all sources have the same widths and numbers of heads."""
        return all(len({*s.sources}) == 1 and len({*(s.heads or (0, (0,)))[1]}) == 1 for s in self.spaces.values())


def compile_plan(
    sources: Sequence[Source], width: int | tuple[int, ...] | None = None, heads: int | None = None
) -> Plan:
    """The plan for merging `sources` into a model of `width` and `heads` (default: those of source 1).

    Raises MismatchError with every reason: fewer than two sources, a task name used twice, families or
    options that differ, tensors missing, unknown or of a wrong shape, heads that do not fit.
    """
    reasons = list(_common_reasons(sources))
    known: dict[str, dict[str, tuple[int, ...]]] = {}  # building a large network is slow, even without weights
    for source in sources:
        reasons += [f"'{source.name}' has {reason}" for reason in source.family.refuse(source.arch)]
        kind = f"{source.family.name} {source.arch}"
        if kind not in known:
            known[kind] = _shapes(source.family, source.arch)
        reasons += tensor_reasons(source, known[kind])
        reasons += head_reasons(source)
    if reasons:
        raise MismatchError(reasons)
    family, arch = sources[0].family, sources[0].family.resize(sources[0].arch, width, heads)
    shapes = _shapes(family, arch)
    table = compile_table(family.table(family.skeleton(arch)), list(shapes))
    roles = table.roles
    reasons = [
        f"'{source.name}' and '{sources[0].name}' do not have the same tensors: "
        f"{', '.join(sorted(set(source.weights) ^ set(shapes))[:MAX_LISTED])}"
        for source in sources
        if set(source.weights) != set(shapes)
    ]
    if reasons:
        raise MismatchError(reasons)
    counts = [family.heads(own) for own in (arch, *(s.arch for s in sources))]
    sizes = [_space_sizes(roles, shapes, counts[0])]
    for source, count in zip(sources, counts[1:]):
        sizes.append(_space_sizes(roles, {n: tuple(t.shape) for n, t in source.weights.items()}, count))
    reasons = [f"the specification of '{family.name}' does not know the tensor {name}" for name in table.unknown]
    reasons += _space_reasons(table, sizes, ["the merged model", *(f"'{s.name}'" for s in sources)])
    if reasons:
        raise MismatchError(reasons)
    heads_of = [family.own_heads(own) for own in (arch, *(s.arch for s in sources))]
    spaces = {
        name: _space(name, table, [own[name] for own in sizes], [h.get(name, n) for h, n in zip(heads_of, counts)])
        for name in sizes[0]
    }
    writes, reads = ports(roles)
    return Plan(
        family=family,
        arch=arch,
        source_archs=tuple(s.arch for s in sources),
        roles=roles,
        spaces=spaces,
        writes=tuple(sorted(writes)),
        reads=tuple(sorted(reads | {*table.features})),
        feature_ports=table.features,
        tasks=tuple(s.name for s in sources),
        reads_tokens=any(s.reads != "pooled" for s in sources),
    )


def ports(roles: Mapping[str, Role]) -> tuple[set[Port], set[Port]]:
    """The ports that tensors write to, and the ports that they read from."""
    writes: set[Port] = set()
    reads: set[Port] = set()
    for role in roles.values():
        if isinstance(role, Mapped):
            writes |= set(role.write[1])
            reads |= set(role.read[1]) if role.read else set()
    return writes, reads


def _common_reasons(sources: Sequence[Source]) -> Iterable[str]:
    if len(sources) < 2:
        yield f"a merge needs at least two sources, got {len(sources)}. Add one to models.sources"
        return
    names = [s.name for s in sources]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"the task name '{name}' is used {names.count(name)} times; give each source a unique name"
    for name in ROWS:
        if name in names:
            yield f"the task name '{name}' is a row of the score table; give the source another name"
    first = sources[0]
    for other in sources[1:]:
        if other.family is not first.family:
            yield f"'{first.name}' is a {first.family.name}, '{other.name}' a {other.family.name}"
            continue
        if first.family.refuse(first.arch) or other.family.refuse(other.arch):
            continue
        for reason in first.preprocessing.refusals(other.preprocessing):
            yield f"'{first.name}' and '{other.name}': {reason}"
        for what, a in first.family.signature(first.arch).items():
            b = other.family.signature(other.arch)[what]
            if a != b:
                more = _advice(what, first, max(a, b) if what == "depth" else None)
                yield f"{what}: '{first.name}' has {_plain(a)}, '{other.name}' has {_plain(b)}{more}"


def _advice(what: str, first: Source, depth: int | None) -> str:
    """How a difference can be resolved; empty if it cannot. depth: the larger one, where it differs."""
    if depth is not None and first.family.deepen is not None:
        return f"; models.sources.N.depth={depth} adds blocks to the other, which change nothing"
    if what in ("mean of pixels", "std of pixels"):
        return "; it cannot be folded into a convolution that pads with zeros: train both with the same value"
    if what == "features":
        return (
            "; a merged encoder computes one of them, so that classifiers of texts, classifiers of words and "
            "embedding models are merged each with their own kind"
        )
    if what != "input_size" or first.family.resample is None:
        return ""
    changed = "resamples the position embeddings" if first.family.positions(first.arch) else "changes the size"
    size = f"models.sources.N.input_size={list(first.arch.input_size[1:])}"
    return f"; {size} {changed} of the other, which is not exact"


def _space(name: str, table: Compiled, sizes: Sequence[set[int]], counts: Sequence[int | None]) -> Space:
    merged, *own = (next(iter(found)) for found in sizes)
    head = table.heads.get(name)
    if head is None:
        return Space(name, merged, tuple(own))
    heads = [count or 1 for count in counts]
    return Space(name, merged, tuple(own), (heads[0], tuple(heads[1:])), head.order, head.rotary)


def _space_sizes(
    roles: Mapping[str, Role], shapes: Mapping[str, tuple[int, ...]], heads: int | None
) -> dict[str, set[int]]:
    """All sizes that the tensors of one model imply for each space."""
    sizes: dict[str, set[int]] = {}
    for name, role in roles.items():
        shape = shapes[name]
        if isinstance(role, Unit):
            sizes.setdefault(role.port.space, set()).add(shape[0] * ((heads or 1) if role.per_head else 1))
        elif isinstance(role, Mapped):
            for axis, parts in filter(None, (role.write, role.read)):
                for port in parts:
                    sizes.setdefault(port.space, set()).add(shape[axis] // len(parts))
    return sizes


def _space_reasons(
    table: Compiled, sizes: Sequence[Mapping[str, set[int]]], owners: Sequence[str]
) -> Iterable[str]:
    for owner, own in zip(owners, sizes):
        for space, found in own.items():
            if len(found) > 1:
                yield f"space '{space}' has the sizes {sorted(found)} inside {owner}"
    writes, reads = ports(table.roles)
    consumed = {space for space, head in table.heads.items() if head.consumed}
    written, read = {p.space for p in writes}, {p.space for p in (*reads, *table.features)} | consumed
    for space in sorted(written | read | set(sizes[0])):
        if space not in written:
            yield f"space '{space}' is never written"
        if space not in read:
            yield f"space '{space}' is never read"


def _shapes(family: Family, arch: Any) -> dict[str, tuple[int, ...]]:
    state: Mapping[str, Tensor] = family.skeleton(arch).state_dict()
    return {name: tuple(t.shape) for name, t in state.items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
