"""The published form of evaluation.json, and the check that what is written has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from fsmerge_cli.common.errors import FsmergeError

NAME = "evaluation.schema.json"


def text() -> str:
    """The JSON schema (draft 2020-12), as published."""
    return files(__package__).joinpath(NAME).read_text()


def validate(evaluation: Mapping[str, Any]) -> None:
    """Raise FsmergeError where `evaluation` is not of the published form: a fault of ours, never the user's."""
    import jsonschema  # slow to import, so only where something is written

    checker = jsonschema.Draft202012Validator(json.loads(text()))
    found = sorted(f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in checker.iter_errors(evaluation))
    if found:
        lines = "\n".join(f"  - {line}" for line in found)
        raise FsmergeError(f"evaluation.json would not have its published form, please report it:\n{lines}")
