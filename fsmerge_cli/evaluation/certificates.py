"""Proofs that a written model is the model that was made; without them nothing is kept.

Each compares two independent ways to one answer on a few images, in fp64 where it can, and states its largest
error beside its tolerance. The written file is read back as a stranger would read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fsmerge_cli.alignment.permutation import permute
from fsmerge_cli.checkpoints.dtype import stored
from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import CertificateError
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.data.draw import Images
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.supernet.reference import UnfoldedSuperNet
from fsmerge_cli.training.problem import Solution, Stage

IMAGES = 16
"""How many images every certificate looks at."""

TOLERANCE = 1e-3
"""Largest error, relative to the root mean square of the exact answer, of what was computed in fp32."""


ROUNDING = 1.0
"""The same of a model whose numbers were rounded on request: beyond it, nothing is left of the features."""


@dataclass(frozen=True)
class Certificate:
    """One proof: what was compared, the largest error and the tolerance; None where it does not apply."""

    name: str
    what: str
    error: float | None
    tolerance: float | None

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance; a NaN is not."""
        return self.error is None or self.tolerance is None or self.error <= self.tolerance

    def entry(self) -> dict[str, Any]:
        """The certificate as it stands in evaluation.json."""
        if self.error is None:
            return {"what": self.what, "status": "not applicable"}
        content = asdict(self)
        content.pop("name")
        return {**content, "status": "holds"}


@dataclass(frozen=True)
class Evaluated:
    """What the evaluation saw: pixels [n, C, H, W] and the logits of every head [n, classes], in fp32."""

    pixels: Tensor
    logits: Sequence[Tensor]


@dataclass(frozen=True)
class Proof:
    """What a written model is held against.

    sources: as they were loaded. heads: folded, by task. pixels: of the images that every certificate looks at.
    seen: by the evaluation, where there was one. dtype: of the written numbers; solution and heads are those
    before they were rounded to it. progress: is told of every certificate.
    """

    plan: Plan
    sources: Sequence[Source]
    solution: Solution
    heads: Mapping[str, Head]
    pixels: Tensor
    seen: Evaluated | None = None
    dtype: str = "float32"
    progress: Progress = silent

    def certify(self, folder: Path) -> dict[str, Any]:
        """Every certificate of the model in `folder`, by name, as evaluation.json holds them.

        Raises CertificateError where one does not hold.
        """
        written = load_file(folder / "model.safetensors")
        heads = load_file(folder / "heads.safetensors") if self.heads else {}
        with torch.no_grad():
            # The fp64 network is dropped again at once: of a large model it is the largest thing in memory.
            features = _network(self.plan, written)(self.pixels.double())
            known, exact = heads, features
            proofs: list[Callable[[], Certificate]] = [lambda: _reloaded(self, folder, written, heads)]
            if self.dtype != "float32":  # what is written is what was rounded; the proofs are of that
                exact = _network(self.plan, self.solution.weights)(self.pixels.double())
                known, _ = head_tensors(self.heads)
                proofs.append(lambda: _rounded(self, features, exact))
            proofs += [
                lambda: _unfolded(self, exact),
                lambda: _heads(self, known, exact),
                lambda: _evaluated(self, written, heads),
                lambda: _permuted(self),
            ]
            found: list[Certificate] = []
            for proof in proofs:
                self.progress(Event("certify", len(found), len(proofs)))
                found.append(proof())
            self.progress(Event("certify", len(found), len(proofs)))
        broken = [c for c in found if not c.holds]
        if broken:
            raise CertificateError(
                f"{c.name}: {c.what}; largest error {c.error:.3g}, tolerance {c.tolerance:.3g}" for c in broken
            )
        return {c.name: c.entry() for c in found}


