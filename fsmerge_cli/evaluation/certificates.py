"""Certificates: checks that the written model is the merged model. If one fails, the model is not saved.

Each compares two independent computations of the same result on a few images, in fp64 where possible, and reports
its largest error and its tolerance. The written files are read back as any other user would read them.
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
from fsmerge_cli.checkpoints.dtype import to_dtype
from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import CertificateError
from fsmerge_cli.common.inputs import Inputs
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
"""Number of images that every certificate uses."""

TOLERANCE = 1e-3
"""Largest error of fp32 results, relative to the root mean square of the exact result."""

ROUNDING = 1.0
"""The same for weights rounded to `output.dtype`: at a larger error the features are lost."""


@dataclass(frozen=True)
class Certificate:
    """One check: what was compared, the largest error and the tolerance (None: not applicable)."""

    name: str
    what: str
    error: float | None
    tolerance: float | None

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance; false for NaN."""
        return self.error is None or self.tolerance is None or self.error <= self.tolerance

    def entry(self) -> dict[str, Any]:
        """The entry of evaluation.json."""
        if self.error is None:
            return {"what": self.what, "status": "not applicable"}
        content = {name: value for name, value in asdict(self).items() if name != "name"}
        return {**content, "status": "holds"}


@dataclass(frozen=True)
class EvaluatedBatch:
    """A few images of the evaluation: pixels [n, C, H, W] and the logits of every head [n, classes], in fp32."""

    pixels: Inputs
    logits: Sequence[Tensor]


@dataclass(frozen=True)
class Certifier:
    """What a written model is compared with.

    sources: as they were loaded. heads: folded, by task. pixels: of the images that every certificate uses.
    evaluated: a few images of the evaluation, if there was one. dtype: of the written tensors; solution and heads
    are those before rounding. progress: receives an event per certificate.
    """

    plan: Plan
    sources: Sequence[Source]
    solution: Solution
    heads: Mapping[str, Head]
    pixels: Inputs
    evaluated: EvaluatedBatch | None = None
    dtype: str = "float32"
    progress: Progress = silent

    def certify(self, folder: Path, more: Sequence[Callable[[], Certificate]] = ()) -> dict[str, Any]:
        """All certificates of the model in `folder`, by name, as in evaluation.json.

        more: checks of what else was written. Raises CertificateError if one does not hold.
        """
        stored = load_file(folder / "model.safetensors")
        written = self.plan.family.from_file(self.plan.arch, to_dtype(stored, "float32"))
        heads = load_file(folder / "heads.safetensors") if self.heads else {}
        with torch.no_grad():
            # The fp64 network is released at once: it is the largest object in memory.
            features = network(self.plan, written)(self.pixels.double())
            known, exact = heads, features
            checks: list[Callable[[], Certificate]] = [lambda: _reloaded(self, folder, stored, heads)]
            if self.dtype != "float32":  # the other checks use the weights before rounding
                exact = network(self.plan, self.solution.weights)(self.pixels.double())
                known, _ = head_tensors(self.heads)
                checks.append(lambda: _rounded(self, features, exact))
            checks += [
                lambda: _unfolded(self, exact),
                lambda: _heads(self, known, exact),
                lambda: _evaluated(self, written, heads),
                lambda: _permuted(self),
                *more,
            ]
            found: list[Certificate] = []
            for check in checks:
                self.progress(Event("certify", len(found), len(checks)))
                found.append(check())
            self.progress(Event("certify", len(found), len(checks)))
        broken = [c for c in found if not c.holds]
        if broken:
            raise CertificateError(
                f"{c.name}: {c.what}; largest error {c.error:.3g}, tolerance {c.tolerance:.3g}" for c in broken
            )
        return {c.name: c.entry() for c in found}


