"""`fsmerge merge`: rewrite what Hydra would not take, then hand over to `config`."""

from __future__ import annotations

import re

from fsmerge_cli.cli.composing import added
from fsmerge_cli.cli.list_command import listing
from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError, unknown

HELP = """usage: fsmerge merge +models=NAME [GROUP=NAME ...] [KEY=VALUE ...] [--multirun]

Merges the sources that +models=NAME lists, evaluates the result and writes a folder: merged/ (the model,
loadable without fsmerge), report.html, evaluation.json, launch.yaml, run.log. `fsmerge list`
shows the names.

groups:
  +models=NAME         the sources, and the images that belong to them
  data=NAME            digits, folder, generated, glyphs, hf, none, per_task, tensors, torchvision
  method=NAME          activation_matching, average, fs_merge (default), fs_merge_paper, kd, regmean,
                       regmean_pp, slerp, zipit
  hardware=NAME        auto (default), cpu, gpu, multi_gpu, slurm
  launcher=NAME        joblib, submitit_local, submitit_slurm (where the jobs of --multirun run)
  sweep=NAME           optuna (chooses the jobs of --multirun, instead of every combination)

keys:
  seed=0                       of everything that is drawn
  output.dir=FOLDER            default: outputs/MODELS-METHOD-HASH
  output.overwrite=true        replace a finished run
  output.tensorboard=true      event files for TensorBoard as well (pip install 'fsmerge[tensorboard]')
  resume=true                  continue an interrupted run into output.dir
  checkpoint.every=60s         how often the state of a training is saved (60s, 5m, or a number of steps)
  evaluation.kd=true           one more row: distillation with the budget of the method
  data.images_per_task=100     unlabelled images the merge may see per task (all: every one)
  method.steps=2000            and the other keys of the method; the files in configs/ say them all
  models.sources.0.checkpoint=PATH   another checkpoint for a source

  -m, --multirun       every combination of comma-separated values; at the end one table, summary.csv and
                       summary.svg. With resume=true jobs that are finished are not done again
  -q, --quiet          show nothing but errors. Without it: bars on a terminal; plain lines and no control
                       characters where there is none, with NO_COLOR=1 or TERM=dumb
  --cfg job            print the composed configuration instead of running
  --config-dir FOLDER  a folder of your own with models/*.yaml, method/*.yaml, ... (trusted like code)

examples:
  fsmerge merge +models=digits_mlp_pair method=fs_merge
  fsmerge merge +models=digits_mlp_pair method=fs_merge method.maps=low_rank method.rank=8 method.targets=all
  fsmerge merge +models=digits_mlp_trio method=kd data.images_per_task=20 output.dir=outputs/trio
  fsmerge merge --multirun +models=digits_mlp_pair method=average,kd,fs_merge seed=0,1,2
  fsmerge merge --multirun +models=digits_mlp_pair method=slerp 'method.t=interval(0,1)' sweep=optuna
"""


def run(arguments: list[str]) -> int:
    """Compose the configuration and run it, or every combination of it."""
    quiet = {"-q", "--quiet"}
    composed_of = composed([argument for argument in arguments if argument not in quiet])
    from fsmerge_cli.cli import launch  # imports Hydra

    return launch.launch(composed_of, bool(quiet & {*arguments}))


def composed(arguments: list[str]) -> list[str]:
    """The arguments as Hydra takes them; ConfigError where no models are given."""
    arguments = [rewrite(argument) for argument in arguments]
    # Hydra's parser takes the flag before or after all overrides, not among them.
    arguments = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))
    several = {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*arguments}
    for argument in arguments:
        if argument.partition("=")[0] in presets.SWEEPS and not several:
            raise ConfigError(f"{argument} is for several merges at once. Add --multirun, or leave it out.")
    if not any(argument.lstrip("+").startswith(("models=", "models.sources=")) for argument in arguments):
        raise ConfigError(
            "no models given. Say which with +models=NAME; there are:\n" + listing("models").rstrip()
        )
    return arguments


def rewrite(argument: str) -> str:
    """`models=x` -> `+models=x`, `data=null` takes it away; keys of a source and places of a list may be added."""
    group, _, value = argument.lstrip("+").partition("=")
    if value == "null" and group in presets.GROUPS:
        if group == "data":
            return "~data"
        raise ConfigError(unknown(group, value, presets.names(group)))
    if argument.startswith("models="):
        return f"+{argument}"
    if argument.startswith("models.sources") or re.match(r"method\.\w+\.\d+=", argument):
        return f"++{argument}"
    return added(argument)