def probe(images: Images, plan: Plan, seed: int) -> Tensor:
    """Up to IMAGES of the merge's images, all tasks in turn; random pixels where it saw none."""
    if len(images) == 0:
        return torch.rand(IMAGES, *plan.arch.input_size, generator=generator(seed, "certificates"))
    own = [(images.task == task).nonzero().flatten() for task in torch.unique(images.task)]
    share = math.ceil(IMAGES / len(own))
    return images.images[torch.cat([rows[:share] for rows in own])[:IMAGES]]


def _reloaded(
    proof: Proof, folder: Path, written: Mapping[str, Tensor], heads: Mapping[str, Tensor]
) -> Certificate:
    what = "tensors, architecture and labels read back from the files = those in memory"
    if proof.dtype != "float32":
        what += f", rounded to {proof.dtype}"
    kept, _ = head_tensors(proof.heads)
    error = max(
        _difference(written, stored(proof.solution.weights, proof.dtype)),
        _difference(heads, stored(kept, proof.dtype)),
    )
    if not _loads(proof, folder):
        error = math.inf
    return Certificate("reloaded", what, error, 0.0)


def _rounded(proof: Proof, features: Tensor, exact: Tensor) -> Certificate:
    what = f"features of the file in {proof.dtype} = those before rounding (output.dtype=float32 rounds nothing)"
    return Certificate("rounded", what, relative_error(features, exact), ROUNDING)


def _loads(proof: Proof, folder: Path) -> bool:
    """Whether the folder is a source again, of the same architecture and with the same labels."""
    names: list[str | None] = list(proof.heads) or [None]
    for name in names:
        found = load(SourceSpec(name or "merged", checkpoint=str(folder), head=name), headers=True)
        labels = proof.heads[name].labels if name else None
        family = proof.plan.family
        same = found.family is family and family.config(found.arch) == family.config(proof.plan.arch)
        if not same or found.labels != labels:
            return False
    return True


def _unfolded(proof: Proof, features: Tensor) -> Certificate:
    what = "features of the written file = features of the sources side by side between the maps, in fp64"
    stages = proof.solution.stages
    if len(stages) == 1 and not proof.solution.finetuned:  # all of the merge, of reordered sources
        return Certificate("unfolded", what, max(_readout_errors(proof, stages[0], features)), TOLERANCE)
    if stages:
        errors = [_stage_error(proof, stage) for stage in stages]
        if proof.solution.finetuned:  # what was trained on after the fold has no maps
            what = "what was folded before the release = features of the sources side by side between the maps"
            return Certificate("unfolded", what, max(errors), TOLERANCE)
        last = _network(proof.plan, stages[-1].weights)(proof.pixels.double())
        return Certificate("unfolded", what, max(*errors, relative_error(features, last)), TOLERANCE)
    if proof.solution.maps is None:
        return Certificate("unfolded", what, None, None)
    whole = Stage(proof.plan, proof.solution.maps, [s.weights for s in proof.sources], proof.solution.weights)
    return Certificate("unfolded", what, max(_readout_errors(proof, whole, features)), TOLERANCE)


def _stage_error(proof: Proof, stage: Stage) -> float:
    """What one stage made, against its sources side by side between its maps."""
    made = _network(stage.plan, stage.weights)(proof.pixels.double())
    return relative_error(made, _unfolded_stage(stage)(proof.pixels))


def _unfolded_stage(stage: Stage) -> UnfoldedSuperNet:
    sources = [{n: t.cpu() for n, t in weights.items()} for weights in stage.sources]
    if stage.permutations:
        sources = [permute(stage.plan, own, orders) for own, orders in zip(sources, stage.permutations)]
    return UnfoldedSuperNet(stage.plan, stage.maps.to("cpu"), sources)


def _readout_errors(proof: Proof, stage: Stage, features: Tensor) -> list[float]:
    """Of the features, and of what U_out, a map as well, reads for every source in its order in the stage."""
    supernet = _unfolded_stage(stage)
    exact = supernet(proof.pixels)
    errors = [relative_error(features, exact)]
    for i, projector in enumerate(proof.solution.projectors):
        found = features @ projector.cpu().double().T
        if stage.permutations:
            found = found[:, stage.permutations[i][stage.plan.features.space].cpu()]
        errors.append(relative_error(found, supernet.project(exact, i)))
    return errors


