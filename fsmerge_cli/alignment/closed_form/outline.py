"""The order of computation that the table of an architecture implies: blocks, branches, norms and writers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from torch import nn

from fsmerge_cli.architectures.ports import Mapped, Port, Unit
from fsmerge_cli.models.plan import Plan

NOWHERE = Port("", "")


@dataclass
class Branch:
    """Weights that read the residual stream at one port, and the weight that writes back into it.

    norm: the module between stream and readers, or behind the sum in a post-norm network (None: none). readers:
    modules, in order, which read `read`.
    writer: module, which reads `inside` and writes `write`. scales: names of the per-unit factors of what it
    writes (LayerScale). units: names of the per-unit vectors between readers and writer. latent: name of a tensor
    that is the queries (None: readers compute them).
    """

    norm: str | None = None
    readers: list[str] = field(default_factory=list)
    read: Port = NOWHERE
    writer: str = ""
    inside: Port = NOWHERE
    write: Port = NOWHERE
    scales: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    latent: str | None = None

    @property
    def module(self) -> str:
        """The module that contains exactly this branch (attention, MLP)."""
        parts = zip(*(name.split(".") for name in (*self.readers, self.writer)))
        return ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, parts))

    def parts(self, post_norm: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Modules that have to write nothing, and to pass on what they read, so that the branch does nothing."""
        return ((self.writer,), (self.norm,) if self.norm else ()) if post_norm else ((self.module,), ())


@dataclass(frozen=True)
class Pooling:
    """Attention pooling behind the blocks, which begins a stream of its own.

    module: its name. attention, mlp: its branches; nothing is added to what the attention writes. after: norms of
    its stream behind it. centred: as in `Outline`.
    """

    module: str
    attention: Branch
    mlp: Branch
    after: tuple[str, ...]
    centred: bool


@dataclass(frozen=True)
class Outline:
    """A network with a residual stream.

    stream: the name of its space. blocks: modules, in order; branches: of each block. tables: names of the tensors
    before the blocks that write into the stream, or into the narrower space `embedded` that the layer `projected`
    reads, which writes into the stream (ELECTRA). before, after: modules of the norms on the stream before and
    after the blocks. centred: these norms subtract the mean of the units (LayerNorm, not RMSNorm). pooling: behind
    all of that (None: there is none by attention). post_norm: a norm comes behind every sum, x' = LN(x + F(x)).
    """

    stream: str
    blocks: tuple[str, ...]
    branches: tuple[tuple[Branch, ...], ...]
    tables: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    centred: bool
    embedded: str
    projected: str | None = None
    pooling: Pooling | None = None
    post_norm: bool = False

    @property
    def first_norm(self) -> str | None:
        """The norm before the blocks, where the first branch reads what it puts out, without one of its own."""
        bare = self.branches[0][0].norm is None and self.before and not self.post_norm
        return self.before[-1] if bare else None

    @property
    def last_norm(self) -> str | None:
        """The norm behind all blocks, which what comes after them reads."""
        if self.post_norm:
            return self.branches[-1][-1].norm
        return self.after[-1] if self.after else None


def outline(plan: Plan) -> Outline | None:
    """The outline of a network with blocks on a residual stream; None for a network without one."""
    network = plan.skeleton()
    blocks = tuple(plan.family.blocks(network))
    mapped = {name: role for name, role in plan.roles.items() if isinstance(role, Mapped)}
    written = Counter(
        space
        for role in mapped.values()
        if role.read is not None and plan.spaces[space := role.write[1][0].space].heads is None
    )
    stream = next((space for space, count in written.items() if count > 1 and blocks), None)
    if stream is None:
        return None
    outside = [name for name in plan.roles if not _inside(name, blocks)]
    first = min(place for place, name in enumerate(plan.roles) if _inside(name, blocks))
    early = set(list(plan.roles)[:first])
    projected = next((n for n in outside if n in early and n in mapped and mapped[n].read), None)
    read = mapped[projected].read if projected else None
    embedded = read[1][0].space if read else stream
    norms = [
        (name in early, name.rpartition(".")[0])
        for name in outside
        for role in [plan.roles[name]]
        if isinstance(role, Unit) and role.port.space in (stream, embedded)
    ]
    branches = tuple(_branches(plan, network, _names(plan, block), stream) for block in blocks)
    inner = [branch.norm for own in branches for branch in own if branch.norm is not None]
    return Outline(
        stream,
        blocks,
        branches,
        tuple(n for n in outside if n in mapped and mapped[n].read is None and _writes(mapped[n], embedded)),
        tuple(dict.fromkeys(module for is_early, module in norms if is_early)),
        tuple(dict.fromkeys(module for is_early, module in norms if not is_early)),
        _centred(network, inner),
        embedded,
        projected.rpartition(".")[0] if projected else None,
        _pooling(plan, network, tuple(dict.fromkeys(module for is_early, module in norms if not is_early))),
        plan.family.post_norm,
    )


