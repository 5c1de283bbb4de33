"""A written model, read back: one backbone and one head per task; also third-party models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from pydantic.dataclasses import dataclass as checked
from torch import Tensor, nn

from fsmerge_cli.architectures import Family
from fsmerge_cli.architectures.token_outputs import on_grid
from fsmerge_cli.checkpoints.files import readable
from fsmerge_cli.checkpoints.head_facts import file_heads
from fsmerge_cli.checkpoints.heads import choose_head, listed_heads
from fsmerge_cli.checkpoints.load import assemble, check_weights
from fsmerge_cli.checkpoints.open import open_checkpoint
from fsmerge_cli.checkpoints.projectors import TokenProjector, read_projectors, read_token_projectors
from fsmerge_cli.checkpoints.tasks import order_note, with_label_names
from fsmerge_cli.checkpoints.weights import model_in
from fsmerge_cli.common.errors import ConfigError, SourceError, UserError, unknown
from fsmerge_cli.common.hardware import available
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.options import FORBID, FiniteFloat, Flag, Positive, Text, build
from fsmerge_cli.common.shown import listed, shown
from fsmerge_cli.data.base import Transform
from fsmerge_cli.data.readers import reader
from fsmerge_cli.data.text.tokens import ToTokens
from fsmerge_cli.evaluation.tokens import tokens_of
from fsmerge_cli.models.head import Head, of_classes
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.fitting_inputs import features_of
from fsmerge_cli.runs.from_run import Data, given_data
from fsmerge_cli.runs.predict import Prediction, batches, is_one, outputs_of, ranked, require_top_k
from fsmerge_cli.runs.predict_texts import is_one_text, tagged, text_batches
from fsmerge_cli.training.teachers import network


@checked(frozen=True, config=FORBID)
class Reading:
    """What the files of a third-party model do not state.

    task: name of the task of the one head inside the checkpoint (null: `model`). arch, head, labels, mean, std,
    normalize, prefix, ema, input_size, base: as in `models.sources`; null takes the checkpoint's.
    """

    task: Text | None = None
    arch: Text | dict[str, Any] | None = None
    head: Text | None = None
    labels: Text | tuple[Text, ...] | None = None
    mean: tuple[FiniteFloat, ...] | None = None
    std: tuple[FiniteFloat, ...] | None = None
    normalize: Flag | None = None
    prefix: Text | None = None
    ema: Flag | None = None
    input_size: Positive | tuple[Positive, Positive] | None = None
    base: Text | None = None


@dataclass(frozen=True, repr=False)
class Merged:
    """A model read from disk.

    folder: or file. sha256: of the file of weights. backbone: frozen, in evaluation mode, images [n, C, H, W] with
    pixels in 0..1 -> features [n, d]. heads: by task, in the order in which they were merged. preprocessing: of
    the images before. notes: what the user should know about how it was read. projectors: [d_i, d] by source
    without a head, from the features to those of the source; token_projectors: by source, from tokens to its own.
    """

    folder: Path
    sha256: str
    family: Family
    arch: Any
    preprocessing: Any
    backbone: nn.Module
    heads: Mapping[str, Head]
    notes: tuple[str, ...] = ()
    projectors: Mapping[str, Tensor] = field(default_factory=dict)
    token_projectors: Mapping[str, TokenProjector] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line: the architecture, the tasks with their numbers of classes, and the folder."""
        tasks = listed(f"{name} ({len(head.labels)} classes)" for name, head in self.heads.items())
        return f"Merged({self.family.name}; {tasks}; from {shown(self.folder)})"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.heads)

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Class names by task, in the order of the logits."""
        return {name: head.labels for name, head in self.heads.items()}

    def logits(self, images: Inputs, task: str) -> Tensor:
        """Logits [n, classes] of one task for images [n, C, H, W]. Raises ConfigError for an unknown task.

        Raises DataError, as all that reads images or tokens here, where they do not fit the model.
        """
        return self._head(task)(features_of(self, images))

    def features(self, images: Inputs, source: str | None = None) -> Tensor:
        """Features [n, d] of images [n, C, H, W]; of a source without a head, those that it has: [n, d_i].

        Raises ConfigError for a source without a projector: its head contains it.
        """
        if source is not None and source not in self.projectors:
            raise ConfigError(unknown("source without a head", source, self.projectors))
        found = features_of(self, images)
        return found if source is None else found @ self.projectors[source].to(found).T

    def tokens(self, images: Inputs, source: str) -> Tensor:
        """Patch tokens [n, T, d_i] of a source, for its decoders. Raises ConfigError."""
        place = self.family.tokens(self.backbone)
        if place is None or source not in self.token_projectors:
            raise ConfigError(unknown("source with a token projector", source, self.token_projectors))
        weight, bias, grid = self.token_projectors[source]
        own = features_of(self, images, partial(tokens_of, self.backbone, place))
        found = own @ weight.to(own).T + bias.to(own)
        here = self.family.grid(self.backbone)
        return found if grid is None or here is None else on_grid(found, here, grid)

    def with_heads(self) -> Merged:
        """The model itself. Raises SourceError if none of its sources had a head."""
        if not self.heads:
            raise SourceError(
                f"{shown(self.folder)} has no heads, so there are no predictions: its sources had none. In "
                "Python, load_merged(FOLDER).features(images, SOURCE) gives the features of each source "
                f"({listed(self.projectors)})."
            )
        return self

    @property
    def transform(self) -> Transform:
        """PIL image -> pixels in 0..1 [C, H, W], resized and cropped as the sources need it; text -> tokens."""
        return reader(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    def to(self, device: torch.device | str) -> Merged:
        """The same model with its weights moved to `device`. Raises ConfigError where there is no such device."""
        device = available(str(device), "device=", "'cpu'")
        heads = {name: head.to(device) for name, head in self.heads.items()}
        projectors = {name: U.to(device) for name, U in self.projectors.items()}
        return replace(self, backbone=self.backbone.to(device), heads=heads, projectors=projectors)

    def probabilities(self, images: Inputs, task: str | None = None) -> Tensor:
        """Softmax [n, labels] for images [n, C, H, W]: of one task, or of the labels of all tasks in their order.

        Over all tasks the logits of every head are divided by its temperature and get its shift, as in
        `classifier/`. Raises ConfigError for an unknown task.
        """
        return self._outputs(images, task)[0]

    def _outputs(self, images: Inputs, task: str | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The probabilities [n, labels], and the predicted numbers by task, [n]."""
        heads = self.with_heads().heads if task is None else {task: self._head(task)}
        return outputs_of(heads, features_of(self, images), joint=task is None)

    @overload
    def predict(self, images: str | Path | Image.Image, task: str | None = None, top_k: int = 5) -> Prediction: ...

    @overload
    def predict(self, images: Any, task: str | None = None, top_k: int = 5) -> Any: ...

    def predict(self, images: Any, task: str | None = None, top_k: int = 5) -> Any:
        """The most probable labels, of one task or of all tasks together (the task is not known).

        images: one image (a path, a PIL image, an array [H, W] or [H, W, C], a tensor [C, H, W]; uint8 or floats
        in 0..1), or several: a list of such, or a tensor [n, C, H, W]. A text encoder takes a string, a pair of
        strings as a tuple, or a list of such. Returns a Prediction for one image or text (of a classifier of
        tokens: a Tagged, with one for every word), and a list of them for several. Raises ConfigError for an
        unknown task, DataError for an unreadable image.
        """
        count, names = require_top_k(top_k), self.with_heads()._label_names(task)
        texts, transform = self.family.kind == "text", self.transform
        if is_one_text(images) if texts else is_one(images):
            return self.predict([images], task, top_k)[0]
        found: list[Prediction] = []
        for inputs in text_batches(images, transform) if texts else batches(images, transform):
            shares, numbers = self._outputs(inputs, task)
            found += ranked(shares, names, count, numbers)
        if isinstance(transform, ToTokens) and transform.words:
            return tagged(images, found, transform)
        return found

    def _label_names(self, task: str | None) -> list[tuple[str, str]]:
        """Task and label of every column of `probabilities`."""
        heads = of_classes(self.heads if task is None else {task: self._head(task)})
        return [(name, label) for name, head in heads.items() for label in head.labels]

    def only(self, tasks: tuple[str, ...]) -> Merged:
        """The same model with only some of its tasks. Raises ConfigError for an unknown task."""
        return replace(self, heads={name: self._head(name) for name in tasks})

    def _head(self, task: str) -> Head:
        if task not in self.heads:
            raise ConfigError(unknown("task", task, self.heads))
        return self.heads[task]