def _heads(proof: Proof, heads: Mapping[str, Tensor], features: Tensor) -> Certificate:
    what = "written heads on merged features = sources' heads on the features read out for them"
    errors = []
    for source, projector in zip(proof.sources, proof.solution.projectors):
        if source.head is not None:
            expected = _double(source.head)(features @ projector.cpu().double().T)
            found = _double(written_head(proof, source.name, heads))(features)
            errors.append(relative_error(found, expected))
    return Certificate("heads", what, max(errors) if errors else None, TOLERANCE)


def _evaluated(proof: Proof, written: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> Certificate:
    what = "logits of the evaluation = written heads on the written model's features"
    seen = proof.seen
    if seen is None or not proof.heads or len(seen.pixels) == 0:
        return Certificate("evaluated", what, None, None)
    features = _network(proof.plan, written, torch.float32)(seen.pixels)  # as exact as what it is compared with
    errors = [
        relative_error(logits, written_head(proof, name, stored(heads, "float32"))(features))
        for name, logits in zip(proof.heads, seen.logits)
    ]
    return Certificate("evaluated", what, max(errors), TOLERANCE)


def _permuted(proof: Proof) -> Certificate:
    what = "features of the reordered sources = reordered features of the sources"
    found = [(proof.plan, s.weights, p) for s, p in zip(proof.sources, proof.solution.permutations)]
    if not found:  # every stage has its own
        stages = proof.solution.stages
        found = [(stage.plan, *own) for stage in stages for own in zip(stage.sources, stage.permutations)]
    errors = []
    for plan, weights, orders in found:
        before = _network(plan, weights)(proof.pixels.double())
        after = _network(plan, permute(plan, weights, orders))(proof.pixels.double())
        errors.append(relative_error(after, before[:, orders[plan.features.space].cpu()]))
    return Certificate("permuted", what, max(errors) if errors else None, TOLERANCE)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Largest absolute difference over the root mean square of the exact answer; a NaN counts as infinite."""
    exact = exact.double()
    scale = exact.square().mean().sqrt().item() or 1.0
    error = (found.double().cpu() - exact.cpu()).abs().max().item() / scale
    return error if math.isfinite(error) else math.inf


def written_head(proof: Proof, name: str, tensors: Mapping[str, Tensor]) -> Head:
    """A head as its file holds it."""
    head = proof.heads[name]
    return replace(
        head,
        weight=tensors[f"{name}.weight"],
        bias=tensors.get(f"{name}.bias"),
        projector=tensors.get(f"{name}.projector"),
    )


def _difference(written: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> float:
    """Largest difference between two sets of tensors; infinite where names, shapes or dtypes differ."""
    if written.keys() != kept.keys():
        return math.inf
    errors = [0.0]
    for name, tensor in kept.items():
        mine, own = written[name], tensor.detach().cpu()
        if mine.shape != own.shape or mine.dtype != own.dtype:
            return math.inf
        if not torch.equal(mine, own):
            error = (mine.double() - own.double()).abs().max().item()
            errors.append(error if math.isfinite(error) and error > 0 else math.inf)
    return max(errors)


def _network(plan: Plan, weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> nn.Module:
    """An ordinary network on the CPU."""
    module = plan.skeleton()
    cast = {n: t.cpu().to(dtype) if t.is_floating_point() else t.cpu() for n, t in weights.items()}
    module.load_state_dict(cast, assign=True)
    return module.requires_grad_(False).eval()


def _double(head: Head) -> Head:
    bias, projector = (None if t is None else t.cpu().double() for t in (head.bias, head.projector))
    return replace(head, weight=head.weight.cpu().double(), bias=bias, projector=projector)
