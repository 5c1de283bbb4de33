"""FW-Merging (Chen et al., arXiv 2503.12649): Frank-Wolfe steps towards the source that lowers the loss most."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.func import functional_call

from fsmerge_cli.alignment.matching import require_heads
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.options import FORBID, BatchSize, Count
from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.methods.task_vectors.coefficients import number_variances
from fsmerge_cli.methods.task_vectors.vectors import TaskVectorMethod, TaskVectors, weighted_sum
from fsmerge_cli.models.head import Head
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import network


@dataclass(frozen=True, config=FORBID)
class FWMerging(TaskVectorMethod):
    """W <- W + g_s (W_i - W) for each tensor; i: the source with the smallest product of W_i and the gradient.

    s = 0 ... steps - 1, with g_s = 2 / (s + 3), from the mean of the sources. The loss is the cross-entropy
    between the predictions of source i and those of the merged model with its head (of predicted numbers: their
    squared error, relative to their variance), on unlabelled images of task i, summed over the tasks; the paper
    takes it with labels. batch_size: images per task and step.
    """

    uses_images: ClassVar[bool] = True
    mixed_images: ClassVar[str] = (
        "compares the merged model with each source on images of its own task, and it is not known which these "
        "are. Folders named after the tasks avoid it"
    )

    name: Literal["fw_merging"] = "fw_merging"
    steps: Count = 10
    batch_size: BatchSize = 100

    def check(self, problem: Problem) -> None:
        """Raise UserError where a source has no head, a task has no images, or widths differ."""
        super().check(problem)
        require_heads(problem, self.name)
        problem.require_task_images()

    def merge(self, vectors: TaskVectors) -> Solution:
        """The shares of the sources by tensor; one merged network and its gradient are in memory, in fp32."""
        problem, k = vectors.problem, len(vectors.problem.sources)
        shares = {name: torch.full((k,), 1 / k, dtype=torch.float64) for name in vectors.names}
        draws = [generator(problem.seed, "fw_merging", task) for task in problem.plan.tasks]
        module, variances = problem.plan.skeleton(), number_variances(problem)
        fixed = {n: t for n, t in vectors.solution(lambda name, own: own[0]).weights.items() if n not in shares}

        def combined(name: str, own: Tensor) -> Tensor:
            return weighted_sum(shares[name].to(own.device), own)

        for step in range(self.steps):
            weights = {n: (vectors.base(n) + combined(n, vectors.of(n))).float() for n in shares}
            leaves = {n: t.requires_grad_(True) for n, t in weights.items()}
            total = 0.0
            for i, random in enumerate(draws):
                inputs, targets, head = self._batch(vectors.running, i, random)
                run = vectors.running_weights({**fixed, **leaves})
                logits = head(functional_call(module, run, (inputs,)))
                loss = -(targets * logits.log_softmax(-1)).sum(-1).mean()
                if head.regression:
                    loss = (logits - targets).square().mean() / variances[i]
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            for name, leaf in leaves.items():
                slope = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
                best = int((vectors.of(name) * slope).flatten(1).sum(1).argmin())
                vertex = torch.nn.functional.one_hot(torch.tensor(best), k).double()
                shares[name] += 2 / (step + 3) * (vertex - shares[name])
            problem.progress(Event("Frank-Wolfe", step + 1, self.steps, {"loss": total}))
        found = torch.stack(list(shares.values())).mean(0).tolist()
        facts = {f"share of {task}": share for task, share in zip(problem.plan.tasks, found)}
        return vectors.solution(combined, **facts)

    def _batch(self, problem: Problem, source: int, random: torch.Generator) -> tuple[Inputs, Tensor, Head]:
        """Images of one task, the predictions of its source on them, and its head."""
        own, images = problem.sources[source], problem.task_images(source)
        rows = torch.randint(len(images), (self.batch_size,), generator=random)
        inputs = images[rows].to(problem.device)
        if own.head is None:
            raise ValueError(own.name)  # see `check`
        head = own.head.to(problem.device)
        with torch.no_grad():
            targets = head(network(own, problem.device)(inputs))
            targets = targets if head.regression else targets.softmax(-1)
        return inputs, targets, head
