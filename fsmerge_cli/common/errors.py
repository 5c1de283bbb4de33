"""The exceptions of fsmerge and their messages.

    FsmergeError
    ├── UserError            the user's input; exit code 2, no traceback
    │   ├── ConfigError      a key, a value, a name on the command line or in a YAML file
    │   ├── SourceError      a checkpoint that cannot be read or has unexpected content
    │   ├── MismatchError    sources that cannot be merged
    │   ├── DataError        images or labels
    │   └── OutputError      the output folder or file
    ├── TrainingError        training failed; exit code 1
    │   └── DivergedError    the loss is not finite
    └── CertificateError     the written model differs from the merged model; exit code 1
    Stopped              by a signal, a KeyboardInterrupt; exit code 128 + its number
    └── Interrupted      its training state is saved

Every message states what is wrong, where, which options are available and what to do next.
"""

from __future__ import annotations

import copyreg
import difflib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from fsmerge_cli.common.shown import listed, message, printable, shortened, shown
from fsmerge_cli.common.streams import STDOUT, discard


class _Pickled:
    """An exception that reaches another process as it is: Python would call `__init__` with the whole message."""

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self), *getattr(self, "args", ())), self.__dict__  # type: ignore[attr-defined]


class FsmergeError(_Pickled, Exception):
    """Base of all errors that fsmerge raises on purpose."""

    exit_code = 1


class UserError(FsmergeError):
    """An error in the user's input; the message is shown without a traceback."""

    exit_code = 2


class ConfigError(UserError):
    """A key, a value or a name in the configuration."""


class SourceError(UserError):
    """A checkpoint that cannot be read or has unexpected content."""


class MismatchError(UserError):
    """Sources that cannot be merged; `reasons` lists every mismatch found."""

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons = tuple(reasons)
        lines = "\n".join(f"  - {shown(reason)}" for reason in self.reasons)
        count = f"{len(self.reasons)} reason{'s' if len(self.reasons) > 1 else ''}"
        super().__init__(
            f"these sources cannot be merged, for {count}:\n{lines}\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other sources."
        )


class DataError(UserError):
    """Images or labels that are missing, unreadable or do not fit the sources."""


class OutputError(UserError):
    """The output folder is in use, holds a finished run or is not writable."""


class TrainingError(FsmergeError):
    """Training failed, for example because the loss became NaN."""


class DivergedError(TrainingError):
    """The loss is not finite."""


class Stopped(_Pickled, KeyboardInterrupt):
    """A signal from the user or the system stopped the command.

    finished: the output folder, where the run in it was complete before the signal came.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.signal = signal.Signals(number)
        self.exit_code: int = 128 + self.signal
        self.finished: str | None = None
        super().__init__(f"interrupted by {self.signal.name}")


class Interrupted(Stopped):
    """A signal stopped the run, and its training state is on disk. reached: "step 3 of 20"."""

    def __init__(self, reached: str, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.args = (f"{self}; the training state is saved ({reached})",)


def stop_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The stop during whose clean-up `error` was raised, for example by writing to a terminal that is closed."""
    found = error
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__context__
    return found


class CertificateError(FsmergeError):
    """The written model differs from the merged model; `broken` lists every failed certificate."""

    def __init__(self, broken: Iterable[str], kept: str = "") -> None:
        self.broken = tuple(broken)
        lines = "\n".join(f"  - {shown(certificate)}" for certificate in self.broken)
        where = f" The written files are kept in {kept} for inspection." if kept else ""
        super().__init__(
            f"the written model differs from the merged model, so it is not saved:\n{lines}\n"
            f"This is a hardware fault or a bug in fsmerge, not an error in your input.{where} Run the command "
            "again, and report the bug if it recurs."
        )


MEMORY = (
    "not enough memory. `fsmerge check` estimates what a merge needs. Pass a smaller method.batch_size, "
    "hardware.eval_batch or data.images_per_task."
)


def _of_system(error: OSError) -> tuple[str, int]:
    if isinstance(error, ConnectionError) and error.errno is None:  # ours, a full sentence
        return str(error), 2
    text = reason(error) if error.args else type(error).__name__
    if error.filename == STDOUT:
        discard(sys.stdout)
        return f"cannot write to {STDOUT}: {text}. Send it to a place with room.", 2
    if error.filename is not None:
        return f"{shown(os.fsdecode(error.filename))}: {text}. Check the path, its permissions and its disk.", 2
    return f"{text}. Check the disks and the network; FSMERGE_DEBUG=1 shows where this happened.", 2


