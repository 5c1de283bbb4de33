"""`fsmerge check`: the arguments of a merge, and what it would be."""

from __future__ import annotations

from fsmerge_cli.cli.merge_command import composed
from fsmerge_cli.common.errors import ConfigError

HELP = """usage: fsmerge check +models=NAME [GROUP=NAME ...] [KEY=VALUE ...] [--headers-only] [--json] [--quiet]

Takes what `fsmerge merge` takes and says, from the headers of the files, what the merge would be: one row per
source, every mismatch, whether the sources seem to share a parent, which methods apply and which one to start
with, and about how much memory and time the chosen method needs. Nothing is trained, downloaded or written.

  --headers-only   read no weights at all (otherwise at most 1 MB per source, to compare them)
  --json           the same as JSON on standard output
  -q, --quiet      nothing but errors: the exit code is the answer

Exit code 0: the sources can be merged; 2: they cannot, and every reason is on standard error.

examples:
  fsmerge check +models=digits_mlp_pair
  fsmerge check +models=digits_mlp_trio method=kd hardware=cpu --json
"""

OPTIONS = ("--headers-only", "--json", "-q", "--quiet")


def run(arguments: list[str]) -> int:
    """Compose the configuration and inspect what it would merge."""
    if {"-m", "--multirun"} & {*arguments}:
        raise ConfigError("fsmerge check looks at one merge. Leave out --multirun and give every key one value.")
    rest = composed([argument for argument in arguments if argument not in OPTIONS])
    from fsmerge_cli.cli import launch  # imports Hydra

    quiet = bool({"-q", "--quiet"} & {*arguments})
    return launch.check(rest, "--headers-only" in arguments, "--json" in arguments, quiet)
