"""One branch (attention or MLP) of a block: what it reads, its heads or hidden units, and what it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.assembly import Assembly, set_norm, through_constant
from fsmerge_cli.alignment.closed_form.folds import FoldMoments
from fsmerge_cli.alignment.closed_form.heads import LogitMoments
from fsmerge_cli.alignment.closed_form.inside import Facts, choose_heads, choose_units, head_norms
from fsmerge_cli.alignment.closed_form.moments import Moments, stride
from fsmerge_cli.alignment.closed_form.options import ClosedFormOptions
from fsmerge_cli.alignment.closed_form.outline import Branch
from fsmerge_cli.alignment.closed_form.rows import sampled_rows, spread_rows
from fsmerge_cli.alignment.closed_form.stages import run_branch
from fsmerge_cli.alignment.closed_form.stream import StreamProjection
from fsmerge_cli.alignment.closed_form.streams import Batches, Further, Streams, flat
from fsmerge_cli.common.seeding import generator

ROWS_PER_CANDIDATE = 16
"""Rows per candidate from which hidden units and heads are chosen; more did not lower the feature error."""


class BranchSolver:
    """Solves one branch, given the streams before it: x' = x + F(x), where F reads the normalised stream.

    rows, after: weights of the tokens before the branch and behind it (None: all are 1). others: modules of the
    other branches of the block that are silent, and that pass on what they read (see `Branch.parts`). folds: of
    the images (see `folds_of`). constant: what the readers read has the constant that intercepts go through.
    """

    def __init__(
        self,
        assembly: Assembly,
        networks: Sequence[nn.Module],
        projection: StreamProjection,
        options: ClosedFormOptions,
        block: str,
        branch: Branch,
        others: tuple[Sequence[str], Sequence[str]],
        rows: Tensor | None,
        after: Tensor | None,
        folds: Tensor,
        constant: bool,
    ) -> None:
        self.assembly, self.projection, self.options, self.branch = assembly, projection, options, branch
        self.plan, self.device = assembly.plan, assembly.device
        self.rows, self.after, self.folds, self.constant = rows, after, folds, constant
        self._ridges: list[float] = []
        self._before: Batches = []
        self._blocks = [self._module(network, block) for network in networks]
        self._merged = self._module(assembly.network, block)
        inside = len(block) + 1
        self._readers = [name[inside:] for name in branch.readers]
        self._reader, self._writer = self._readers[0], branch.writer[inside:]
        self._silent, self._passing = ([name[inside:] for name in own] for own in others)
        self._norm = branch.norm[inside:] if branch.norm else ""
        self._norms = [name[inside:] for name in head_norms(self.plan, branch)]
        self.space = self.plan.spaces[branch.inside.space]
        self._scales = [self._scale(i) for i in assembly.sources]

    def _module(self, network: nn.Module, block: str) -> nn.Module:
        """What runs on a stream: a block of the network."""
        return network.get_submodule(block)

    def solve(self, streams: Streams) -> tuple[Streams, Facts]:
        """Set the branch's tensors in the assembly; the streams behind the branch, and facts to report."""
        self._set_norm()
        reading, outputs, logits, after = self._observe(streams)
        facts = {"read_error": self._read(reading)}
        own = [w[f"{self.branch.writer}.weight"].double() for w in self.assembly.weights]
        written = torch.cat([R @ (s[:, None] * W) for R, s, W in zip(self.projection.maps, self._scales, own)], 1)
        if logits:
            facts |= choose_heads(self.assembly, self.branch, logits, outputs, written)
        else:
            facts |= choose_units(self.assembly, self.branch, outputs, written)
        for reader in self.branch.readers:
            for name in (f"{reader}.weight", f"{reader}.bias"):
                if self.assembly.has(name):
                    self.assembly.fold(name)
        for name in self.branch.scales:
            self.assembly.assign(name, torch.ones(()))
        self._write(streams, after)
        facts["stream_error"] = [self._advance(after)]
        facts["ridge"] = self._ridges
        return after, facts

    def replay(self, streams: Streams) -> Streams:
        """The streams behind a branch that is solved already, to the bit those of `solve`."""
        with torch.inference_mode():
            for part, mine in enumerate(streams.merged):
                for i, own in enumerate(streams.sources):
                    before, further = own[part].to(self.device), streams.beside(part)
                    found = self._run(self._blocks[i], before, further, (), [self._writer])
                    own[part] = self._behind(i, part, before, found[f"{self._writer}.output"])
                streams.merged[part] = self._moved(mine.to(self.device), streams.beside(part)).cpu()
        return streams

    def _set_norm(self) -> None:
        """The norm of the merged network before the readers."""
        set_norm(self.assembly, self.branch.norm)

    def _behind(self, source: int, part: int, before: Tensor, written: Tensor) -> Tensor:
        """A source's stream behind the branch, in host memory."""
        return (before + self._scales[source].float() * written).cpu()

    def _moved(self, mine: Tensor, further: Further) -> Tensor:
        """The merged stream behind the branch."""
        written: Tensor = self._run(self._merged, mine, further, (), [self._writer])[f"{self._writer}.output"]
        return mine + written

    def _observe(self, streams: Streams) -> tuple[FoldMoments, Moments, list[LogitMoments], Streams]:
        """One pass over all rows: what readers and writers see, the logits, and the sources' streams behind."""
        reader, writer = self._reader, self._writer
        reading, outputs = FoldMoments(), Moments(self._every(streams))
        logits = [LogitMoments(heads) for heads in self.space.heads[1]] if self.space.heads else []
        # Only for maps are the streams before needed again; otherwise those behind take their place.
        after = streams.sources if self.options.correct else [list(own) for own in streams.sources]
        wanted = [writer, *(self._readers if logits else [])]
        with torch.inference_mode():
            for part, mine in enumerate(streams.merged):
                further, used = streams.beside(part), streams.used(part, self.device)
                x = self._run(self._merged, mine, further, [reader])[f"{reader}.input"]
                read, inner = [], []
                if self.options.correct:
                    self._before.append(self._start(streams, part))
                for i, block in enumerate(self._blocks):
                    own = streams.sources[i][part].to(self.device)
                    found = self._run(block, own, further, [reader, writer], wanted)
                    read.append(found[f"{reader}.input"])
                    inner.append(found[f"{writer}.input"])
                    after[i][part] = self._behind(i, part, own, found[f"{writer}.output"])
                    if logits:
                        queries, keys = self._queries_and_keys(block, found)
                        norms = [block.get_submodule(name) for name in self._norms]
                        logits[i].add(queries, keys, self.after, norms, used)
                reading.add(flat([x]), flat(read), self._folds(part), self._sampled(self.rows, x, part, used))
                outputs.add(flat(inner), None, spread_rows(self.after, x, used))
        return reading, outputs, logits, replace(streams, sources=after, merged=list(streams.merged))

    def _start(self, streams: Streams, part: int) -> Tensor:
        """What the merged stream should be before the branch, in host memory."""
        return self._target(streams, part).cpu()

    def _queries_and_keys(self, block: nn.Module, found: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Those of one source: parts of one layer's output, or the outputs of two layers."""
        outputs = [found[f"{reader}.output"] for reader in self._readers]
        return outputs[:2] if len(outputs) > 1 else outputs[0].chunk(3, dim=-1)[:2]

    def _every(self, streams: Streams) -> int:
        """Every how many of the rows behind the branch are enough to choose units from."""
        period = streams.merged[0].shape[1] if self.after is None else int((self.after > 0).sum())
        rows = period * sum(len(part) for part in streams.merged)
        if streams.padded:
            counts = [spread_rows(self.after, x, streams.used(n, x.device)) for n, x in enumerate(streams.merged)]
            period, rows = 1, sum(int((torch.as_tensor(own) > 0).sum()) for own in counts)
        return stride(rows, ROWS_PER_CANDIDATE * sum(self.space.sources), period)

    def _run(
        self,
        block: nn.Module,
        stream: Tensor,
        further: Further,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        own = tuple(value.to(self.device) for value in further)
        return run_branch(block, self._silent, self._passing, stream.to(self.device), own, inputs, outputs)

    def _folds(self, part: int) -> Tensor:
        """The folds of the images of one part."""
        return self.folds[part * self.options.batch : (part + 1) * self.options.batch]

    def _sampled(self, weights: Tensor | None, x: Tensor, part: int, used: Tensor | None) -> Tensor | None:
        """Weights of the rows of one part from which a regression on x [n, T, p] is fitted."""
        random = generator(self.options.seed, "row sample", self.branch.writer, x.shape[-1], part)
        return sampled_rows(weights, x, self.options.rows_per_unit * x.shape[-1] / len(self.folds), random, used)

    def _scale(self, source: int) -> Tensor:
        """Product of the per-unit factors of what the branch writes, [d_i], fp64."""
        size = self.plan.spaces[self.branch.write.space].sources[source]
        value = torch.ones(size, dtype=torch.float64, device=self.device)
        for name in self.branch.scales:
            value = value * self.assembly.weights[source][name].double()
        return value

    def _read(self, reading: FoldMoments) -> list[float]:
        """The maps U_i from the merged stream behind its norm to the sources' own; the error of each."""
        found, self._ridges = reading.fit(self.options.ridge, self.constant)
        sizes = list(self.plan.spaces[self.branch.read.space].sources)
        for i, part in enumerate(torch.split(through_constant(found) if self.constant else found.matrix, sizes)):
            self.assembly.unmerge[self.branch.read, i] = part
        return [float(part.mean()) for part in torch.split(found.errors, sizes)]

    def _write(self, before: Streams, after: Streams) -> None:
        """Set the writer: to what is missing in the merged stream, or to sum_i M_i W_i U_i."""
        assembly, writer = self.assembly, self.branch.writer
        for i in assembly.sources:
            assembly.merge[self.branch.write, i] = self.projection.maps[i] * self._scales[i]
        has_bias = assembly.has(f"{writer}.bias")
        if self.options.correct:
            groups = [self.plan.spaces[self.branch.write.space].merged] * 2
            found, ridges = self._missing(before, after).fit(self.options.ridge, has_bias, groups=groups)
            self._ridges += ridges
            assembly.assign(f"{writer}.weight", torch.stack(found.matrix.chunk(2)).sum(0))
            if has_bias:
                assembly.assign(f"{writer}.bias", torch.stack(found.intercept.chunk(2)).sum(0))
            return
        found, ridges = self._writer_inputs(before).fit(self.options.ridge, intercept=False)
        self._ridges += ridges
        for i, part in enumerate(torch.split(found.matrix, list(self.space.sources))):
            assembly.unmerge[self.branch.inside, i] = part
        assembly.fold(f"{writer}.weight")
        if has_bias:
            assembly.fold(f"{writer}.bias")

    def _missing(self, before: Streams, after: Streams) -> FoldMoments:
        """What is missing in the merged stream, on the merged input of the writer.

        In two parts with a ridge each: what the sources write, and the errors of the layers before. The second
        can be noise on other images, where there are few.
        """
        sums = FoldMoments()
        with torch.inference_mode():
            for part, mine in enumerate(before.merged):
                further, used = before.beside(part), before.used(part, self.device)
                x = self._run(self._merged, mine, further, [self._writer])[f"{self._writer}.input"]
                missing = self._parts(after, part, mine.to(self.device))
                sums.add(flat([x]), flat(missing), self._folds(part), self._sampled(self.after, x, part, used))
        return sums

    def _parts(self, after: Streams, part: int, mine: Tensor) -> list[Tensor]:
        wanted = self._before[part].to(self.device)
        return [self._summed(after, part) - wanted, wanted - mine]

    def _writer_inputs(self, before: Streams) -> FoldMoments:
        """The sources' inputs of the writer, on the merged one."""
        sums, key = FoldMoments(), f"{self._writer}.input"
        with torch.inference_mode():
            for part, mine in enumerate(before.merged):
                further, used = before.beside(part), before.used(part, self.device)
                x = self._run(self._merged, mine, further, [self._writer])[key]
                pairs = zip(self._blocks, before.sources)
                own = [self._run(block, stream[part], further, [self._writer])[key] for block, stream in pairs]
                sums.add(flat([x]), flat(own), self._folds(part), self._sampled(self.after, x, part, used))
        return sums

    def _summed(self, after: Streams, part: int) -> Tensor:
        """What the merged stream should be behind the sum."""
        return self._target(after, part)

    def _target(self, streams: Streams, part: int) -> Tensor:
        return self.projection([own[part].to(self.device) for own in streams.sources])

    def _advance(self, streams: Streams) -> float:
        """Add what the branch writes to the merged stream; the relative squared error of the stream."""
        errors = Moments()
        with torch.inference_mode():
            for part, stream in enumerate(streams.merged):
                mine = self._moved(stream.to(self.device), streams.beside(part))
                target, used = self._target(streams, part), streams.used(part, self.device)
                squares = torch.stack([self._difference(target, mine), target.square().sum(-1)], -1)
                errors.add(squares.flatten(0, 1), None, spread_rows(self.after, mine, used))
                streams.merged[part] = mine.cpu()
        error, size = torch.as_tensor(errors.x).tolist()
        return float(error / max(size, 1e-300))

    def _difference(self, target: Tensor, mine: Tensor) -> Tensor:
        """The squared distance of every token of the merged stream from its target, [n, T]."""
        return (target - mine).square().sum(-1)