def probe(images: Images, plan: Plan, seed: int) -> Inputs:
    """Up to IMAGES inputs of the merge, equally many per task; random ones if the merge used none."""
    if len(images) == 0:
        return plan.family.sample(plan.arch, IMAGES, generator(seed, "certificates"))
    own = [(images.task == task).nonzero().flatten() for task in torch.unique(images.task)]
    share = math.ceil(IMAGES / len(own))
    return images.images[torch.cat([rows[:share] for rows in own])[:IMAGES]]


def _reloaded(
    certifier: Certifier, folder: Path, written: Mapping[str, Tensor], heads: Mapping[str, Tensor]
) -> Certificate:
    what = "tensors, architecture and labels read back from the files = those in memory"
    if certifier.dtype != "float32":
        what += f", rounded to {certifier.dtype}"
    kept, _ = head_tensors(certifier.heads)
    error = max(
        _difference(written, to_dtype(certifier.solution.tensors(certifier.plan), certifier.dtype)),
        _difference(heads, to_dtype(kept, certifier.dtype)),
    )
    if not _loads(certifier, folder):
        error = math.inf
    return Certificate("reloaded", what, error, 0.0)


def _rounded(certifier: Certifier, features: Tensor, exact: Tensor) -> Certificate:
    what = f"features of the {certifier.dtype} file = those before rounding (output.dtype=float32 does not round)"
    return Certificate("rounded", what, relative_error(features, exact), ROUNDING)


def _loads(certifier: Certifier, folder: Path) -> bool:
    """Whether the folder can be loaded as a source with the same architecture and labels."""
    names: list[str | None] = list(certifier.heads) or [None]
    for name in names:
        found = load(SourceSpec(name or "merged", checkpoint=str(folder), head=name), headers=True)
        family, head = certifier.plan.family, certifier.heads[name] if name else None
        same = found.family is family and family.stated(found.arch) == family.stated(certifier.plan.arch)
        if not same or (found.head and found.head.stated) != (head and head.stated):
            return False
    return True


def _unfolded(certifier: Certifier, features: Tensor) -> Certificate:
    what = "features of the written file = features of the sources side by side between the maps, in fp64"
    stages = certifier.solution.stages
    if len(stages) == 1 and not certifier.solution.finetuned:  # one stage, of permuted sources
        return Certificate("unfolded", what, max(_feature_errors(certifier, stages[0], features)), TOLERANCE)
    if stages:
        errors = [_stage_error(certifier, stage) for stage in stages]
        if certifier.solution.finetuned:  # weights trained after the fold have no maps
            before = "fine-tuning of the folded weights" if certifier.solution.trace.loss else "the reset"
            what = f"features before {before} = features of the sources between the maps"
            return Certificate("unfolded", what, max(errors), TOLERANCE)
        last = network(certifier.plan, stages[-1].weights)(certifier.pixels.double())
        return Certificate("unfolded", what, max(*errors, relative_error(features, last)), TOLERANCE)
    if certifier.solution.maps is None:
        return Certificate("unfolded", what, None, None)
    whole = Stage(certifier.plan, certifier.solution.maps, [s.weights for s in certifier.sources], {})
    return Certificate("unfolded", what, max(_feature_errors(certifier, whole, features)), TOLERANCE)


def _stage_error(certifier: Certifier, stage: Stage) -> float:
    """The features of one stage's weights, compared with its sources side by side between its maps."""
    made = network(stage.plan, stage.weights)(certifier.pixels.double())
    return relative_error(made, _unfolded_stage(stage)(certifier.pixels))


def _unfolded_stage(stage: Stage) -> UnfoldedSuperNet:
    sources = [{n: t.cpu() for n, t in weights.items()} for weights in stage.sources]
    if stage.permutations:
        sources = [permute(stage.plan, own, orders) for own, orders in zip(sources, stage.permutations)]
    return UnfoldedSuperNet(stage.plan, stage.maps.to("cpu"), sources)


