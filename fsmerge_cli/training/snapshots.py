"""The state of a training on disk, so that an interrupted run loses a minute.

Beside the output folder NAME lies `.NAME.state`: run.json says which run it belongs to, and one safetensors file
per training (a sequential merge has several) holds everything that the next step needs. A file is replaced as a
whole.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError, Interrupted, OutputError
from fsmerge_cli.common.progress import Event, Progress

RUN = "run.json"

BESIDE = "beside."
"""Begins the names of what a training rests on, in the file of its state."""


@dataclass(frozen=True)
class Every:
    """How often the state is written: after so many steps, or after so many seconds."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, value: object) -> Every:
        """Read 200 (steps), "90s" or "5m". Raises ConfigError."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m)", value) if isinstance(value, str) else None
        if found and float(found[1]) > 0:
            return cls(seconds=float(found[1]) * (60 if found[2] == "m" else 1))
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return cls(steps=value)
        raise ConfigError(
            f"checkpoint.every={value!r}: give a number of steps (200), or seconds or minutes with their unit "
            "(60s, 5m)."
        )


@dataclass
class Keeper:
    """The state folder of one run, made when there is something to keep.

    folder None: nothing is kept. content: what has to be equal for the run to be continued, as JSON. writes:
    whether this process does the writing. resumed: whether something was found that an earlier process had done.
    beside: what the next trainings rest on (such as an order of units), written with their states.
    """

    folder: Path | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    every: Every = field(default_factory=lambda: Every(seconds=60.0))
    writes: bool = True
    progress: Progress = lambda event: None
    resumed: bool = False
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    _stages: int = 0

    def stage(self) -> Stage:
        """The next training of the run."""
        self._stages += 1
        return Stage(self, self._path(self._stages))

    def found_beside(self) -> dict[str, Tensor]:
        """What an earlier process wrote beside the state of the training that is next; {} where there is none."""
        path = self._path(self._stages + 1)
        if path is None or not path.is_file():
            return {}
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith(BESIDE)]  # noqa: SIM118
                return {name.removeprefix(BESIDE): file.get_tensor(name).clone() for name in names}
        except (SafetensorError, OSError):
            return {}  # as in `Stage.load`

    def _path(self, stage: int) -> Path | None:
        return None if self.folder is None else self.folder / f"training{stage}.safetensors"

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Inside, an interrupt says how far the run came, where that is on disk."""
        try:
            yield
        except Interrupted:
            raise
        except KeyboardInterrupt:
            reached = self.folder and progress_of(self.folder)
            if not reached:
                raise
            raise Interrupted(f"the end: {reached} done") from None

    def prepare(self) -> None:
        """Make the folder and say whose it is."""
        if self.folder is not None and not (self.folder / RUN).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            said = json.dumps(self.content, indent=2) + "\n"
            _replace(self.folder / RUN, lambda path: path.write_text(said))

    def discard(self) -> None:
        """The run is finished: its state is not needed any more."""
        if self.folder is not None and self.writes:
            shutil.rmtree(self.folder, ignore_errors=True)


def state_folder(output: Path) -> Path:
    """Where the state of a run into `output` lies."""
    output = output.expanduser().resolve()
    return output.parent / f".{output.name}.state"


