"""`fsmerge list`: the shipped YAML files with their one-line descriptions."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

from fsmerge_cli.cli.plugin_presets import import_kinds
from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError, unknown
from fsmerge_cli.common.streams import columns

HELP = """usage: fsmerge list [GROUP]

Lists the available names for +models=, data=, method=, hardware=, launcher= and sweep=, each with
a one-line description. GROUP is one of: models, data, method, hardware, launcher, sweep.

examples:
  fsmerge list
  fsmerge list method
"""

LEAST, SIX = 40, " " * 6
"""With fewer columns than this for a description, it begins on the next line, with an indent of six."""

AT_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def run(arguments: list[str]) -> int:
    """List one group, or all."""
    groups = (*presets.GROUPS, *presets.SWEEPS)
    for name in arguments:
        if name not in groups:
            raise ConfigError(unknown("group", name, groups))
    width = columns(sys.stdout)
    sys.stdout.write("\n".join(listing(group, width) for group in arguments or groups))
    return 0


def listing(group: str, width: int | None = None) -> str:
    """The options of a group, one per line; wrapped at words where `width` columns are fewer."""
    form = f"+{group}=" if group == "models" else f"{group}="
    if presets.more_names(group):
        import_kinds()
    found = presets.names(group)
    indent = 4 + len(form) + max(map(len, found))
    lines = []
    for name in found:
        start = f"  {form}{name}".ljust(indent)
        text = presets.summary(group, name)
        if width is None or indent + len(text) <= width:
            lines.append(start + text)
        elif width - indent >= LEAST:
            lines += textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * indent, **AT_WORDS)
        else:
            lines.append(start.rstrip())
            lines += textwrap.wrap(text, width, initial_indent=SIX, subsequent_indent=SIX, **AT_WORDS)
    return "\n".join([group, *lines]) + "\n"
