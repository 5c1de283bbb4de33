"""`fsmerge merge`: rewrites arguments that Hydra would reject, then calls `launch`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from fsmerge_cli.cli.composing import added
from fsmerge_cli.cli.gate import gate_of
from fsmerge_cli.cli.list_command import listing
from fsmerge_cli.cli.overrides import checked
from fsmerge_cli.cli.run_file import is_run_file
from fsmerge_cli.cli.short_form import expanded
from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError, unknown
from fsmerge_cli.common.streams import columns

HELP = """usage: fsmerge merge MODEL MODEL [...] [--images FOLDER] [-o FOLDER] [KEY=VALUE ...]
       fsmerge merge +models=NAME [GROUP=NAME ...] [KEY=VALUE ...] [--multirun]
       fsmerge merge FILE.yaml [KEY=VALUE ...]

Merges trained models into one model, evaluates it and writes a folder with merged/ (backbone and
heads, loadable without fsmerge), classifier/ (of vision transformers: one model with the labels of
all tasks, for timm and transformers), report.html, evaluation.json, config.yaml and run.log.

  MODEL                a file of weights, a folder, or a timm name with a tag; also TASK=MODEL.
                       Without TASK, the task has the name of the file or folder
  --images FOLDER      unlabelled images for all tasks, or one folder per task, named after it
                       (stands for data=folder data.root=FOLDER; with FILE.yaml, the other keys of
                       its folder stay)
  -o FOLDER            the output folder (stands for output.dir=FOLDER)
  FILE.yaml            the config.yaml of a run, or what `fsmerge init` wrote

`fsmerge list` shows all names of the groups.

groups:
  +models=NAME         source models, and the data set that belongs to them
  data=NAME            digits, folder, generated, glyphs, hf, hf_text, none, per_task, sentences,
                       tensors, text, torchvision
  method=NAME          @METHODS@
  hardware=NAME        auto (default), cpu, gpu, multi_gpu, slurm
  launcher=NAME        joblib, submitit_local, submitit_slurm (where the jobs of --multirun run)
  sweep=NAME           optuna, map, m2n2 (searches with --multirun, instead of a full grid)