def _feature_errors(certifier: Certifier, stage: Stage, features: Tensor) -> list[float]:
    """Errors of the features, and of their projection by U_out for every source, in the stage's unit order."""
    supernet = _unfolded_stage(stage)
    exact = supernet(certifier.pixels)
    errors = [relative_error(features, exact)]
    for i, projector in enumerate(certifier.solution.projectors):
        found = features @ projector.cpu().double().T
        if stage.permutations:
            found = found[:, stage.plan.feature_order(stage.permutations[i]).cpu()]
        errors.append(relative_error(found, supernet.project(exact, i)))
    return errors


def _heads(certifier: Certifier, heads: Mapping[str, Tensor], features: Tensor) -> Certificate:
    what = "written heads on merged features = sources' heads on the projected merged features"
    errors = []
    for source, projector in zip(certifier.sources, certifier.solution.projectors):
        if source.head is not None:
            expected = double_head(source.head)(features @ projector.cpu().double().T)
            found = double_head(written_head(certifier, source.name, heads))(features)
            errors.append(relative_error(found, expected))
    return Certificate("heads", what, max(errors) if errors else None, TOLERANCE)


def _evaluated(certifier: Certifier, written: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> Certificate:
    what = "logits of the evaluation = written heads on the written model's features"
    evaluated = certifier.evaluated
    if evaluated is None or not certifier.heads or len(evaluated.pixels) == 0:
        return Certificate("evaluated", what, None, None)
    features = network(certifier.plan, written, torch.float32)(evaluated.pixels)  # fp32, as the evaluation
    errors = [
        relative_error(logits, written_head(certifier, name, to_dtype(heads, "float32"))(features))
        for name, logits in zip(certifier.heads, evaluated.logits)
    ]
    return Certificate("evaluated", what, max(errors), TOLERANCE)


def _permuted(certifier: Certifier) -> Certificate:
    what = "features of the permuted sources = permuted features of the sources"
    solution, plan = certifier.solution, certifier.plan
    found = [(replace(plan, arch=s.arch), s.weights, p) for s, p in zip(certifier.sources, solution.permutations)]
    if not found:  # then every stage has its own permutations
        found = [(stage.plan, *own) for stage in solution.stages for own in zip(stage.sources, stage.permutations)]
    errors = []
    for plan, weights, orders in found:
        before = network(plan, weights)(certifier.pixels.double())
        after = network(plan, permute(plan, weights, orders))(certifier.pixels.double())
        errors.append(relative_error(after, before[:, plan.feature_order(orders).cpu()]))
    return Certificate("permuted", what, max(errors) if errors else None, TOLERANCE)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Largest absolute difference over the root mean square of `exact`; infinite if not finite."""
    exact = exact.double()
    scale = exact.square().mean().sqrt().item() or 1.0
    error = (found.double().cpu() - exact.cpu()).abs().max().item() / scale
    return error if math.isfinite(error) else math.inf


def written_head(certifier: Certifier, name: str, tensors: Mapping[str, Tensor]) -> Head:
    """The head of a task with the tensors of its file."""
    head = certifier.heads[name]
    return replace(
        head,
        weight=tensors[f"{name}.weight"],
        bias=tensors.get(f"{name}.bias"),
        projector=tensors.get(f"{name}.projector"),
    )


def _difference(written: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> float:
    """Largest difference between two sets of tensors; infinite if names, shapes or dtypes differ."""
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


def network(plan: Plan, weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> nn.Module:
    """The plan's network with these weights, on the CPU."""
    module = plan.skeleton()
    cast = {n: t.cpu().to(dtype) if t.is_floating_point() else t.cpu() for n, t in weights.items()}
    module.load_state_dict(cast, assign=True)
    return module.requires_grad_(False).eval()


def double_head(head: Head) -> Head:
    """The same head in fp64."""
    bias, projector = (None if t is None else t.cpu().double() for t in (head.bias, head.projector))
    return replace(head, weight=head.weight.cpu().double(), bias=bias, projector=projector)
