"""The request of a merge: names, mappings and dataclasses become one validated value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic.dataclasses import dataclass as checked

from fsmerge_cli.checkpoints.base import BASE, Base, base_entry
from fsmerge_cli.checkpoints.dtype import DTYPES, Dtype
from fsmerge_cli.checkpoints.kind import reads_text
from fsmerge_cli.checkpoints.tasks import order_note, tasks
from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError, DataError, unknown
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.options import FORBID, Count, Flag, Text, build, choose
from fsmerge_cli.common.private_paths import refuse_hidden
from fsmerge_cli.common.separation import Input
from fsmerge_cli.common.shown import brief
from fsmerge_cli.data import DATASETS, DataConfig, auxiliary
from fsmerge_cli.data.from_python import Data, from_python
from fsmerge_cli.methods import METHODS, Method
from fsmerge_cli.methods.base import Weighted
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.inputs import cache_inputs, checkpoint_inputs, data_inputs, label_inputs
from fsmerge_cli.training.snapshots import SaveInterval

Models = str | Sequence[SourceSpec | Source | Mapping[str, Any]]
"""Name of a shipped set, or one entry per source."""


@checked(frozen=True, config=FORBID)
class Run:
    """Top-level settings.

    seed: of all random numbers. overwrite: replace a finished run. resume: continue an interrupted one. every: how
    often the state of a training is written (steps, or "60s", "5m"). kd: whether distillation at equal budget is a
    row of the evaluation. dtype: of the written weights. license: of the model, for its card (None: unknown).
    """

    seed: Count
    overwrite: Flag
    resume: Flag
    every: int | str
    kd: Flag
    dtype: Dtype = "float32"
    license: Text | None = None


@dataclass(frozen=True)
class Request:
    """The sources to load, the images (None: none), the method, the hardware and the top-level settings.

    notes: guesses about the labels. more_inputs: files of class names, which have been read already, and other
    paths that must not change. base: the pretrained weights (None: not given). given: the method before
    `settled` (None: as it is).
    """

    sources: Sequence[SourceSpec]
    data: DataConfig | None
    method: Method
    hardware: Hardware
    run: Run
    notes: tuple[str, ...] = ()
    more_inputs: tuple[Input, ...] = ()
    base: SourceSpec | None = None
    given: Method | None = None

    def settled(self, sources: Sequence[Source]) -> Request:
        """The request with the method's defaults that depend on the sources, and notes on them."""
        method, notes = self.method.settled(sources)
        return replace(self, method=method, given=self.given or self.method, notes=(*self.notes, *notes))

    def inputs(self) -> list[Input]:
        """Every path that is read."""
        paths = [
            (s, (s.checkpoint, s.base, s.tokenizer_path, s.loaded.origin if s.loaded else None))
            for s in self.sources
        ]
        given = [(s.name, path) for s, own in paths for path in own]
        sources = [i for name, path in given for i in checkpoint_inputs(f"source '{name}'", path)]
        sources += checkpoint_inputs(BASE, self.base.checkpoint if self.base else None)
        data = data_inputs(self.data, [spec.name for spec in self.sources])
        return [*sources, *self.more_inputs, *data, *cache_inputs()]

    def require_images(self) -> None:
        """Raise DataError where the method needs images and there is no data set."""
        names = ", ".join(sorted(DATASETS))
        if self.data is None and self.method.needs_images:
            raise DataError(
                f"method={self.method.name} needs unlabelled images and no data set is given. Pass "
                f"--images FOLDER (texts: data=text data.root=FOLDER), data=NAME ({names}), or method=average."
            )
        if self.data is None and self.run.kd:
            raise DataError(
                "evaluation.kd=true trains a student, which needs unlabelled images, and no data set is given. "
                f"Pass data=NAME ({names}), or evaluation.kd=false."
            )

    def require_base(self) -> None:
        """Raise ConfigError where the method needs the pretrained weights and they are not given."""
        if self.method.uses_base and self.base is None:
            raise ConfigError(
                f"method={self.method.name} merges differences from the pretrained weights that all sources "
                "share, and these are not given. Pass models.base=PATH (a folder, a file, or a timm name with a "
                "tag), or method=average."
            )

    def options(self) -> dict[str, Any]:
        """Every option by group, as in config.yaml."""
        base = {} if self.base is None else {"base": self.base.options()}
        return {
            "models": {"sources": [spec.options() for spec in self.sources], **base},
            "data": self.data.options() if self.data else None,
            "method": asdict(self.given or self.method),
            "hardware": asdict(self.hardware),
            "seed": self.run.seed,
            "evaluation": {"kd": self.run.kd},
            "output": {
                "dtype": self.run.dtype,
                **({"license": self.run.license} if self.run.license is not None else {}),
            },
        }


