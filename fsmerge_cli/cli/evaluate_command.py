"""`fsmerge evaluate`: a written model on data of one's choice."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from fsmerge_cli.cli.composing import composed, own_folder
from fsmerge_cli.common.errors import ConfigError, unknown
from fsmerge_cli.common.options import FORBID, Count, Flag, Text, build

HELP = """usage: fsmerge evaluate MODEL [data=NAME] [KEY=VALUE ...] [--sources] [--json] [--quiet]

Measures a written model and changes nothing of it. MODEL is a folder that `fsmerge merge` wrote or its merged/, a
timm folder, or a checkpoint file; tasks and labels are those of its heads.safetensors, or of the one classifier
inside its weights. Without data=... on the test images of the run that made it.

  --sources   the sources of the run and their ensemble beside it (where a task has no training images, the joint
              answers are calibrated by theirs)
  --json      the whole evaluation as JSON on standard output (its form: fsmerge schema)
  -q, --quiet nothing but errors, and the files that are asked for

keys:
  data=NAME                    digits, folder, generated, glyphs, hf, none, per_task, tensors, torchvision;
                               its training images calibrate the joint answers
  hardware=NAME                auto (default), cpu, gpu
  seed=0                       of the drawn training images (default: the run's)
  tasks=[a,b]                  only these tasks of the model
  output.file=FILE             the same JSON as a file
  output.report=FILE           a page to look at, as tables.html of a run
  output.logits=FILE           the logits of all test images as safetensors
  output.overwrite=true        replace these files
  model.task=NAME              name of the task of a classifier inside a checkpoint, and so of its folder of images
  model.labels=[cat,dog]       class names of that classifier; also a file, or data (the class folders' names)
  model.arch=vit_base_patch16_224, model.mean=[...], model.std=[...], model.normalize=true, model.head=NAME,
  model.prefix=student, model.ema=true, model.input_size=224
                               what else a model made elsewhere does not say itself (docs/sources.md)
  --config-dir FOLDER          a folder of your own with data/*.yaml, ... (trusted like code)

examples:
  fsmerge evaluate outputs/demo
  fsmerge evaluate outputs/demo data=folder data.root=images/ --sources
  fsmerge evaluate other/model.safetensors model.arch=vit_base_patch16_224 model.task=pets \\
      model.labels=[cat,dog] data=folder data.root=images/ output.file=pets.json
  fsmerge evaluate trainer.ckpt model.arch=vit_base_patch16_224 model.ema=true model.task=pets \\
      model.labels=data data=folder data.root=images/
"""

FLAGS = ("--sources", "--json", "--quiet", "-q")


@dataclass(frozen=True, config=FORBID)
class Output:
    """file: for the evaluation; report: for its page; logits: of all test images; overwrite: replace them."""

    file: Text | None = None
    report: Text | None = None
    logits: Text | None = None
    overwrite: Flag = False


@dataclass(frozen=True, config=FORBID)
class Asked:
    """The composed keys."""

    hardware: dict[str, Any]
    model: dict[str, Any]
    output: dict[str, Any]
    data: dict[str, Any] | None = None
    seed: Count | None = None
    tasks: tuple[Text, ...] | None = None


def run(arguments: list[str]) -> int:
    """Compose the keys, measure the model, show and write what was asked for."""
    folder, overrides, search = _split(arguments)
    keys = composed("evaluate", overrides, search)
    asked = build(Asked, keys, "")
    output = build(Output, asked.output, "output")
    from rich.text import Text as Line

    from fsmerge_cli.common.atomic import check_file
    from fsmerge_cli.reporting import tables, terminal
    from fsmerge_cli.runs.evaluate import evaluate
    from fsmerge_cli.runs.merged import load_merged

    model = load_merged(folder, asked.model, asked.data)
    files = {"file": output.file, "report": output.report, "logits": output.logits}
    for what, file in files.items():
        if file is not None:
            check_file(Path(file), model.folder, output.overwrite, f"output.{what}")
    quiet = bool({"-q", "--quiet"} & {*arguments})
    with terminal.Reporter(terminal.console(stderr=True, quiet=quiet)) as progress:
        found = evaluate(
            model,
            data=asked.data,
            hardware=asked.hardware,
            seed=asked.seed,
            tasks=asked.tasks,
            sources="--sources" in arguments,
            progress=progress,
            command=shlex.join(["fsmerge", "evaluate", *arguments]),
        )
    if output.file is not None:
        found.save(output.file, output.overwrite)
    if output.report is not None:
        found.save_report(output.report, output.overwrite)
    if output.logits is not None:
        found.save_logits(output.logits, output.overwrite)
    evaluation = found.evaluation()
    if "--json" in arguments:
        sys.stdout.write(json.dumps(evaluation, indent=2, ensure_ascii=False) + "\n")
        return 0
    console = terminal.console(quiet=quiet)
    console.print(tables.score_table(evaluation))
    console.print(tables.task_table(evaluation))
    for note in evaluation["notes"]:
        console.print(Line(f"note: {note}"))
    named = {"evaluation" if what == "file" else what: file for what, file in files.items() if file}
    written = [f"{what}: {file}" for what, file in named.items()]
    console.print(Line("   ".join([f"model: {model.folder}", *written])), soft_wrap=True)
    return 0


def _split(arguments: Sequence[str]) -> tuple[str, list[str], str | None]:
    """The model, the overrides, and a folder with configurations of the user's own."""
    rest, search = own_folder([argument for argument in arguments if argument not in FLAGS])
    overrides = [a for a in rest if "=" in a and not a.startswith("-")]
    models = [a for a in rest if a not in overrides and not a.startswith("-")]
    strangers = [a for a in rest if a.startswith("-")]
    if strangers:
        raise ConfigError(f"fsmerge evaluate: {unknown('option', strangers[0], (*FLAGS, '--config-dir'))}")
    if len(models) != 1:
        found = f"{len(models)} are given ({', '.join(models)})" if models else "none is given"
        raise ConfigError(f"fsmerge evaluate takes one model, {found}. See fsmerge evaluate --help.")
    return models[0], overrides, search