def _pooling(plan: Plan, network: nn.Module, after: Sequence[str]) -> Pooling | None:
    """Attention pooling: queries from a tensor, keys and values of the normalised stream, and an MLP."""
    module = plan.family.pooling(network)
    if module is None:
        return None
    names = _names(plan, module)
    mapped = {name: role for name in names for role in [plan.roles[name]] if isinstance(role, Mapped)}
    latent = next(name for name, role in mapped.items() if not name.endswith("bias") and role.read is None)
    (reader, read), (writer, inside) = [(name, role.read) for name, role in mapped.items() if role.read][:2]
    attention = Branch(
        norm=after[-1] if after else None,
        readers=[reader.removesuffix(".weight")],
        read=read[1][0],
        writer=writer.removesuffix(".weight"),
        inside=inside[1][0],
        write=mapped[writer].write[1][0],
        latent=latent,
    )
    rest = names[names.index(writer) + 1 :]
    (mlp,) = _branches(
        plan,
        network,
        [name for name in rest if name.rpartition(".")[0] != attention.writer],
        attention.write.space,
    )
    behind = {
        name.rpartition(".")[0]: None
        for name, role in plan.roles.items()
        if isinstance(role, Unit) and role.port.space == attention.write.space and name not in names
    }
    return Pooling(module, attention, mlp, tuple(behind), _centred(network, [mlp.norm] if mlp.norm else []))


def _centred(network: nn.Module, norms: Sequence[str]) -> bool:
    return any(isinstance(network.get_submodule(name), nn.LayerNorm) for name in norms)


def _names(plan: Plan, module: str) -> list[str]:
    return [name for name in plan.roles if name.startswith(f"{module}.")]


def _inside(name: str, blocks: Sequence[str]) -> bool:
    return any(name.startswith(f"{block}.") for block in blocks)


def _writes(role: Mapped, space: str) -> bool:
    return role.write[1][0].space == space


def _branches(plan: Plan, network: nn.Module, names: Sequence[str], stream: str) -> tuple[Branch, ...]:
    """The branches of one block, in the order of its tensors `names`: norm, readers, writer, scales.

    Scales that are parameters of the block itself come before all branches, one for each.
    """
    found: list[Branch] = [Branch()]
    early: list[str] = []

    def begin() -> Branch:
        if found[-1].writer:
            found.append(Branch())
        return found[-1]

    for name in names:
        owner, role = name.rpartition(".")[0], plan.roles[name]
        if isinstance(role, Unit):
            if role.port.space != stream:
                found[-1].units.append(name)
            elif hasattr(network.get_submodule(owner), "eps"):
                (found[-1] if plan.family.post_norm else begin()).norm = owner
            else:
                (found[-1].scales if found[-1].writer else early).append(name)
        elif isinstance(role, Mapped) and role.read is not None:
            if role.read[1][0].space == stream:
                branch = begin()
                branch.readers.append(owner)
                branch.read = role.read[1][0]
            else:
                branch = found[-1]
                branch.writer, branch.inside, branch.write = owner, role.read[1][0], role.write[1][0]
    for branch, name in zip(found, early):
        branch.scales.append(name)
    return tuple(found)
