"""Claimed output folders: finish one, list its files, expect an OutputError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fsmerge_cli.common.atomic import FINISHED, claim
from fsmerge_cli.common.errors import OutputError
from fsmerge_cli.common.own_files import LIST


def finish(folder: Path, content: str = "{}", overwrite: bool = False) -> None:
    with claim(folder, overwrite) as temporary:
        (temporary / FINISHED).write_text(content)


def tree(folder: Path) -> dict[str, str | None]:
    """The paths in a folder with the content of files, without the lists of own files."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != LIST
    }


@contextmanager
def refusing(message: str) -> Iterator[None]:
    with pytest.raises(OutputError) as error:
        yield
    assert str(error.value) == message