def check_state(output: Path, content: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """See to it that the state of a run into `output` is either there to be continued or gone.

    The caller holds the lock of `output`. Raises OutputError where an interrupted run is there and neither
    `resume` nor `overwrite` says what to do with it, ConfigError where it is another run.
    """
    folder = state_folder(output)
    found = _read(folder / RUN)
    if found is not None and resume:
        check_same(f"the interrupted run into {output}", found, content)
        return
    if found is not None and not overwrite and (reached := progress_of(folder)):
        raise OutputError(
            f"an interrupted run into {output} left its state ({reached}). Pass resume=true to continue it, or "
            "output.overwrite=true to begin again."
        )
    if folder.exists():
        shutil.rmtree(folder)


def check_same(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ConfigError with every key in which the options of an earlier run differ from those of this one."""
    different = list(_differences(dict(old), json.loads(json.dumps(new))))
    if different:
        lines = "\n".join(f"  - {line}" for line in different)
        raise ConfigError(
            f"resume=true: {what} is another one:\n{lines}\n"
            "Pass the values that it had, choose another output.dir=..., or begin again with resume=false "
            "output.overwrite=true."
        )


def progress_of(folder: Path) -> str | None:
    """How far an interrupted run came, in words; None where no training was saved."""
    saved = sorted(folder.glob("training*.safetensors"), key=lambda path: (len(path.name), path.name))
    if not saved:
        return None
    with suppress(SafetensorError, OSError, KeyError), safe_open(saved[-1], framework="pt") as file:
        facts = json.loads(file.metadata()["fsmerge"])
        return f"step {facts['step']} of {facts['steps']}"
    return None


@dataclass
class Stage:
    """The state of one training."""

    keeper: Keeper
    path: Path | None
    _last: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        """Whether the state after `step` steps should be written now."""
        if self.path is None or not self.keeper.writes:
            return False
        every = self.keeper.every
        return step % every.steps == 0 if every.steps else time.monotonic() - self._last >= (every.seconds or 0)

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bool:
        """Replace the state; where the disk is full the run says so, goes on, and the older state stays."""
        if self.path is None or not self.keeper.writes:
            return False
        beside = {f"{BESIDE}{name}": tensor for name, tensor in self.keeper.beside.items()}
        everything = {**_random_state(), **beside, **tensors}
        content = {name: t.detach().cpu().contiguous() for name, t in everything.items()}
        seen: set[int] = set()  # safetensors takes no storage twice; the others are not copied
        for name, tensor in content.items():
            place = tensor.untyped_storage().data_ptr()
            content[name] = tensor.clone() if place in seen else tensor
            seen.add(place)
        metadata = {"fsmerge": json.dumps({**facts, "random": _python_state()})}
        try:
            self.keeper.prepare()
            _replace(self.path, lambda path: save_file(content, path, metadata=metadata))
        except (OSError, SafetensorError) as error:
            why = str(error).splitlines()[0]
            self.keeper.progress(Event(f"the state could not be saved ({why}); the run goes on", 1, 1))
            return False
        finally:
            self._last = time.monotonic()  # after the write: a slow disk must not ask for the next one at once
        return True

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The saved tensors and facts, and every random generator as it was; None where there is nothing."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                names = [name for name in file.keys() if not name.startswith(BESIDE)]  # noqa: SIM118
                tensors = {name: file.get_tensor(name).clone() for name in names}
                facts = json.loads(file.metadata()["fsmerge"])
        except (SafetensorError, OSError, KeyError, ValueError):
            return None  # never written by us: files appear whole
        _restore(tensors, facts.pop("random"))
        self.keeper.resumed = True
        return {n: t for n, t in tensors.items() if not n.startswith("random.")}, facts


def _random_state() -> dict[str, Tensor]:
    states = {"random.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"random.cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return {**states, "random.numpy": torch.from_numpy(_numpy_state()[1].astype(np.int64))}


def _python_state() -> dict[str, Any]:
    numpy = _numpy_state()
    return {"python": random.getstate(), "numpy": [numpy[0], *map(float, numpy[2:])]}


def _numpy_state() -> tuple[Any, ...]:
    return tuple(np.random.get_state(legacy=True))


def _restore(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    torch.set_rng_state(tensors["random.torch"])
    if torch.cuda.is_available():
        found = [tensors[name] for name in sorted(tensors) if name.startswith("random.cuda")]
        if len(found) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(found)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, position, has_gauss, cached = state["numpy"]
    keys = tensors["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state((name, keys, int(position), int(has_gauss), cached))


def _replace(path: Path, write: Any) -> None:
    """Write under a temporary name, bring it to the disk, then take the name: whole or not at all."""
    temporary = path.with_suffix(".tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Every key in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new)):
            yield from _differences(a, b, f"{key}.{i}")
    elif old != new:
        yield f"{key} is {json.dumps(old)} there and {json.dumps(new)} now"
