"""The `data` of a Python program: the name or the keys of a data set, a folder, or images or texts themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fsmerge_cli.common.options import build
from fsmerge_cli.data.base import DataConfig
from fsmerge_cli.data.content import NAME
from fsmerge_cli.data.images.in_memory import InMemory
from fsmerge_cli.data.text.in_memory import TextsInMemory

PLAIN = (str, int, float, bool, type(None))

Data = str | Path | Mapping[str, Any] | DataConfig | Any
"""Name or keys of a data set, a folder, or images or texts from Python (see `InMemory` and `TextsInMemory`)."""


def from_python(data: Data, texts: bool = False) -> Any:
    """Images, texts or a folder as a data set; the name or the keys of a data set as they are. Raises ConfigError.

    texts: whether the sources read texts.
    """
    if data is None or isinstance(data, DataConfig):
        return data
    if isinstance(data, Path) or (isinstance(data, str) and ("/" in data or "\\" in data or data.startswith("~"))):
        return {"name": "text" if texts else "folder", "root": str(data)}
    if isinstance(data, str):
        return data
    kind: type[DataConfig] = TextsInMemory if texts else InMemory
    if isinstance(data, Mapping) and data.get("name") == NAME:
        return build(kind, data, "data")
    own = {field.name for field in fields(DataConfig)}
    keys = isinstance(data, PLAIN) or (isinstance(data, Mapping) and (not data or bool(own & set(data))))
    return data if keys else build(kind, {"content": data}, "data")
