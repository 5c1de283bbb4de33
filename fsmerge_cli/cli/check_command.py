"""`fsmerge check`: reports what a merge would do, from its arguments."""

from __future__ import annotations

from fsmerge_cli.cli.gate import gate_of
from fsmerge_cli.cli.merge_command import composed
from fsmerge_cli.common.errors import ConfigError

HELP = """usage: fsmerge check MODEL MODEL [...] [--images FOLDER] [GROUP=NAME ...] [KEY=VALUE ...]
                     [--headers-only] [--json] [--strict] [--fail-under=PERCENT] [--quiet]
       fsmerge check +models=NAME [GROUP=NAME ...] [KEY=VALUE ...] ...
       fsmerge check FILE.yaml [KEY=VALUE ...] ...

Takes the arguments of `fsmerge merge` and reports what the merge would do: one row per source
model, every mismatch, every guess, whether the sources seem to share a pretrained initialisation,
the applicable methods and the recommended one, and the approximate memory and time of the chosen
method. It reads weights and images as the merge does before it trains, and refuses what the merge
would refuse; output.dir is checked if it is given. Nothing is trained, downloaded or written.

  --headers-only        read neither weights nor images, only what their headers and names show
  --strict              evaluate the sources on their labelled test images; exit code 1 where there
                        is a warning: a source at chance, far below the accuracy that its folder
                        states, or with its classes in another order
  --fail-under=PERCENT  the same; exit code 1 where a source has a lower top-1 accuracy (a task that
                        predicts a number has none and is not checked)
  --json                print the result as JSON
  -q, --quiet           print only errors; the exit code is the result

Exit code 0: the sources can be merged; 1: --strict or --fail-under failed; 2: they cannot be
merged, and standard error lists every reason.

examples:
  fsmerge check pets.safetensors cars.safetensors
  fsmerge check pets.safetensors cars.safetensors --images photos/ method=kd
  fsmerge check +models=digits_mlp_pair
  fsmerge check +models=digits_mlp_trio method=kd hardware=cpu --json
  fsmerge check +models=digits_mlp_pair --strict --fail-under=90
"""

OPTIONS = ("--headers-only", "--json", "-q", "--quiet")


def run(arguments: list[str]) -> int:
    """Compose the configuration and inspect the merge."""
    if {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*arguments}:
        raise ConfigError("fsmerge check inspects one merge. Leave out --multirun and give every key one value.")
    arguments, gate = gate_of(arguments)
    headers_only = "--headers-only" in arguments
    if gate and headers_only:
        raise ConfigError("--strict and --fail-under evaluate the sources. Leave out --headers-only.")
    own = (*OPTIONS, "--strict", "--fail-under")
    rest = composed([argument for argument in arguments if argument not in OPTIONS], "check", own)
    from fsmerge_cli.cli import launch  # imports Hydra
    from fsmerge_cli.cli.showing import Checking

    quiet = bool({"-q", "--quiet"} & {*arguments})
    return launch.check(rest, Checking(headers_only, "--json" in arguments, gate), quiet)