def _of_memory(error: MemoryError) -> tuple[str, int]:
    return str(error) or MEMORY, 1


def _of_recursion(error: RecursionError) -> tuple[str, int]:
    return (
        "an option or a file has values too deep inside each other; FSMERGE_DEBUG=1 shows where.",
        2,
    )


def _of_unicode(error: UnicodeError) -> tuple[str, int]:
    return f"a text is not valid ({reason(error)}). Use UTF-8; FSMERGE_DEBUG=1 shows where.", 2


SYSTEM: dict[type[Exception], Callable[[Any], tuple[str, int]]] = {
    OSError: _of_system,
    MemoryError: _of_memory,
    RecursionError: _of_recursion,
    UnicodeError: _of_unicode,
}
"""Errors of the system that no place has explained: type -> message and exit code. They are no bugs of ours."""


def describe(error: Exception) -> tuple[str, int]:
    """The text for standard error and the exit code; a traceback only for bugs (or with FSMERGE_DEBUG=1)."""
    known = isinstance(error, FsmergeError)
    traced = not known or os.environ.get("FSMERGE_DEBUG") == "1"
    trace = printable("".join(traceback.format_exception(error))) if traced else ""
    if isinstance(error, FsmergeError):
        return f"{trace}fsmerge: error: {message(str(error))}\n", error.exit_code
    if "not enough memory" in str(error) or type(error).__name__ == "OutOfMemoryError":  # torch's
        error = MemoryError(*error.args if isinstance(error, MemoryError) else ())
    for kind, told in SYSTEM.items():
        if isinstance(error, kind):
            trace = trace if os.environ.get("FSMERGE_DEBUG") == "1" else ""
            text, code = told(error)
            return f"{trace}fsmerge: error: {message(text)}\n", code
    return f"{trace}fsmerge: this is a bug in fsmerge; please report it with the lines above\n", 1


ADDRESS = re.compile(r"\s*<[\w.]+ object at 0x[0-9a-fA-F]+>")
"""What Python writes for an object without a name, in messages of libraries (Pillow's of images in memory)."""


def reason(error: Exception) -> str:
    """The system's or a library's error text without its number, as part of a sentence."""
    return shown(_text(error))


def first_line(error: Exception) -> str:
    """The first line of another library's error message, or the error's type where the message is empty."""
    return shown(next(iter(_text(error).splitlines()), type(error).__name__))


def _text(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or error)
    return ADDRESS.sub("", text).strip().rstrip(".")


def unknown(kind: str, name: str, options: Iterable[str]) -> str:
    """Message for an unknown `name`: the closest match first, then all options.

    >>> unknown("method", "fs_merg", ["average", "fs_merge"])
    "unknown method 'fs_merg'. Did you mean 'fs_merge'? Available: average, fs_merge."
    """
    available = sorted(options)
    name = str(name)  # whatever Python passes
    near = difflib.get_close_matches(name, available, n=1, cutoff=0.5)
    hint = f" Did you mean '{shown(near[0])}'?" if near else ""
    return f"unknown {kind} '{shortened(name)}'.{hint} Available: {listed(available)}."


RENAMED = {
    "apart": "outlier_exposure",
    "foreign": "cross_task_weight",
    "logits": "logit_weight",
    "mix": "mixup",
    "readout": "projector",
    "release": "finetune_share",
    "release_lr": "finetune_lr",
    "unrelated": "auxiliary",
}
"""Old name of an option key -> its current name."""


def from_cache(name: str, error: Exception) -> str:
    """A note where the hub does not answer for `name`, and the copy on disk is used."""
    return (
        f"the hub did not answer for {name} ({first_line(error)}), so the copy that was downloaded before is read"
    )


def unknown_key(place: str, name: str, options: Iterable[str]) -> str:
    """Message for a key that `place` ("": the top level) does not have; for a renamed key, its new name.

    >>> unknown_key("method", "mix", ["mixup", "steps"])
    'method.mix is now called method.mixup. Write method.mixup=...'
    """
    available = list(options)
    if (new := RENAMED.get(name)) in available:
        prefix = f"{place}." if place else ""
        return f"{prefix}{name} is now called {prefix}{new}. Write {prefix}{new}=..."
    return unknown(f"key in {place}" if place else "key", name, available)
