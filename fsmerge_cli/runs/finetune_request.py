"""The request of `finetune`, with every value validated, and the initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass as checked

from fsmerge_cli.architectures import Family
from fsmerge_cli.checkpoints.architecture import architecture, hub_name
from fsmerge_cli.checkpoints.files import tensors_sha256
from fsmerge_cli.checkpoints.kind import reads_text
from fsmerge_cli.checkpoints.load import assemble, check_weights
from fsmerge_cli.checkpoints.open import open_checkpoint
from fsmerge_cli.checkpoints.preprocessing import fold_normalisation
from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError, DataError, SourceError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.options import FORBID, Count, FiniteFloat, Flag, Positive, Text, build, choose
from fsmerge_cli.common.seeding import derive
from fsmerge_cli.common.separation import Input
from fsmerge_cli.data import DATASETS, DataConfig, Task
from fsmerge_cli.data.from_python import Data, from_python
from fsmerge_cli.data.readers import require_kind
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.finetune_labels import Predicts, labels_of, predicted
from fsmerge_cli.runs.finetune_text import is_text, random_encoder, read_as, require_text_options
from fsmerge_cli.runs.inputs import cache_inputs, checkpoint_inputs, data_inputs, label_inputs
from fsmerge_cli.runs.request import chosen_hardware
from fsmerge_cli.training.finetuning_options import TrainingOptions
from fsmerge_cli.training.snapshots import SaveInterval


@checked(frozen=True, config=FORBID)
class FinetuneStart:
    """Fields of the `model` group: the architecture and its initial weights.

    arch: a timm name, or `{family: ..., options}`; null where the checkpoint states it. task: name of the source
    and its head, and of the folder of images of data=folder; null takes the data set's name. checkpoint: a folder
    or a file of weights (docs/sources.md); null with a timm name takes those of the hub. start: pretrained, or
    random weights of `arch`. labels: class names in the order of the head's rows; a file of them; or the name of a
    label set of the data set; null takes the data set's. mean, std, prefix, ema, input_size, base: as in
    `models.sources`; with random weights, mean and std normalise the images during the training. tokenizer: the
    folder of the tokenizer of a text encoder with random weights; null takes the data set's own, if it has one.
    predicts: `class`, or of a text encoder `tags` (a class of every word) or `number`; null takes what the labels
    are.
    """

    arch: Text | dict[str, Any] | None = None
    task: Text | None = None
    checkpoint: Text | None = None
    start: Literal["pretrained", "random"] = "pretrained"
    labels: Text | tuple[Text, ...] | None = None
    mean: tuple[FiniteFloat, ...] | None = None
    std: tuple[FiniteFloat, ...] | None = None
    prefix: Text | None = None
    ema: Flag | None = None
    input_size: Positive | tuple[Positive, Positive] | None = None
    base: Text | None = None
    tokenizer: Text | None = None
    predicts: Predicts | None = None


CHECKPOINT_FIELDS = ("prefix", "ema", "input_size", "base")
"""Fields that only apply to a checkpoint."""


@checked(frozen=True, config=FORBID)
class Run:
    """seed: of all random numbers. overwrite: replace a finished run. resume: continue an interrupted one."""

    seed: Count
    overwrite: Flag
    resume: Flag


@dataclass(frozen=True)
class FinetuneRequest:
    """A request with every value validated.

    labels: class names in the order of the head's rows, or the name of a number.
    """

    spec: SourceSpec
    predicts: Predicts
    labels: tuple[str, ...]
    start: FinetuneStart
    data: DataConfig
    training: TrainingOptions
    hardware: Hardware
    run: Run
    every: SaveInterval

    @property
    def task(self) -> Task:
        """The task as data sets see it."""
        number = self.predicts == "number"
        return Task(self.spec.name, None if number else self.labels, number=number)

    def inputs(self) -> list[Input]:
        """Every path that is read."""
        start = checkpoint_inputs("model.checkpoint", self.start.checkpoint)
        start += checkpoint_inputs("model.base", self.start.base)
        start += checkpoint_inputs("model.tokenizer", self.start.tokenizer)
        labels = label_inputs("model.labels", self.start.labels)
        return [*start, *labels, *data_inputs(self.data, [self.spec.name]), *cache_inputs()]

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std by which the images are normalised while random weights are trained: else (0,) and (1,).

        Those of a checkpoint are folded into its first layer before the training.
        """
        random = self.start.start == "random"
        return (self.start.mean or (0.0,), self.start.std or (1.0,)) if random else ((0.0,), (1.0,))

    def options(self) -> dict[str, Any]:
        """Every option by group, as in config.yaml."""
        return {
            "model": {
                **asdict(self.start),
                "task": self.spec.name,
                "labels": list(self.labels),
                "predicts": self.predicts,
            },
            "data": self.data.options(),
            "training": asdict(self.training),
            "hardware": asdict(self.hardware),
            "seed": self.run.seed,
        }


