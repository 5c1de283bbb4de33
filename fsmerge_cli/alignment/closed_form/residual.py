"""The closed form of a network with a residual stream, block by block, from the first to the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.assembly import Assembly, selections, set_norm, through_constant
from fsmerge_cli.alignment.closed_form.branches import BranchSolver
from fsmerge_cli.alignment.closed_form.counted import counted_outputs
from fsmerge_cli.alignment.closed_form.embeddings import Embeddings
from fsmerge_cli.alignment.closed_form.finished import Finished
from fsmerge_cli.alignment.closed_form.folds import FoldMoments, folds_of
from fsmerge_cli.alignment.closed_form.moments import Moments
from fsmerge_cli.alignment.closed_form.options import FLOOR, ClosedFormOptions
from fsmerge_cli.alignment.closed_form.outline import Branch, Outline, Pooling
from fsmerge_cli.alignment.closed_form.pooled import AttentionPooling, PooledMLP, pooled_projection
from fsmerge_cli.alignment.closed_form.post_norm import PostNormSolver
from fsmerge_cli.alignment.closed_form.rows import row_weights
from fsmerge_cli.alignment.closed_form.selection import select_units
from fsmerge_cli.alignment.closed_form.stages import embed, further_arguments, recorded, tail
from fsmerge_cli.alignment.closed_form.stream import Place, StreamProjection, project_stream, stream_moments
from fsmerge_cli.alignment.closed_form.streams import Streams
from fsmerge_cli.architectures.ports import Mapped, Unit
from fsmerge_cli.common.inputs import Inputs, in_use, per_feature, reads
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.teachers import batches

MAX_BYTES = 2**28
"""Bytes of the largest activation of one pass."""


class ResidualSolver:
    """images: rows, [n, C, H, W]; own: the original images of every source's task. finished: branches.

    sources: what of each counts (none: the features of all).
    """

    def __init__(
        self,
        assembly: Assembly,
        networks: Sequence[nn.Module],
        found: Outline,
        images: Inputs,
        original: Inputs,
        own: Sequence[Inputs],
        options: ClosedFormOptions,
        finished: Finished,
        sources: Sequence[Source] = (),
    ) -> None:
        self.assembly, self.networks, self.outline = assembly, networks, found
        self.images, self.original, self.own, self.finished = images, original, own, finished
        self.device = assembly.device
        self.options = replace(options, batch=self._images_per_pass(options.batch))
        self.folds = folds_of(len(original), len(images))
        self._counted = [
            counted_outputs(source, network, few, self.options.batch, self.device)
            for source, network, few in zip(sources, networks, own)
        ]
        self.facts = finished.facts

    def _images_per_pass(self, most: int) -> int:
        """As many images as keep the largest activation, in fp64 and for all sources, within MAX_BYTES."""
        plan = self.assembly.plan
        tokens = 0 if isinstance(self.images, Tensor) else self.images.mask.shape[1]
        with torch.inference_mode():
            first = embed(self.assembly.network, self.outline.blocks, self.images[:1].to(self.device))
            tokens = tokens or first.shape[1]
        widest = max(sum(space.sources) + space.merged for space in plan.spaces.values())
        return max(1, min(most, MAX_BYTES // (8 * tokens * widest)))

    def solve(self) -> tuple[Tensor, ...]:
        """Solve everything; the projectors U_out [d_i, d']."""
        places = self._places()
        rows: list[Tensor | None] = [None] * len(places)
        if self.options.row_weights:
            keys = [(place.module, place.side) for place in places]
            given = self.options.batch, FLOOR, self.options.seed
            rows = list(row_weights(self.networks, keys, self.own, *given, self._counted))
        space = self.assembly.plan.spaces[self.outline.stream]
        moments = stream_moments(
            self.networks, places, rows, self.original, self.options.batch, self.device, self.outline.centred
        )
        projection = project_stream(moments, space.sources, space.merged, self.outline.centred)
        self.facts["stream_kept"] = [[projection.kept]]
        streams = self._embed(projection)
        self.finished.load()
        depth, post_norm = 0, self.outline.post_norm
        for block, branches in zip(self.outline.blocks, self.outline.branches):
            for branch in branches:
                parts = [other.parts(post_norm) for other in branches if other is not branch]
                others = [name for own, _ in parts for name in own], [name for _, own in parts for name in own]
                solver = (PostNormSolver if post_norm else BranchSolver)(
                    self.assembly,
                    self.networks,
                    projection,
                    self.options,
                    block,
                    branch,
                    others,
                    rows[depth],
                    rows[depth + 1],
                    self.folds,
                    self._constant(branch, depth),
                )
                depth += 1
                if depth <= self.finished.done:
                    streams = solver.replay(streams)
                    continue
                streams, facts = solver.solve(streams)
                for key, value in facts.items():
                    self.facts.setdefault(key, []).append(value)
                self.finished.add(self._stages(places))
        for module in self.outline.after:
            set_norm(self.assembly, module)
        if self.outline.pooling is not None:
            self._pool(self.outline.pooling, streams, rows[-1], self._stages(places))
        return self._features(streams)

    def _stages(self, places: Sequence[Place]) -> int:
        """The number of branches."""
        return len(places) - 1 + (2 if self.outline.pooling else 0)

    def _pool(self, pooling: Pooling, streams: Streams, rows: Tensor | None, stages: int) -> None:
        """Solve attention pooling; streams: behind the blocks. rows: weights of their tokens."""
        module, solvers = pooling.module, ((pooling.attention, AttentionPooling), (pooling.mlp, PooledMLP))
        parts = list(batches(len(self.images), self.options.batch))
        with torch.inference_mode():
            read = [
                [self._tail(network, own, stream[n], module, flat=False).cpu() for n, own in enumerate(parts)]
                for network, stream in zip(
                    (*self.networks, self.assembly.network), (*streams.sources, streams.merged)
                )
            ]
        pooled = Streams(read[:-1], read[-1])
        space = self.assembly.plan.spaces[pooling.attention.write.space]
        blocks = [network.get_submodule(module) for network in self.networks]
        writer = pooling.attention.writer[len(module) + 1 :]
        projection = pooled_projection(
            blocks, writer, pooled, space.sources, space.merged, pooling.centred, self.device
        )
        own_rows = None if rows is None else rows[-pooled.merged[0].shape[1] :]
        for place, (branch, solver_class) in enumerate(solvers):
            other = [pooling.mlp.module] if place == 0 else list[str]()
            own = own_rows if place == 0 else None
            solver = solver_class(
                self.assembly,
                self.networks,
                projection,
                self.options,
                module,
                branch,
                (other, ()),
                own,
                None,
                self.folds,
                branch.norm is not None and self.assembly.has(f"{branch.norm}.bias"),
            )
            if stages - 2 + place < self.finished.done:
                pooled = solver.replay(pooled)
                continue
            pooled, facts = solver.solve(pooled)
            for key, value in facts.items():
                self.facts.setdefault(key, []).append(value)
            self.finished.add(stages)
        for name in pooling.after:
            set_norm(self.assembly, name)

    def _constant(self, branch: Branch, depth: int) -> bool:
        """Whether what a branch reads has the constant that intercepts go through: the bias of a norm."""
        if self.outline.post_norm:
            return depth > 0 or self.outline.projected is None
        if branch.norm is None and depth == 0:
            return self.assembly.has(f"{self.outline.first_norm}.bias")
        return branch.norm is not None and self.assembly.has(f"{branch.norm}.bias")

    def _places(self) -> list[Place]:
        """Where the stream is seen before every branch, and behind the last."""
        found = []
        for block, branches in zip(self.outline.blocks, self.outline.branches):
            found.append(Place(block, "input"))
            if self.outline.post_norm:  # the stream before a branch is what the norm of the one before puts out
                found += [Place(branch.norm or block, "output") for branch in branches[:-1]]
            else:
                found += [Place(branch.norm or block, "input") for branch in branches[1:]]
        return [*found, Place(self.outline.blocks[-1], "output")]

    def _embed(self, projection: StreamProjection) -> Streams:
        """Write what comes before the blocks, and run it."""
        given = self.networks, self.outline, self.images, self.own, self.options
        Embeddings(self.assembly, *given).write(projection, self.folds)
        with torch.inference_mode():
            sources = [self._embedded(network) for network in self.networks]
            parts = [self.images[rows].to(self.device) for rows in batches(len(self.images), self.options.batch)]
            further = [further_arguments(self.networks[0], self.outline.blocks, part) for part in parts]
            masks = [in_use(part) for part in parts]
            return Streams(sources, self._embedded(self.assembly.network), further, masks)

    def _embedded(self, network: nn.Module) -> list[Tensor]:
        blocks, batch = self.outline.blocks, self.options.batch
        return [
            embed(network, blocks, self.images[part].to(self.device)).cpu()
            for part in batches(len(self.images), batch)
        ]

    def _features(self, streams: Streams) -> tuple[Tensor, ...]:
        """The projectors U_out, from the merged features to those of every source."""
        plan, pooling = self.assembly.plan, self.outline.pooling
        stream, norms = self.outline.stream, [self.outline.last_norm]
        if pooling is not None:
            stream, norms = pooling.attention.write.space, [*pooling.after]
        constant = any(self.assembly.has(f"{module}.bias") for module in norms)
        intercept = constant if plan.features.space == stream else self._project(streams, constant)
        parts = len(plan.feature_ports)
        sizes = [arch.features // parts for arch in plan.source_archs]
        fits = [
            self._regress(streams, "", part, parts).fit(self.options.ridge, intercept) for part in range(parts)
        ]
        self.facts["ridge_features"] = [ridges for _, ridges in fits]
        errors = torch.stack([found.errors for found, _ in fits])
        self.facts["feature_error"] = [[float(own.mean()) for own in torch.split(errors, sizes, 1)]]
        maps = [through_constant(found) if intercept else found.matrix for found, _ in fits]
        by_source = zip(*(torch.split(U.float(), sizes) for U in maps))
        return tuple(plan.projector(own) for own in by_source)

    def _project(self, streams: Streams, constant: bool) -> bool:
        """A layer behind the blocks: the top directions of the sources' features side by side (CLIP's projection).

        Behind an activation (BERT's pooler) it is those of the sources' units that determine the others best.
        Whether the merged features have a constant that intercepts go through.
        """
        assembly, plan = self.assembly, self.assembly.plan
        name, role = next(
            (name, role)
            for name, role in plan.roles.items()
            if isinstance(role, Mapped) and role.read and role.write[1][0].space == plan.features.space
        )
        found, _ = self._regress(streams, name.rpartition(".")[0]).fit(self.options.ridge, constant)
        read, write = role.read[1][0] if role.read else plan.features, role.write[1][0]
        U = through_constant(found) if constant else found.matrix
        for i, part in enumerate(torch.split(U, list(plan.spaces[read.space].sources))):
            assembly.unmerge[read, i] = part
        # A norm behind the activation (ModernBERT) reads the units that are selected; U_out takes its weight.
        norms = [n for n, own in plan.roles.items() if isinstance(own, Unit) and own.port.space == write.space]
        outputs, space = Moments(), plan.spaces[write.space]
        behind = norms[0].rpartition(".")[0] if norms else ""
        outputs.add(torch.cat([torch.cat(own) for own in self._outputs(streams, behind)], 1))
        if plan.family.activated_features:
            gram = outputs.second()
            maps: Sequence[Tensor] = selections(select_units(gram, gram, space.merged), space.sources)
        else:
            maps = project_stream([outputs], space.sources, space.merged, centred=False).maps
        for i, M in enumerate(maps):
            assembly.merge[write, i] = M
        for table in (name, name.replace("weight", "bias")):
            if assembly.has(table):
                assembly.fold(table)
        for unit in norms:  # with a bias of 1, which intercepts of U_out go through
            assembly.assign(unit, torch.ones(()))
        return any(unit.endswith("bias") for unit in norms)

    def _outputs(self, streams: Streams, module: str) -> list[list[Tensor]]:
        """What a module behind the blocks reads in every source (empty: the features), in parts."""
        found: list[list[Tensor]] = []
        with torch.inference_mode():
            for network, own in zip(self.networks, streams.sources):
                rows = batches(len(self.images), self.options.batch)
                found.append([self._tail(network, part, own[n], module) for n, part in enumerate(rows)])
        return found

    def _regress(self, streams: Streams, module: str, part: int = 0, parts: int = 1) -> FoldMoments:
        """What a module behind the blocks reads (empty: the features): the sources' on the merged network's.

        part: of the equal parts of what is read, which alone is compared.
        """
        sums = FoldMoments()
        with torch.inference_mode():
            for n, rows in enumerate(batches(len(self.images), self.options.batch)):
                networks = self.assembly.network, *self.networks
                pairs = zip(networks, (streams.merged, *streams.sources))
                mine, *own = (
                    self._tail(network, rows, stream[n], module).chunk(parts, 1)[part] for network, stream in pairs
                )
                sums.add(mine, torch.cat(own, 1), per_feature(self.folds[rows], reads(self.images[rows])))
        return sums

    def _tail(self, network: nn.Module, rows: slice, stream: Tensor, module: str, flat: bool = True) -> Tensor:
        """What `module` reads (empty: the features), given the stream behind the last block; flat: in rows."""
        images, value = self.images[rows].to(self.device), stream.to(self.device)
        if not module:
            return tail(network, self.outline.blocks, images, value)
        with recorded(network, [module]) as found:
            tail(network, self.outline.blocks, images, value)
        value = found[f"{module}.input"]
        return value.flatten(0, -2) if flat else value
