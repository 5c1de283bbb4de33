"""`fsmerge check`: reports what a merge would do, from its arguments."""

from __future__ import annotations

from fsmerge_cli.cli.merge_command import composed
from fsmerge_cli.common.errors import ConfigError

HELP = """usage: fsmerge check +models=NAME [GROUP=NAME ...] [KEY=VALUE ...] [--headers-only] [--json]
                     [--quiet]

Takes the arguments of `fsmerge merge` and reports, from the headers of the checkpoints, what the
merge would do: one row per source model, every mismatch, whether the sources seem to share a
pretrained initialisation, the applicable methods and the recommended one, and the approximate
memory and time of the chosen method. Nothing is trained, downloaded or written.

  --headers-only   read no weights (by default at most 1 MB per source, to compare the sources)
  --json           print the result as JSON
  -q, --quiet      print only errors; the exit code is the result

Exit code 0: the sources can be merged; 2: they cannot, and standard error lists every reason.

examples:
  fsmerge check +models=digits_mlp_pair
  fsmerge check +models=digits_mlp_trio method=kd hardware=cpu --json
"""

OPTIONS = ("--headers-only", "--json", "-q", "--quiet")


def run(arguments: list[str]) -> int:
    """Compose the configuration and inspect the merge."""
    if {"-m", "--multirun"} & {*arguments}:
        raise ConfigError("fsmerge check inspects one merge. Leave out --multirun and give every key one value.")
    rest = composed([argument for argument in arguments if argument not in OPTIONS])
    from fsmerge_cli.cli import launch  # imports Hydra

    quiet = bool({"-q", "--quiet"} & {*arguments})
    return launch.check(rest, "--headers-only" in arguments, "--json" in arguments, quiet)
