"""Folders of sentence-transformers: what becomes of the tokens of an encoder, as modules.json states it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.foreign_files import UnreadableError, read_json
from fsmerge_cli.common.shown import brief, few, shown

KEY = "sentence_modules"
"""Under which the folder of modules.json is put into the content of config.json."""

FILE = "modules.json"

LENGTH = "sentence_bert_config.json"
"""File of the Transformer, which states how long a text may be."""

POOLED = {"mean": "mean", "mean_tokens": "mean", "cls": "first", "cls_token": "first"}
"""Modes of pooling that are read, by the names in the library's files."""


def modules_beside(path: Path) -> dict[str, Path]:
    """Under KEY the folder of modules.json, in the folder `path` or beside the file `path`; empty without one."""
    folder = path if path.is_dir() else path.parent
    return {KEY: folder} if (folder / FILE).is_file() else {}


def without_modules(config: Mapping[str, Any]) -> dict[str, Any]:
    """For the encoder alone: what a classifier on its pooled first token is trained from."""
    return {key: value for key, value in config.items() if key != KEY}


def longest(folder: Path, where: str) -> int | None:
    """Tokens of a text, as the folder of the Transformer states it; None where it does not. Raises SourceError."""
    if not (folder / LENGTH).is_file():
        return None
    stated = _read(folder / LENGTH, f"{where}: {LENGTH}")
    found = stated.get("max_seq_length") if isinstance(stated, Mapping) else None
    if found is None:
        return None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise SourceError(f"{where}: max_seq_length in {LENGTH} should be a number of tokens, is {brief(found)}.")
    return found


def read_modules(folder: Path, where: str) -> dict[str, Any]:
    """`pooling` (first or mean) and `unit_length` as in `TextArch`. Raises SourceError for other modules."""
    listed = _read(folder / FILE, f"{where}: {FILE}")
    if not isinstance(listed, list) or not all(isinstance(own, dict) for own in listed):
        raise SourceError(f"{where}: {FILE} is no list of modules, as sentence-transformers writes it.")
    kinds = [str(own.get("type", "")).rpartition(".")[2] for own in listed]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        found = shown(", ".join(kinds))
        raise SourceError(
            f"{where} has the modules {found} of sentence-transformers. Read are a Transformer, a Pooling "
            "and a Normalize, in this order."
        )
    name = str(listed[1].get("path", ""))
    if "/" in name or name in ("", ".", ".."):
        raise SourceError(f"{where}: the path of Pooling in {FILE} is {brief(name)}, which is no folder there.")
    place = folder / name / "config.json"
    stated = _read(place, f"{where}: {name}/config.json") if place.is_file() else {}
    return {"pooling": _pooling(stated, where), "unit_length": len(kinds) > 2}


def _read(path: Path, where: str) -> Any:
    try:
        return read_json(path)
    except UnreadableError as error:
        raise SourceError(f"{where} cannot be read: {error.why}. Repair it, or copy it again.") from None


def _pooling(stated: Any, where: str) -> str:
    """The mode of pooling, which older versions of the library write as flags, and newer ones by name."""
    given = stated if isinstance(stated, Mapping) else {}
    prefix = "pooling_mode_"
    modes = [key.removeprefix(prefix) for key, on in given.items() if key.startswith(prefix) and on is True]
    if named := given.get("pooling_mode"):
        modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in POOLED:
        raise SourceError(
            f"{where}: its Pooling of sentence-transformers is {brief(few(modes) or 'not stated')}. Read are the "
            "mean of the tokens (mean) and the first token (cls)."
        )
    return POOLED[modes[0]]
