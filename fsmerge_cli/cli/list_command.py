"""`fsmerge list`: what there is, one line each, read from the shipped YAML files."""

from __future__ import annotations

import sys

from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError, unknown

HELP = """usage: fsmerge list [GROUP]

Shows what can be put after method=, +models=, data=, hardware=, launcher= and sweep=, one line each.
GROUP is one of: models, data, method, hardware, launcher, sweep.

examples:
  fsmerge list
  fsmerge list method
"""


def run(arguments: list[str]) -> int:
    """List one group, or all."""
    groups = (*presets.GROUPS, *presets.SWEEPS)
    for name in arguments:
        if name not in groups:
            raise ConfigError(unknown("group", name, groups))
    sys.stdout.write("\n".join(listing(group) for group in arguments or groups))
    return 0


def listing(group: str) -> str:
    """A group's options with one line each."""
    form = f"+{group}=" if group == "models" else f"{group}="
    lines = [f"  {form}{name:<20}{presets.summary(group, name)}" for name in presets.names(group)]
    return "\n".join([group, *lines]) + "\n"