def load_merged(
    folder: str | Path,
    reading: Reading | Mapping[str, Any] | None = None,
    data: Data | None = None,
) -> Merged:
    """The model in a folder that `merge` wrote (or in its merged/), in a timm folder or in a checkpoint file.

    reading: what the files do not state; see :class:`Reading`. data: the data set whose class folders
    `labels=data` takes (`from_run`: the one that the run's config.yaml names). The model is not changed, and no
    code in it is run. Raises SourceError where it cannot be read or has no head, ConfigError where a key is wrong.
    """
    given = reading if isinstance(reading, Reading) else build(Reading, reading or {}, "model")
    path = model_path(folder)
    task = given.task or "model"
    options = {name: value for name, value in asdict(given).items() if name != "task"}
    try:
        entry = SourceSpec(task, checkpoint=str(path), **options)
        spec = with_label_names(entry, given_data(path, data))
        guess = order_note(entry, spec.labels) if isinstance(spec.labels, tuple) else None
        found = open_checkpoint(spec)
        names = listed_heads(*found.heads)
        if names and (given.labels or given.task or given.head):
            raise SourceError(
                f"{path} lists its tasks and labels in heads.safetensors ({listed(names)}). Leave out "
                "model.task, model.head and model.labels; tasks=[...] of evaluate and --task of predict and "
                "export select tasks."
            )
        first = assemble(spec, found, skip_head=bool(names))
        notes, heads, projectors = first.notes, {task: first.head}, read_projectors(path)
        if projectors and first.head is None:
            heads = {}
        for name, head in heads.items():
            if head is not None:  # before the weights, whose check knows no key for the labels
                _checked(head, name, path)
        check_weights(first)
        if names:
            stored, metadata = file_heads(*found.heads, found.where), found.heads[1]
            read = [choose_head(replace(spec, head=n), stored, metadata, found.config, found.where) for n in names]
            heads = {name: head for name, (head, _, _) in zip(names, read)}
            named = [(n, note.removeprefix(f"'{task}': ")) for n, (_, _, own) in zip(names, read) for note in own]
            notes += tuple(f"'{n}': {note}" for n, note in named)
            for name, head in heads.items():
                check_weights(replace(first, name=name, head=head))
        return Merged(
            path,
            found.sha256,
            first.family,
            first.arch,
            first.preprocessing,
            network(first),
            {name: _checked(head, name, path) for name, head in heads.items()},
            tuple(
                reworded_for_model(note.removeprefix(f"'{task}': "), task)
                for note in (*([guess] if guess else []), *notes)
            ),
            projectors,
            read_token_projectors(path),
        )
    except UserError as error:
        raise type(error)(reworded_for_model(str(error), task)) from None


def model_path(folder: str | Path) -> Path:
    """The folder of the model: `merged` inside the folder of a run, else the folder itself. Raises SourceError."""
    path = readable(str(folder), "the model")
    if not path.exists():
        raise SourceError(f"{shown(path)} does not exist. Give the folder of a run, its merged/, or a checkpoint.")
    return model_in(path)


def reworded_for_model(text: str, task: str) -> str:
    """A message about a source, reworded for the one model that is evaluated."""
    return text.replace(f"source '{task}': ", "").replace("models.sources.N.", "model.")


def _checked(head: Head | None, task: str, path: Path) -> Head:
    if head is None:
        raise SourceError(
            f"{path} has no head: neither heads.safetensors nor a classifier inside the weights, so there are no "
            "predictions to evaluate. Put a heads.safetensors beside the weights (TASK.weight, TASK.bias)."
        )
    if len(head.labels) != len(head.weight):
        raise SourceError(
            f"{path}: the head of task '{task}' has {len(head.weight)} classes and {len(head.labels)} labels. "
            "Pass one label per class in model.labels=[...]"
        )
    return head
