"""The state of a training on disk, so that an interrupted run can be resumed.

The folder `.NAME.state` lies next to the output folder NAME. Its run.json identifies the run, and one safetensors
file per training (a sequential merge has several) holds everything that the next step needs. Files are replaced
atomically.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError, Interrupted, OutputError
from fsmerge_cli.common.foreign_files import UnreadableError, read_json_object
from fsmerge_cli.common.leftovers import beside, discard_state
from fsmerge_cli.common.own_files import sha256
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.common.separation import resolved
from fsmerge_cli.common.shown import brief
from fsmerge_cli.training.state_file import (
    RANDOM,
    damaged,
    random_tensors,
    random_values,
    read_state,
    restore_random,
    write_atomically,
    write_state,
)

RUN = "run.json"

CONTEXT = "context."
"""Prefix of the names of the context tensors in a state file."""


@dataclass(frozen=True)
class SaveInterval:
    """How often the state is saved: every `steps` steps, or every `seconds` seconds."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, value: object) -> SaveInterval:
        """Read 200 (steps), "90s" or "5m". Raises ConfigError."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m)", value) if isinstance(value, str) else None
        if found and float(found[1]) > 0:
            return cls(seconds=float(found[1]) * (60 if found[2] == "m" else 1))
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return cls(steps=value)
        raise ConfigError(
            f"checkpoint.every={brief(value)}: give a number of steps (200), or seconds or minutes with their "
            "unit (60s, 5m)."
        )


@dataclass
class Snapshots:
    """The state folder of one run, created with the first snapshot.

    folder None: nothing is saved. content: the options that have to be equal for the run to be resumed, as JSON.
    writes: whether this process writes. resumed: whether a state of an earlier process was found. context: tensors
    on which the next trainings depend (such as an order of units), saved with their states.
    """

    folder: Path | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    every: SaveInterval = field(default_factory=lambda: SaveInterval(seconds=60.0))
    writes: bool = True
    progress: Progress = lambda event: None
    resumed: bool = False
    context: Mapping[str, Tensor] = field(default_factory=dict)
    _trainings: int = 0

    def next_training(self) -> Snapshot:
        """The snapshot of the next training of the run."""
        self._trainings += 1
        return Snapshot(self, self._path(self._trainings))

    def saved_context(self) -> dict[str, Tensor]:
        """The context that an earlier process saved for the next training; {} where there is none.

        Raises OutputError for a damaged file.
        """
        path = self._path(self._trainings + 1)
        if path is None or not path.is_file():
            return {}
        found, _ = self.read(path, lambda name: name.startswith(CONTEXT))
        return {name.removeprefix(CONTEXT): tensor for name, tensor in found.items()}

    def read(self, path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """`read_state` of a training of this run; raises OutputError also for that of another one."""
        tensors, metadata = read_state(path, wanted)
        if metadata.get("of") != self.identity(path):
            raise damaged(path, "it belongs to another run or another training")
        return tensors, metadata

    def identity(self, path: Path) -> str:
        """What ties the state of a training to its place in the run and to run.json."""
        run = path.with_name(RUN)
        return f"{path.name} {sha256(run) if run.is_file() else 'without a run'}"

    def _path(self, number: int) -> Path | None:
        return None if self.folder is None else self.folder / f"training{number}.safetensors"

    @contextmanager
    def report_progress_on_interrupt(self) -> Iterator[None]:
        """Inside, an interrupt reports the saved progress of the run, where there is any."""
        try:
            yield
        except Interrupted:
            raise
        except KeyboardInterrupt as stop:
            reached = self.folder and progress_of(self.folder)
            if not reached:
                raise
            raise Interrupted(reached, getattr(stop, "signal", signal.SIGINT)) from None

    def prepare(self) -> None:
        """Create the folder and write run.json."""
        if self.folder is not None and not (self.folder / RUN).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.content, indent=2) + "\n"
            write_atomically(self.folder / RUN, lambda path: path.write_text(text))

    def discard(self) -> None:
        """Delete the state of a finished run."""
        if self.folder is not None and self.writes:
            with suppress(OSError):
                discard_state(self.folder)


def state_folder(output: Path) -> Path:
    """The folder with the state of a run into `output`."""
    return beside(resolved(output), "state")


def check_state(output: Path, content: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """Make sure that the state of a run into `output` is either resumable or deleted.

    The caller holds the lock of `output`. Raises OutputError for the state of an interrupted run without `resume`
    or `overwrite`, or whose run.json is damaged; ConfigError where that run had other options.
    """
    folder = state_folder(output)
    if not usable_state(output, content, resume, overwrite):
        discard_state(folder)


def usable_state(output: Path, content: Mapping[str, Any] | None, resume: bool, overwrite: bool) -> bool:
    """Whether there is a state to resume. Raises as `check_state`; changes nothing. content None: not compared."""
    folder = state_folder(output)
    found = _read(folder / RUN)
    if found is None and resume and any(folder.glob("training*.safetensors")):
        raise damaged(folder / RUN, "it cannot be read")
    if found is not None and resume:
        if content is not None:
            check_same(f"the interrupted run into {output}", found, content)
        return True
    if not overwrite and (reached := progress_of(folder)):
        raise OutputError(
            f"an interrupted run into {output} left its state ({reached}). Pass resume=true to continue it, or "
            "output.overwrite=true to start again."
        )
    return False


def check_same(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ConfigError, with every different key, where the options of an earlier run differ from this run's."""
    different = list(_differences(dict(old), json.loads(json.dumps(new))))
    if different:
        lines = "\n".join(f"  - {line}" for line in different)
        raise ConfigError(
            f"resume=true: {what} has other options:\n{lines}\n"
            "Pass the same options, choose another output.dir=..., or start again with resume=false "
            "output.overwrite=true."
        )


