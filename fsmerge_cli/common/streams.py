"""Standard output and standard error that are closed, full or no longer read."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

STDOUT = "standard output"
"""The file name in an error of standard output."""

NARROWEST, WIDTH = 20, 80
"""Fewest columns that COLUMNS can set, and what is used instead of fewer: with COLUMNS=0 rich prints nothing."""


def columns(stream: TextIO) -> int | None:
    """Columns of the terminal of a stream, or those that COLUMNS states; None for a file or a pipe: no limit."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit():
        return int(given) if len(given) < 5 and int(given) >= NARROWEST else WIDTH
    try:
        return (os.get_terminal_size(stream.fileno()).columns or WIDTH) if stream.isatty() else None
    except (OSError, ValueError):  # a stream without a descriptor
        return None


class _Output(io.FileIO):
    """Standard output, whose errors name it: they come from any line that prints, far from what they are about."""

    def write(self, data: Any) -> Any:
        """As io.FileIO does."""
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, STDOUT) from None


def prepare() -> None:
    """Make both streams usable: closed ones lead nowhere, and what the encoding lacks is shown as escapes.

    A closed descriptor would be given to the next file that is opened, which would then receive the output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    own = sys.stdout
    if own is sys.__stdout__ and isinstance(own, io.TextIOWrapper) and not isinstance(own.buffer, _Output):
        own.flush()
        output = io.BufferedWriter(_Output(own.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(
            output, own.encoding, "backslashreplace", line_buffering=own.line_buffering, write_through=False
        )


def discard(stream: TextIO) -> None:
    """Let everything that was or will be written to a stream vanish, also at the end of the process."""
    with suppress(OSError, ValueError):  # a stream without a descriptor, in tests
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def complain(text: str) -> None:
    """Write to standard error, if that can be written."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)
