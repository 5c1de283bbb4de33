"""`fsmerge list`: the shipped YAML files with their one-line descriptions."""

from __future__ import annotations

import sys

from fsmerge_cli.cli.plugin_presets import import_kinds
from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError, unknown

HELP = """usage: fsmerge list [GROUP]

Lists the available names for +models=, data=, method=, hardware=, launcher= and sweep=, each with
a one-line description. GROUP is one of: models, data, method, hardware, launcher, sweep.

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
    """The options of a group, one per line."""
    form = f"+{group}=" if group == "models" else f"{group}="
    if presets.more_names(group):
        import_kinds()
    lines = [f"  {form}{name:<24}{presets.summary(group, name)}" for name in presets.names(group)]
    return "\n".join([group, *lines]) + "\n"