def request(
    model: str | Mapping[str, Any] | FinetuneStart,
    data: Data | None,
    training: Mapping[str, Any] | TrainingOptions | None,
    hardware: str | Mapping[str, Any] | Hardware,
    seed: int,
    overwrite: bool,
    resume: bool,
    every: int | str,
) -> FinetuneRequest:
    """Read every preset and validate every value. Raises UserError."""
    values = {"arch": model} if isinstance(model, str) else model
    start = values if isinstance(values, FinetuneStart) else build(FinetuneStart, values, "model")
    options = (
        training if isinstance(training, TrainingOptions) else build(TrainingOptions, training or {}, "training")
    )
    machine = chosen_hardware(hardware)
    if machine.distributed:
        raise ConfigError("finetune runs in one process. Pass hardware.distributed=false, or hardware=gpu.")
    run = build(Run, {"seed": seed, "overwrite": overwrite, "resume": resume}, "")
    texts = is_text(start.arch) or reads_text(_checkpoint(start))
    images = _data(data, texts)
    if texts:
        require_kind(images, [start.task or images.name], "text")
    if start.task is None and images.name in OF_THE_TASK and "data.train" not in images.paths():
        raise ConfigError(f"model.task is missing: the {OF_THE_TASK[images.name]} of the task.")
    spec = _spec(start, start.task or images.name)
    predicts = predicted(start.predicts, start.labels, spec, images, texts)
    labels = labels_of(predicts, start.labels, spec, images)
    return FinetuneRequest(spec, predicts, labels, start, images, options, machine, run, SaveInterval.parse(every))


OF_THE_TASK = {
    "folder": "folder in data.root that holds the images",
    "text": "file or folder in data.root that holds the texts",
}
"""By data set: what is named after the task."""


def _checkpoint(start: FinetuneStart) -> SourceSpec:
    return SourceSpec("model", checkpoint=start.checkpoint, base=start.base)


def _data(data: Data | None, texts: bool) -> DataConfig:
    if isinstance(data := from_python(data, texts), DataConfig):
        return data
    values = {**presets.load("data", data), "images_per_task": "all"} if isinstance(data, str) else data
    if not values or not values.get("name"):
        raise DataError(
            f"finetune needs labelled images. Pass data=NAME ({', '.join(sorted(DATASETS))}; data.root=PATH for "
            "your own folder)."
        )
    return choose(DATASETS, {"images_per_task": "all", **values}, "data")


NOT_READ = ("task", "start", "labels", "tokenizer", "predicts")
"""Fields that are no keys of what is loaded before the training."""


def _spec(start: FinetuneStart, task: str) -> SourceSpec:
    """What is loaded before the training, without labels: a head of the checkpoint is not used."""
    options = {name: value for name, value in asdict(start).items() if name not in NOT_READ}
    spec = build(SourceSpec, {"name": task, **options}, "model")
    if start.start == "random":
        if start.checkpoint is not None:
            raise ConfigError("model.start=random and model.checkpoint exclude each other. Leave one of them out.")
        if start.arch is None:
            raise ConfigError("model.arch is missing: model.start=random needs a timm name, or {family: ...}.")
        if unread := [f"model.{name}" for name in CHECKPOINT_FIELDS if getattr(start, name) is not None]:
            raise ConfigError(
                f"model.start=random reads no checkpoint, to which {', '.join(unread)} would apply. Leave it out "
                "(the image size belongs into model.arch)."
            )
    elif start.checkpoint is None and hub_name(spec) is None:
        raise ConfigError(
            "model: no weights to start from. Pass model.checkpoint=PATH, a timm name with the tag of its weights "
            f"({_tagged(start.arch)}), or model.start=random."
        )
    return spec


def _tagged(arch: str | dict[str, Any] | None) -> str:
    from timm.models import is_model, list_pretrained

    name = arch if isinstance(arch, str) else (arch or {}).get("name")
    known = list_pretrained(f"{name}.*") if isinstance(name, str) and is_model(name) else []
    return ", ".join(known[:3]) or "vit_base_patch16_224.augreg_in21k"


def load_start(requested: FinetuneRequest) -> Source:
    """Architecture and initial weights of the training; mean and std are folded into the first layer."""
    try:
        source = _start(requested)
    except SourceError as error:
        raise SourceError(str(error).replace("models.sources.N.", "model.")) from None
    if source.family.kind == "text":
        require_text_options(requested.training)
    return source


def _start(requested: FinetuneRequest) -> Source:
    spec, where, tokenizer = requested.spec, f"source '{requested.spec.name}'", requested.start.tokenizer
    random, text = requested.start.start == "random", is_text(requested.spec.arch)
    if tokenizer is not None and not (random and text):
        raise ConfigError(
            "model.tokenizer: only for a text encoder with random weights (model.start=random, "
            "model.arch={family: bert, ...}); a checkpoint has its tokenizer beside the weights. Leave it out."
        )
    if random and text:
        return random_encoder(spec, tokenizer, requested.data, requested.predicts, requested.run.seed, where)
    if not random:
        source = assemble(spec, open_checkpoint(spec), skip_head=True)
        check_weights(source)
        if source.family.kind == "text":
            source = read_as(source, requested.predicts, requested.run.seed)
        _refuse_batchnorm(source.family, source.arch, where)
        return replace(
            source,
            arch=source.family.resize(source.arch, None, None),  # with timm's default eps, as in a merged model
            notes=tuple(note.replace("the merged model", "the trained model") for note in source.notes),
        )
    family, arch = architecture(spec, {}, where)
    _refuse_batchnorm(family, arch, where)
    with torch.random.fork_rng(devices=[]):  # layers sample initial weights from the global generator
        torch.manual_seed(derive(requested.run.seed, "finetune", "start"))
        weights = family.build(arch).state_dict()
    fold_normalisation(family, arch, weights, *requested.normalisation(), where)  # refused before a training
    return Source(spec.name, family, arch, weights, None, "random weights", tensors_sha256(weights))


def _refuse_batchnorm(family: Family, arch: Any, where: str) -> None:
    """Raise ConfigError for a network whose BatchNorms would be lost: in memory they are parts of convolutions."""
    if family.had_batchnorm(arch):
        raise ConfigError(
            f"{where}: finetune does not train family '{family.name}', whose BatchNorms are folded into the "
            "convolutions when it is read. Train it with timm, which loads its folder (local-dir:FOLDER); the "
            "result is a source as before."
        )
