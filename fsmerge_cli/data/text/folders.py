"""Which files of a folder are texts, and what is passed over. Links and hidden folders: as of images."""

from __future__ import annotations

import re
from pathlib import Path

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.shown import listed, shown
from fsmerge_cli.data.images.files import by_suffix, is_ignored, walk

TABLES = {".csv": ",", ".tsv": "\t"}
OBJECTS = (".jsonl", ".ndjson", ".json")
PARQUET, CONLL = ".parquet", ".conll"
SUFFIXES = (".txt", *TABLES, *OBJECTS, PARQUET, CONLL)

SHARD = re.compile(r"(train|test|validation|val|dev)-\d+-of-\d+.*\.parquet")
"""Parts of the splits of a data set of Hugging Face."""


def is_text_file(path: Path) -> bool:
    """Whether a file can be read as texts, by its suffix."""
    return path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def text_files(folder: Path) -> list[Path]:
    """Every file of texts below `folder`, sorted.

    Raises DataError for a folder that cannot be read, and for a class folder with only files of other formats.
    """
    found = sorted(filter(is_text_file, walk(folder)))
    filled = {path.relative_to(folder).parts[0] for path in found}
    for own in sorted(path for path in folder.iterdir() if path.is_dir() and not is_ignored(path.name)):
        if own.name not in filled and (others := passed_over(own)):
            raise DataError(
                f"data=text: the folder {shown(own)} has no texts, only {others}. Save them as .txt, or remove "
                "the folder."
            )
    return found


def passed_over(folder: Path) -> str:
    """The other files below `folder`, counted by suffix or kind; "" where there are none."""
    return by_suffix((path for path in walk(folder) if not is_text_file(path)), frozenset())


def refuse_shards(folder: Path) -> None:
    """Raise DataError for a data set of Hugging Face, whose test texts would be among the others."""
    found = sorted(path.name for path in walk(folder) if SHARD.fullmatch(path.name)) if folder.is_dir() else []
    if found:
        raise DataError(
            f"data=text: {shown(folder)} holds the splits of a data set of Hugging Face in parts ({found[0]}). "
            f"Pass data=hf_text data.path={shown(folder)}"
        )


def of_name(folder: Path, name: str) -> list[Path]:
    """The folder and the files of texts in `folder` that are called `name`."""
    own = [folder / name] if (folder / name).is_dir() else []
    beside = sorted(path for path in folder.iterdir() if name in (path.stem, path.name)) if folder.is_dir() else []
    return own + [path for path in beside if is_text_file(path)]


def only_of_name(folder: Path, name: str) -> Path | None:
    """The same, if it is one; None for none. Raises DataError for several, of which only one would be read."""
    found = of_name(folder, name)
    if len(found) > 1:
        raise DataError(
            f"data=text: {listed([shown(path) for path in found])} are all called '{name}'. Keep one of them, or "
            "pass data.train=PATH."
        )
    return found[0] if found else None
