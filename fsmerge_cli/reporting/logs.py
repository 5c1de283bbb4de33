"""Log files of a run: run.log, and the values for experiment trackers.

During a run they lie next to its output folder in `.NAME.logs`; a finished run has them inside its folder. If the
run fails they stay in `.NAME.logs`, except after a user error, which removes them.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from fsmerge_cli.common.errors import UserError
from fsmerge_cli.common.leftovers import beside, keep_logs
from fsmerge_cli.common.own_files import LATER, remove
from fsmerge_cli.common.private_paths import PrivatePaths
from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.separation import resolved
from fsmerge_cli.common.shown import printable
from fsmerge_cli.reporting.phases import Phases
from fsmerge_cli.reporting.trackers import Tracking, require

LOG = "run.log"
LINES = 10
"""Most lines per phase between its first and its last one."""


class RunLog:
    """Writes events, warnings and errors of one run; a context manager. I/O errors of the log itself are ignored.

    resume: append to the log of the interrupted run. trackers: keys of TRACKERS; ConfigError if the package of one
    is not installed. private: paths that are not written.
    """

    def __init__(
        self,
        output: Path,
        command: str,
        *,
        resume: bool = False,
        trackers: Sequence[str] = (),
        private: PrivatePaths | None = None,
    ) -> None:
        require(trackers)
        self._output = resolved(output)
        self.place = beside(self._output, "logs")
        self._missing = [parent for parent in self._output.parents if not parent.exists()]
        self._kept = resume and self.place.is_dir()
        self._phases = Phases()
        self._tracking = Tracking(trackers, self._output.name, self.place) if trackers else None
        self._handler = _BufferedHandler(private)
        self._log = logging.getLogger("fsmerge_cli.run")
        self._command = command

    def __enter__(self) -> RunLog:
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        for logger in (self._log, logging.getLogger()):
            logger.addHandler(self._handler)
        logging.captureWarnings(True)  # warnings of libraries would break the progress bars
        self._log.info(self._command)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, UserError):
            self._log.error("".join(traceback.format_exception(error)).rstrip())
        if self._tracking is not None:
            self._tracking.close(failed=error is not None)
        logging.captureWarnings(False)
        for logger in (self._log, logging.getLogger()):
            logger.removeHandler(self._handler)
        self._handler.close()
        if isinstance(error, UserError) and self._handler.opened and not self._kept:
            self._remove()
        elif error is not None and self._handler.opened and (self.place / LOG).is_file():
            error.add_note(f"the log is {os.path.relpath(self.place / LOG)}")

    def __call__(self, event: Event) -> None:
        """Log one event. The first one comes once the run has locked its folder, so no other run writes here."""
        if not self._handler.opened:
            self._handler.open(self.place, fresh=not self._kept)
        phase, new = self._phases(event)
        step = max(1, event.total // LINES)
        if new or event.done == event.total or event.done % step == 0:
            seconds = self._phases.clock() - phase.start
            note = phase.note(self._phases.clock())
            self._log.info(f"{event.phase}: {event.done}/{event.total}  {seconds:.1f} s  {note}".rstrip())
        if self._tracking is not None:
            self._tracking(event)

    def finish(self, text: str, evaluation: Mapping[str, Any]) -> None:
        """Log the final output of a run, and move the log files into its folder."""
        for line in text.splitlines():
            self._log.info(line)
        if self._tracking is not None:
            self._tracking.final(evaluation)
            self._tracking.close()
        self._handler.close()
        keep_logs(self._output)

    def _remove(self) -> None:
        with suppress(OSError):
            remove(self.place, LATER)
            for parent in self._missing:
                parent.rmdir()


class SafeFormatter(logging.Formatter):
    """Escapes control characters; further lines of a message are indented, so that none looks like an entry.

    private: paths that are not written.
    """

    def __init__(self, form: str, private: PrivatePaths | None = None) -> None:
        super().__init__(form)
        self._private = private

    def format(self, record: logging.LogRecord) -> str:
        """The message and its traceback, if there is one."""
        text = super().format(record)
        return printable(self._private.text(text) if self._private else text).replace("\n", "\n    ")


class _BufferedHandler(logging.Handler):
    """Buffers its lines until the file is opened."""

    def __init__(self, private: PrivatePaths | None = None) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(SafeFormatter("%(asctime)s %(levelname)-7s %(message)s", private))
        self.opened = False
        self._waiting: list[str] = []
        self._file: Any = None

    def open(self, folder: Path, fresh: bool) -> None:
        """Write the buffered lines; later lines are written at once."""
        self.opened = True
        with suppress(OSError):
            if fresh:
                remove(folder, LATER)
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / LOG).open("a", encoding="utf-8", errors="backslashreplace")
            self._file.writelines(self._waiting)
            self._file.flush()
        self._waiting = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write or buffer one line."""
        line = self.format(record) + "\n"
        if not self.opened:
            self._waiting.append(line)
        elif self._file is not None:
            with suppress(OSError):  # on a full disk the run itself reports the error
                self._file.write(line)
                self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
        super().close()
