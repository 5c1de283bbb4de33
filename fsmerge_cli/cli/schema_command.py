"""`fsmerge schema`: the JSON schema of evaluation.json."""

from __future__ import annotations

import sys

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.shown import brief

HELP = """usage: fsmerge schema

Prints the JSON schema (draft 2020-12) of evaluation.json, the file that every merge
writes.

example:
  fsmerge schema > evaluation.schema.json
"""


def run(arguments: list[str]) -> int:
    """Print the schema."""
    if arguments:
        raise ConfigError(
            f"fsmerge schema takes no arguments, got {brief(arguments[0])}. See fsmerge schema --help."
        )
    from fsmerge_cli.reporting import schema

    sys.stdout.write(schema.text())
    return 0