keys:
  seed=0                       random seed
  output.dir=FOLDER            default: outputs/MODELS-METHOD-HASH
  output.overwrite=true        replace a finished run
  output.tensorboard=true      also write TensorBoard event files (needs
                               pip install tensorboard); likewise
                               output.wandb=true and output.mlflow=true
  resume=true                  continue an interrupted run in output.dir
  checkpoint.every=60s         how often the training state is saved (60s, 5m, or a number of steps)
  evaluation.kd=true           also train a distillation baseline with the budget of the method
  data.images_per_task=100     unlabelled images per task for the merge (or all)
  method.steps=1000            training steps; --cfg job prints all keys of a method
  models.base=PATH             the pretrained weights that all models were fine-tuned from, for
                               methods of task vectors (ties, ...): a folder, file or timm name
  models.sources.0.labels=FILE class names of the first source; also arch, head, mean, std, ...

  -m, --multirun       run every combination of comma-separated values, then write one table,
                       summary.csv and summary.svg. With resume=true, finished jobs are skipped
  --strict             exit code 1 where there is a warning (a source at chance, far below the
                       accuracy that its folder states, or with its classes in another order)
  --fail-under=PERCENT exit code 1 where the merged model has a lower top-1 accuracy on a task
                       (the files are written all the same; a task that predicts a number has no
                       accuracy and is not checked)
  --json               print one JSON object (folder, evaluation: the content of evaluation.json);
                       everything else goes to standard error
  -q, --quiet          print only errors. By default: progress bars on a terminal; plain lines in a
                       file or pipe, with NO_COLOR=1 or with TERM=dumb
  --cfg job            print the composed configuration instead of running
  --config-dir FOLDER  your own folder with models/*.yaml, method/*.yaml, ... (trusted like code)

examples:
  fsmerge merge pets.safetensors cars.safetensors --images photos/ -o out
  fsmerge merge pets=a/model.pt cars=b/ --images photos/ method=fs_closed_form seed=1
  fsmerge merge out/config.yaml seed=2 -o again
  fsmerge merge +models=digits_mlp_pair method=fs_merge
  fsmerge merge +models=digits_mlp_pair method=fs_merge method.maps=low_rank method.rank=8 \\
      method.targets=all
  fsmerge merge +models=digits_mlp_trio method=kd data.images_per_task=20 output.dir=outputs/trio
  fsmerge merge --multirun +models=digits_mlp_pair method=average,kd,fs_merge seed=0,1,2
  fsmerge merge --multirun +models=digits_mlp_pair method=slerp method.t=0.2,0.5,0.8
"""


_METHODS = ", ".join(presets.shipped("method")).replace("fs_merge,", "fs_merge_(default),")
_LINES = f"\n{' ' * 23}".join(wrap(_METHODS, 74)).replace("_(", " (")
HELP = HELP.replace("@METHODS@", _LINES)

FILES_OF_HYDRA = ("hydra.run.dir", "hydra.output_subdir", "hydra/job_logging", "hydra/hydra_logging")


def run(arguments: list[str]) -> int:
    """Compose the configuration and run it, or every combination with --multirun."""
    rest, gate = gate_of(arguments)
    if gate and {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*arguments}:
        raise ConfigError("--strict and --fail-under apply to one run. Leave out --multirun.")
    if "--json" in arguments and {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*arguments}:
        raise ConfigError(
            "--json applies to one run. Leave out --multirun, and run fsmerge compare FOLDER --json."
        )
    own = {"-q", "--quiet", "--json"}
    notes: list[str] = []
    overrides = composed([argument for argument in rest if argument not in own], "merge", sorted(own), notes)
    from fsmerge_cli.cli import launch  # imports Hydra

    typed, quiet = shlex.join(["fsmerge", "merge", *arguments]), bool({"-q", "--quiet"} & {*arguments})
    repeated = [Path(argument).expanduser() for argument in rest if is_run_file(argument)]
    return launch.merge_with(gate, overrides, quiet, typed, "--json" in arguments, repeated, notes)


def composed(
    arguments: list[str],
    command: str = "merge",
    own_options: Sequence[str] = (),
    notes: list[str] | None = None,
) -> list[str]:
    """The arguments in Hydra's syntax; ConfigError where Hydra cannot read one, or where no models are given.

    notes: gets what the user should know about the arguments.
    """
    arguments = expanded(arguments, command, notes)
    arguments = [rewrite(argument) for argument in checked(arguments, command, own_options)]
    # Hydra's parser accepts the flag before or after all overrides, not between them.
    arguments = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))
    several = {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*arguments}
    for argument in arguments:
        if argument.lstrip("+~").partition("=")[0] in FILES_OF_HYDRA:
            raise ConfigError(
                f"{argument}: Hydra would write files of its own, which could replace yours. Use "
                "output.dir=FOLDER, which holds the configuration (config.yaml) and the log (run.log)."
            )
        if argument.partition("=")[0] in presets.SWEEPS and not several:
            raise ConfigError(f"{argument} only applies to --multirun. Add --multirun, or leave it out.")
    if not any(argument.lstrip("+").startswith(("models=", "models.sources=")) for argument in arguments):
        raise ConfigError(
            "no models given. Choose them with +models=NAME. Available:\n"
            + listing("models", columns(sys.stderr)).rstrip()
        )
    return arguments


def rewrite(argument: str) -> str:
    """An override for Hydra: `models=x` -> `+models=x`, `data=null` -> `~data`, `++` for keys of a source."""
    group, _, value = argument.lstrip("+").partition("=")
    if value == "null" and group in presets.GROUPS:
        if group == "data":
            return "~data"
        raise ConfigError(unknown(group, value, presets.names(group)))
    if argument.startswith("models="):
        return f"+{argument}"
    if argument.startswith(("models.sources", "models.base")) or re.match(r"method\.\w+\.\d+=", argument):
        return f"++{argument}"
    return added(argument)
