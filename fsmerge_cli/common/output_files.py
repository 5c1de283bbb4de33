"""Single files that a command writes: checked before anything is computed, replaced atomically, all or none."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError

from fsmerge_cli.common.errors import OutputError, reason
from fsmerge_cli.common.separation import Inputs, read_inside, resolved, same, written_inside
from fsmerge_cli.common.signals import undisturbed

REPLACE = "output.overwrite=true"
"""The option that lets a command replace an existing file."""


def check_files(
    files: Mapping[str, str | Path | None], inputs: Inputs, overwrite: bool, replace: str = REPLACE
) -> dict[str, Path]:
    """The resolved paths of output files (None: not written). Raises OutputError, before anything is computed.

    files: by the option that sets the path, with the sign before its value ("output.file="). inputs: what the
    command reads; these files, and what lies in these folders, are never written. replace: the option for
    `overwrite`, without which an existing file is refused.
    """
    found: dict[str, Path] = {}
    for key, file in files.items():
        if file is None:
            continue
        path = resolved(Path(file), key)
        _check(f"{key}{path}", path, inputs, overwrite, replace)
        for other, taken in found.items():
            if same(path, taken):
                raise OutputError(f"{key}{path} and {other}{taken} are one file. Give two.")
        found[key] = path
    return found


def _check(shown: str, path: Path, inputs: Inputs, overwrite: bool, replace: str) -> None:
    if path.is_dir():
        raise OutputError(f"{shown} is a folder. Give the path of a file.")
    if os.path.lexists(path) and not path.is_file():
        raise OutputError(f"{shown} is no regular file. Choose another file.")
    if not path.parent.is_dir():
        raise OutputError(f"{shown}: the folder {path.parent} does not exist. Create it, or choose another file.")
    if found := read_inside(path, inputs):
        raise OutputError(
            f"{shown} is read by this command ({found.what}), so it is not written. Choose another file."
        )
    if found := written_inside(path, inputs):
        raise OutputError(
            f"{shown} lies in {found.path} ({found.what}), which this command reads and never changes. Choose "
            "another file."
        )
    if path.exists() and not overwrite:
        raise OutputError(f"{shown} already exists. Pass {replace} to replace it, or choose another file.")
    if path.exists() and _holds_weights(path):
        raise OutputError(f"{shown} holds weights of a model, so it is not replaced. Choose another file.")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{shown}: the folder {path.parent} cannot be written. Choose another file.")


def _holds_weights(path: Path) -> bool:
    """Whether a file is a checkpoint (safetensors, zip or pickle, whatever its name); ours are none."""
    try:
        with path.open("rb") as file:
            start = file.read(65536)
    except OSError:
        return False
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return re.search(rb'"(?!logits\.|task"|label"|__metadata__")[^"]+":\{"', start) is not None
    return start.startswith((b"PK\x03\x04", b"\x80")) and not _is_export(path)


EXPORT_MARK = "fsmerge.json"
"""Extra file in the programs that `fsmerge export --format torch` writes, by which it knows its own."""


def _is_export(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(f"/extra/{EXPORT_MARK}") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def write_files(files: Mapping[str, tuple[Path, Callable[[Path], None]]], overwrite: bool) -> None:
    """Write files that belong together: all appear, complete, or none. Raises OutputError.

    files: by the option that sets the path, the path of `check_files` and what writes its content into a given
    file. What has appeared at a path since then is kept, unless it is a regular file and `overwrite` is on. A file
    that is replaced comes back where another one cannot be written.
    """
    written: list[tuple[str, Path, Path]] = []
    appeared: list[Path] = []
    replaced: list[tuple[Path, Path]] = []
    try:
        for key, (path, write) in files.items():
            with _errors(key, path):
                with undisturbed():
                    temporary = _beside(path)
                    temporary.touch(exist_ok=False)
                    written.append((key, temporary, path))
                write(temporary)
        for key, temporary, path in written:
            with _errors(key, path):
                if overwrite and path.is_file() and not path.is_symlink():
                    replaced.append((_copy(path), path))
                    temporary.replace(path)
                else:
                    _place(temporary, path)
                    appeared.append(path)
    except BaseException:
        with undisturbed():
            for _, temporary, path in written:
                with suppress(OSError):
                    if path in appeared or path.samefile(temporary):  # stopped before all had appeared
                        path.unlink()
            for copy, path in replaced:
                with suppress(OSError):
                    copy.replace(path)
        raise
    finally:
        with undisturbed():
            for temporary in (*(temporary for _, temporary, _ in written), *(copy for copy, _ in replaced)):
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:100]}.{token_hex(4)}.tmp")


def _copy(path: Path) -> Path:
    """A second name of a file that is to be replaced, or a copy of it where there are no hard links."""
    copy = _beside(path)
    try:
        os.link(path, copy)
    except OSError:
        shutil.copy2(path, copy)
    return copy


def _place(temporary: Path, path: Path) -> None:
    """Give a complete file its name, at which nothing may be; of two commands one fails here."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        path.touch(exist_ok=False)
        try:
            temporary.replace(path)
        except BaseException:
            path.unlink()
            raise


@contextmanager
def _errors(key: str, path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise OutputError(
            f"{key}{path} has appeared while the command ran, so it is kept. Choose another file."
        ) from error
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {key}{path}: {reason(error)}. Choose another file.") from error