def request(
    models: Models,
    method: str | Mapping[str, Any] | Method,
    data: Data | None,
    hardware: str | Mapping[str, Any] | Hardware,
    seed: int,
    overwrite: bool,
    resume: bool = False,
    every: int | str = "60s",
    kd: bool = False,
    dtype: str = "float32",
    license: str | None = None,
    images_needed: bool = True,
    base: Base | None = None,
) -> Request:
    """Read every preset and validate every value, with `images_needed` also that there is a data set.

    base: the pretrained weights; None takes those of the shipped set.

    Raises UserError.
    """
    entries = source_entries(models)
    images = _data(models, entries, data)
    specs = _tasks(entries, images)
    chosen, machine = chosen_method(method), chosen_hardware(hardware)
    if dtype not in DTYPES:
        raise ConfigError(unknown("output.dtype", str(dtype), DTYPES))
    top: dict[str, Any] = {
        "seed": seed,
        "overwrite": overwrite,
        "resume": resume,
        "every": every,
        "kd": kd,
        "dtype": dtype,
    }
    top["license"] = license
    run = build(Run, top, "")
    SaveInterval.parse(every)
    if isinstance(chosen, Weighted) and specs:
        chosen.weights_of_tasks(len(specs))  # before anything is read or trained
    labels = {spec.name: spec.labels for spec in specs if isinstance(spec.labels, tuple)}
    notes = [order_note(entry, labels[entry.name]) for entry in entries if entry.name in labels]
    files = [i for entry in entries for i in label_inputs(f"the labels of source '{entry.name}'", entry.labels)]
    if base is None and isinstance(models, str):
        base = presets.load("models", models).get("base")
    found = Request(
        specs,
        images,
        chosen,
        machine,
        run,
        tuple(note for note in notes if note),
        tuple(files),
        None if base is None else base_entry(base),
    )
    found.require_base()
    if images_needed:
        found.require_images()
    return found


def source_specs(models: Models, images: DataConfig | None = None) -> list[SourceSpec]:
    """The sources of a shipped set or of a list, one per task. Raises ConfigError."""
    return _tasks(source_entries(models), images)


def _tasks(entries: Sequence[SourceSpec], images: DataConfig | None) -> list[SourceSpec]:
    return [task for i, entry in enumerate(entries) for task in tasks(entry, i, images)]


def source_entries(models: Models) -> list[SourceSpec]:
    """The entries of a shipped set or of a list, as written. Raises ConfigError."""
    found: Any = presets.load("models", models)["sources"] if isinstance(models, str) else models
    if isinstance(found, str | Mapping) or not isinstance(found, Sequence):
        raise ConfigError(f"models.sources: should be a list of sources, got {brief(found)}.")
    entries = [
        entry if isinstance(entry, SourceSpec) else build(SourceSpec, _keys(entry), f"models.sources.{i}")
        for i, entry in enumerate(found)
    ]
    paths = {i: [entry.checkpoint, entry.base, entry.labels] for i, entry in enumerate(entries)}
    refuse_hidden(
        {i: dict(zip(("checkpoint", "base", "labels"), own)) for i, own in paths.items()}, "models.sources"
    )
    return entries


def _keys(entry: Any) -> Any:
    """The keys of an entry that is a loaded source; any other entry as it is."""
    return {"name": entry.name, "loaded": entry} if isinstance(entry, Source) else entry


def _data(models: Models, entries: Sequence[SourceSpec], data: Data | None) -> DataConfig | None:
    given = presets.default_data(models) if data is None and isinstance(models, str) else data
    return chosen_data(given, texts=any(map(reads_text, entries)))


def chosen_data(data: Data | None, texts: bool = False) -> DataConfig | None:
    """The data set from the name of a preset, a mapping, a folder, or images (texts). ConfigError, DataError."""
    if data is None:
        return None
    if isinstance(data := from_python(data, texts), DataConfig):
        return data
    return stated_data(data)


def stated_data(data: Any) -> DataConfig | None:
    """The data set that a configuration names; images and folders from Python have no place there. ConfigError."""
    if data is None:
        return None
    chosen: DataConfig = choose(DATASETS, presets.load("data", data) if isinstance(data, str) else data, "data")
    auxiliary(chosen)  # reports wrong keys now
    refuse_hidden(asdict(chosen), "data")
    return chosen


def chosen_method(method: str | Mapping[str, Any] | Method) -> Method:
    """The method from the name of a preset or a mapping. Raises ConfigError."""
    if isinstance(method, Method):
        return method
    return choose(METHODS, presets.load("method", method) if isinstance(method, str) else method, "method")


def chosen_hardware(hardware: str | Mapping[str, Any] | Hardware) -> Hardware:
    """The hardware from the name of a preset or a mapping. Raises ConfigError."""
    if isinstance(hardware, Hardware):
        return hardware
    values = presets.load("hardware", hardware) if isinstance(hardware, str) else hardware
    return build(Hardware, values, "hardware")
