"""What `finetune` is asked to do, every value checked, and the weights that it begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass as checked

from fsmerge_cli.checkpoints.files import tensors_sha256
from fsmerge_cli.checkpoints.load import assemble, check_weights
from fsmerge_cli.checkpoints.open import architecture, hub_name, open_checkpoint
from fsmerge_cli.checkpoints.tasks import DATA, FILES, labelled
from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError, DataError, SourceError, unknown
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.options import FORBID, Count, Flag, Positive, Text, build, choose
from fsmerge_cli.common.seeding import derive
from fsmerge_cli.data import DATASETS, DataConfig, Task
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.request import chosen_hardware
from fsmerge_cli.training.classifier import Tuning
from fsmerge_cli.training.snapshots import Every


@checked(frozen=True, config=FORBID)
class Start:
    """Fields of the `model` group: what is trained, and where it begins.

    arch: a timm name, or `{family: ..., options}`; null where the checkpoint says it. task: what the source and
    its head are called, and the folder of images of data=folder; null takes the data set's name. checkpoint: a
    folder or a file of weights (docs/sources.md); null with a timm name takes the hub's. start: pretrained, or
    random weights of `arch`. labels: class names in the order of the head's rows; a file of them; or the name of a
    label set of the data set; null takes the data set's. mean, std, prefix, ema, input_size: as in
    `models.sources`.
    """

    arch: Text | dict[str, Any] | None = None
    task: Text | None = None
    checkpoint: Text | None = None
    start: Literal["pretrained", "random"] = "pretrained"
    labels: Text | tuple[Text, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    prefix: Text | None = None
    ema: Flag | None = None
    input_size: Positive | tuple[Positive, Positive] | None = None


OF_A_FILE = ("mean", "std", "prefix", "ema", "input_size")
"""Fields that say how a checkpoint is read."""


@checked(frozen=True, config=FORBID)
class Run:
    """seed: of everything that is drawn. overwrite: a finished run. resume: continue an interrupted one."""

    seed: Count
    overwrite: Flag
    resume: Flag


@dataclass(frozen=True)
class Asked:
    """What is asked for, every value checked; labels: of the head, in order."""

    spec: SourceSpec
    labels: tuple[str, ...]
    start: Start
    data: DataConfig
    training: Tuning
    hardware: Hardware
    run: Run
    every: Every

    def inputs(self) -> dict[str, str | None]:
        """Paths that are read, by what they are."""
        return {"model.checkpoint": self.start.checkpoint, **self.data.paths()}

    def options(self) -> dict[str, Any]:
        """Every option by group, as config.yaml says them."""
        return {
            "model": {**asdict(self.start), "task": self.spec.name, "labels": list(self.labels)},
            "data": asdict(self.data),
            "training": asdict(self.training),
            "hardware": asdict(self.hardware),
            "seed": self.run.seed,
        }


def request(
    model: str | Mapping[str, Any] | Start,
    data: str | Mapping[str, Any] | DataConfig | None,
    training: Mapping[str, Any] | Tuning | None,
    hardware: str | Mapping[str, Any] | Hardware,
    seed: int,
    overwrite: bool,
    resume: bool,
    every: int | str,
) -> Asked:
    """Read every preset and check every value; raises UserError."""
    values = {"arch": model} if isinstance(model, str) else model
    start = values if isinstance(values, Start) else build(Start, values, "model")
    tuning = training if isinstance(training, Tuning) else build(Tuning, training or {}, "training")
    machine = chosen_hardware(hardware)
    if machine.distributed:
        raise ConfigError("finetune runs in one process. Pass hardware.distributed=false, or hardware=gpu.")
    run = build(Run, {"seed": seed, "overwrite": overwrite, "resume": resume}, "")
    images = _data(data)
    if start.task is None and images.name == "folder":
        raise ConfigError("model.task is missing: the folder in data.root that holds the images of the task.")
    spec = _spec(start, start.task or images.name)
    return Asked(spec, _labels(start, spec, images), start, images, tuning, machine, run, Every.parse(every))


def _data(data: str | Mapping[str, Any] | DataConfig | None) -> DataConfig:
    if isinstance(data, DataConfig):
        return data
    values = {**presets.load("data", data), "images_per_task": "all"} if isinstance(data, str) else data
    if not values or not values.get("name"):
        raise DataError(
            f"finetune needs labelled images. Pass data=NAME ({', '.join(sorted(DATASETS))}; data.root=PATH for "
            "your own folder)."
        )
    return choose(DATASETS, {"images_per_task": "all", **values}, "data")


def _spec(start: Start, task: str) -> SourceSpec:
    """What is loaded before the training, without labels: a head that it has is not taken."""
    options = {name: value for name, value in asdict(start).items() if name not in ("task", "start", "labels")}
    spec = build(SourceSpec, {"name": task, **options}, "model")
    if start.start == "random":
        if start.checkpoint is not None:
            raise ConfigError("model.start=random and model.checkpoint exclude each other. Leave one of them out.")
        if start.arch is None:
            raise ConfigError("model.arch is missing: model.start=random needs a timm name, or {family: ...}.")
        if unread := [f"model.{name}" for name in OF_A_FILE if getattr(start, name) is not None]:
            raise ConfigError(
                f"model.start=random reads no checkpoint, and {', '.join(unread)} would say how. Leave it out "
                "(the size of the images belongs into model.arch)."
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


def _labels(start: Start, spec: SourceSpec, data: DataConfig) -> tuple[str, ...]:
    """The classes of the task, from what is asked for or from the data set."""
    asked, sets = start.labels, data.of(spec.name).label_sets()
    if isinstance(asked, tuple):
        found = asked
    elif isinstance(asked, str) and asked in sets:
        found = sets[asked]
    elif isinstance(asked, str) and (asked == DATA or Path(asked).suffix.lower() in FILES):
        found = tuple(labelled(replace(spec, labels=asked), data).labels or ())
    elif isinstance(asked, str):
        raise ConfigError(
            f"model.labels: {unknown('label set', asked, sets)} Or give a list, or a file (.txt, .json)."
        )
    else:
        found = sets.get(spec.name) or data.classes(Task(spec.name, None)) or ()
    if len(found) < 2 or len(set(found)) != len(found):
        raise ConfigError(
            f"model.labels: a classifier needs two or more different classes, and there are {len(found)} "
            f"({', '.join(found[:9]) or 'none'}). Pass a list (model.labels=[cat,dog]), a file (.txt, .json)"
            + (f", or one of {', '.join(sorted(sets))}." if sets else ".")
        )
    return tuple(found)


def load_start(asked: Asked) -> Source:
    """Architecture and weights that the training begins with; mean and deviation are folded in."""
    spec, where = asked.spec, f"source '{asked.spec.name}'"
    if asked.start.start == "pretrained":
        try:
            source = assemble(spec, open_checkpoint(spec), headless=True)
        except SourceError as error:
            raise SourceError(str(error).replace("models.sources.N.", "model.")) from None
        check_weights(source, strangers=False)
        names = source.family.skeleton(source.arch).state_dict()
        return replace(
            source,
            arch=source.family.resize(source.arch, None, None),  # with timm's own eps, as a merged model
            weights={name: source.weights[name] for name in names},
            notes=tuple(note.replace("the merged model", "the trained model") for note in source.notes),
        )
    family, arch = architecture(spec, {}, where)
    with torch.random.fork_rng(devices=[]):  # layers draw their start from the global generator
        torch.manual_seed(derive(asked.run.seed, "finetune", "start"))
        weights = family.build(arch).state_dict()
    return Source(spec.name, family, arch, weights, None, "random weights", tensors_sha256(weights))
