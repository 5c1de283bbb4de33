"""Scores of models on the same test images, calibrated on the same unlabelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fsmerge_cli.checkpoints.stated import Stated
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.inputs import per_feature, reads
from fsmerge_cli.common.progress import Progress
from fsmerge_cli.data import ImageSet
from fsmerge_cli.data.draw import Images
from fsmerge_cli.evaluation.forward import Forward, Outputs, TestSet, ensemble_forward
from fsmerge_cli.evaluation.joint import Decision, best_decision, expected_labels
from fsmerge_cli.evaluation.metrics import matched_temperatures, temperatures
from fsmerge_cli.evaluation.neighbours import neighbours_by_task
from fsmerge_cli.evaluation.plausibility import implausible, worded_note
from fsmerge_cli.evaluation.predictions import Heads, agreement
from fsmerge_cli.evaluation.probes import probes_by_task
from fsmerge_cli.evaluation.scoring import NumberScore, Score, number_score, score
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.teachers import batches


@dataclass(frozen=True)
class Scorer:
    """Scores models on the same test images, and calibrates them on the same unlabelled images.

    tasks: names, in the order of the test sets. truth: task index and class index of every test image. heads: the
    tasks with a head; labels: class names of every head for the joint predictions. images: unlabelled, for the
    temperatures (None: there are none). places: of the `heads` among all heads; numbers: by task that predicts a
    number its place there; values: the numbers that are to be predicted.
    """

    tasks: tuple[str, ...]
    tests: TestSet
    truth: tuple[Tensor, Tensor]
    heads: Heads
    labels: Sequence[Sequence[str]]
    images: Images | None
    hardware: Hardware
    device: torch.device
    progress: Progress
    places: Sequence[int]
    numbers: Mapping[str, int]
    values: Tensor

    @classmethod
    def of(
        cls,
        heads: Mapping[str, Head | None],
        sets: Sequence[ImageSet | None],
        images: Images | None,
        hardware: Hardware,
        device: torch.device,
        progress: Progress,
    ) -> Scorer:
        """A scorer of tasks with their heads and test images, both in the same order."""
        tests = TestSet(tuple(heads), tuple(sets), hardware, device, progress)
        # Classes without label names differ from those of every other head, even if their indices are equal.
        every = [(name, i, head) for i, (name, head) in enumerate(heads.items()) if head]
        entries = [(name, i, head) for name, i, head in every if not head.regression]
        labels = [
            head.labels if head.named else tuple(f"{name} {label}" for label in head.labels)
            for name, _, head in entries
        ]
        given = Heads(
            [n for n, _, _ in entries], [i for _, i, _ in entries], [own.labels for _, _, own in entries]
        )
        return cls(
            tuple(heads), tests, tests.truth(), given, labels, images, hardware, device, progress,
            [place for place, (_, _, head) in enumerate(every) if not head.regression],
            {name: place for place, (name, _, head) in enumerate(every) if head.regression},
            tests.values(),
        )  # fmt: skip

    def sources(self, sources: Sequence[Source]) -> tuple[Score, Outputs]:
        """Score the ensemble of the sources. Its outputs are the reference of all other rows."""
        outputs = self._outputs("sources", ensemble_forward(sources, self.device))
        return self._score(outputs, outputs), outputs

    def row(
        self, name: str, forward: Forward, reference: Outputs | None = None, decision: Decision | None = None
    ) -> tuple[Score, Outputs]:
        """Score one model.

        reference: outputs of the sources (None: they are not available). decision: of the model as it was written
        (None: the best one is chosen).
        """
        outputs = self._outputs(name, forward)
        return self._score(outputs, reference, decision), outputs

    def warnings(self, outputs: Outputs, stated: Mapping[str, Stated]) -> list[str]:
        """Warnings on the heads whose accuracy is not plausible. stated: accuracies by task, where known."""
        found = []
        heads = self.heads
        for name, index, labels, logits in zip(heads.tasks, heads.index, heads.labels, outputs.logits):
            own = (self.truth[0] == index) & (self.truth[1] >= 0)
            if logits.shape[1] == len(labels):
                found.append(
                    implausible(name, logits[own].argmax(1), self.truth[1][own], labels, stated.get(name))
                )
        of_words = any(own.tags for own in self.tests.sets if own)
        return [worded_note(warning, "word") if of_words else warning for warning in found if warning]

    def _outputs(self, name: str, forward: Forward) -> Outputs:
        found = self.tests.predict(forward, name)
        found = replace(
            found,
            logits=[found.logits[place] for place in self.places],
            every=found.logits,
            numbers={task: found.logits[place][:, 0] for task, place in self.numbers.items()},
        )
        needed = self._has_joint or name in ("sources", "merged")  # the written model has a joint decision
        return replace(found, calibrating=self._calibrating(forward) if needed else ())

    def _score(self, outputs: Outputs, reference: Outputs | None, decision: Decision | None = None) -> Score:
        temperatures = self._temperatures(outputs, reference)
        place = self._heads_of_images()
        if decision is None and outputs.calibrating and (reference is not None or place is not None):
            expected = expected_labels((reference or outputs).calibrating, place)
            decision = best_decision(outputs.calibrating, expected, temperatures)
        given = self.truth, self.tasks, self.heads.index, self.labels, temperatures, decision
        with_heads = [*self.heads.index, *map(self.tasks.index, self.numbers)]
        found = replace(
            score(outputs, reference or outputs, *given),
            numbers=self._number_scores(outputs),
            probes=probes_by_task(outputs.features, self.truth, self.tasks, with_heads),
        )
        if reference is None or outputs is reference:
            return found
        agreed = agreement(outputs.logits, reference.logits, self.truth[0], self.heads)
        nearest = neighbours_by_task(
            outputs.features, reference.features, self.truth[0], self.tasks, self.heads.index
        )
        return replace(found, agreement=agreed, neighbours=nearest)

    def _number_scores(self, outputs: Outputs) -> dict[str, NumberScore]:
        """The metrics of the tasks that predict a number, where they have labels."""
        scores = {}
        for task, found in outputs.numbers.items():
            own = (self.truth[0] == self.tasks.index(task)) & ~self.values.isnan()
            if bool(own.any()):
                scores[task] = number_score(found[own], self.values[own])
        return scores

    @property
    def _has_joint(self) -> bool:
        """Whether joint accuracy is defined: several heads, and labelled test images."""
        own = torch.isin(self.truth[0], torch.tensor(self.heads.index, dtype=torch.long))
        return len(self.heads.index) > 1 and bool((own & (self.truth[1] >= 0)).any())

    @property
    def _every_task_has_images(self) -> bool:
        """Whether there are unlabelled images of every task with a head."""
        return self.images is not None and set(self.heads.index) <= set(self.images.task.tolist())

    def _heads_of_images(self) -> Tensor | None:
        """The head of the task of each image of `_calibrating`; None where some task has no images.

        Of texts that are read word by word, of each word.
        """
        if self.images is None or not self._every_task_has_images:
            return None
        position = {index: place for place, index in enumerate(self.heads.index)}
        task = per_feature(self.images.task, reads(self.images.images))
        return torch.tensor([position[own] for own in task.tolist() if own in position])

    def _calibrating(self, forward: Forward) -> list[Tensor]:
        """Logits of every head on the images that temperatures are fitted on.

        These are the images of the tasks; if some task has none, all images.
        """
        if self.images is None or not len(self.images) or len(self.heads.index) < 2:
            return []
        rows = torch.arange(len(self.images))
        if self._every_task_has_images:
            rows = rows[torch.isin(self.images.task, torch.tensor(self.heads.index))]
        parts: list[list[Tensor]] = []
        with torch.inference_mode():
            for part in batches(len(rows), self.hardware.eval_batch):
                _, logits = forward(self.images.images[rows[part]].to(self.device))
                parts.append([logits[place].float().cpu() for place in self.places])
        return [torch.cat(own) for own in zip(*parts)]

    def _temperatures(self, outputs: Outputs, reference: Outputs | None) -> list[float]:
        """One temperature per head, fitted on the unlabelled images of the merge.

        If every task has images, the task indices serve as labels (`temperatures`). Otherwise the predictions of
        each head's source do (`matched_temperatures`; 1.0 for the sources themselves). Empty without either.
        """
        if self.images is None:
            return []
        ones = [1.0] * len(self.heads.index)
        if not self._has_joint:
            return ones  # they are not used
        if self._every_task_has_images:
            place = self._heads_of_images()
            return temperatures(outputs.calibrating, torch.empty(0) if place is None else place)
        if reference is None or not outputs.calibrating:
            return []
        return ones if outputs is reference else matched_temperatures(outputs.calibrating, reference.calibrating)