def progress_of(folder: Path) -> str | None:
    """The progress of an interrupted run as text; None where no training was saved."""
    files = (path for path in folder.glob("training*.safetensors") if path.is_file())
    saved = sorted(files, key=lambda path: (len(path.name), path.name))
    if not saved:
        return None
    with (
        suppress(SafetensorError, OSError, KeyError, ValueError, TypeError),
        safe_open(saved[-1], framework="pt") as file,
    ):
        metadata = json.loads(file.metadata()["fsmerge"])
        return f"step {metadata['step']} of {metadata['steps']}"
    return None


@dataclass
class Snapshot:
    """The saved state of one training."""

    snapshots: Snapshots
    path: Path | None
    _last: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        """Whether the state after `step` steps should be saved now."""
        if self.path is None or not self.snapshots.writes:
            return False
        every = self.snapshots.every
        return step % every.steps == 0 if every.steps else time.monotonic() - self._last >= (every.seconds or 0)

    def save(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bool:
        """Replace the state; whether it worked. An error of the disk is reported, and the older state stays."""
        if self.path is None or not self.snapshots.writes:
            return False
        context = {f"{CONTEXT}{name}": tensor for name, tensor in self.snapshots.context.items()}
        everything = {**random_tensors(), **context, **tensors}
        content = {name: t.detach().cpu().contiguous() for name, t in everything.items()}
        seen: set[int] = set()  # safetensors refuses shared storage; only repeats are copied
        for name, tensor in content.items():
            storage = tensor.untyped_storage().data_ptr()
            content[name] = tensor.clone() if storage in seen else tensor
            seen.add(storage)
        try:
            self.snapshots.prepare()
            of = self.snapshots.identity(self.path)
            write_state(self.path, content, {**metadata, "random": random_values(), "of": of})
        except (OSError, SafetensorError) as error:
            why = str(error).splitlines()[0]
            self.snapshots.progress(Event(f"the training state was not saved ({why}); the run continues", 1, 1))
            return False
        finally:
            self._last = time.monotonic()  # after the write, so that a slow disk is not used all the time
        return True

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Restore the random generators; the saved tensors and metadata, None where nothing was saved.

        Raises OutputError for a damaged file.
        """
        if self.path is None or not self.path.is_file():
            return None
        tensors, metadata = self.snapshots.read(self.path, lambda name: not name.startswith(CONTEXT))
        restore_random(tensors, metadata.pop("random"))
        self.snapshots.resumed = True
        return {n: t for n, t in tensors.items() if not n.startswith(RANDOM)}, metadata


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(path)
    except UnreadableError:
        return None


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Every key in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new)):
            yield from _differences(a, b, f"{key}.{i}")
    elif old != new:
        yield f"{key} was {json.dumps(old)} and is now {json.dumps(new)}"
