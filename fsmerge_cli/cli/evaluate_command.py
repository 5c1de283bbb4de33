"""`fsmerge evaluate`: evaluates a saved model on a chosen data set."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from fsmerge_cli.cli.composing import composed, config_dir_of
from fsmerge_cli.cli.gate import gate_of, measured_in
from fsmerge_cli.cli.json_output import write_json
from fsmerge_cli.common.errors import ConfigError, unknown
from fsmerge_cli.common.notes import notes_in, warnings_in
from fsmerge_cli.common.options import FORBID, Count, Flag, Text, build
from fsmerge_cli.common.shown import shown

HELP = """usage: fsmerge evaluate MODEL [data=NAME] [KEY=VALUE ...] [--sources] [--strict] [--json]
                        [--fail-under=PERCENT] [--quiet]

Evaluates a model without changing it. MODEL is a folder written by `fsmerge merge`, its merged/
folder, a timm folder, or a checkpoint file. Tasks and labels are read from heads.safetensors, or
from the classifier in the checkpoint.

  --sources    also evaluate the sources of the merge and their ensemble: reads the checkpoints that
               the run's config.yaml names. Where a task has no training images, the joint accuracy
               is calibrated on the sources' predictions
  --strict     exit code 1 where there is a warning: the model (with --sources, a source) is at
               chance, far below the accuracy that its folder states, or has its classes in
               another order
  --fail-under=PERCENT
               exit code 1 where the model has a lower top-1 accuracy on a task (one that predicts
               a number has none and is not checked)
  --json       print the whole evaluation as JSON (format: fsmerge schema)
  -q, --quiet  print only errors; output files are still written

keys:
  data=NAME                    digits, folder, generated, glyphs, hf, hf_text, none, per_task,
                               sentences, tensors, text, torchvision; its training images
                               calibrate the joint accuracy
  data=from_run                the data of the merge, as the run's config.yaml names them. Somebody
                               else's config.yaml may name any folder or a download, so it is not
                               followed unless you say this
  hardware=NAME                auto (default), cpu, gpu
  seed=0                       random seed of the training images (default: 0; with data=from_run
                               the seed of the merge)
  tasks=[a,b]                  evaluate only these tasks of the model
  output.file=FILE             write the evaluation as JSON
  output.report=FILE           write the evaluation as an HTML page
  output.logits=FILE           write the logits of all test images as safetensors
  output.overwrite=true        replace these files
  model.task=NAME              task name of the classifier in a checkpoint; with data=folder also
                               the name of its image folder
  model.labels=[cat,dog]       its class names: a list, a file, or data (names of class folders)
  model.arch=vit_base_patch16_224, model.mean=[...], model.std=[...], model.normalize=true,
                               model.head=NAME, model.prefix=student, model.ema=true,
                               model.base=MODEL, model.input_size=224: for third-party checkpoints
                               that do not contain this information (docs/sources.md)
  --config-dir FOLDER          your own folder with data/*.yaml, ... (trusted like code)

examples:
  fsmerge evaluate outputs/demo data=from_run
  fsmerge evaluate outputs/demo data=folder data.root=images/ --sources
  fsmerge evaluate other/model.safetensors model.arch=vit_base_patch16_224 model.task=pets \\
      model.labels=[cat,dog] data=folder data.root=images/ output.file=pets.json
  fsmerge evaluate trainer.ckpt model.arch=vit_base_patch16_224 model.ema=true model.task=pets \\
      model.labels=data data=folder data.root=images/
"""

KEYS = ("data", "hardware", "model", "output", "seed", "tasks")
FLAGS = ("--sources", "--json", "--quiet", "-q")


@dataclass(frozen=True, config=FORBID)
class Output:
    """file: the evaluation as JSON; report: as HTML; logits: of all test images; overwrite: replace the files."""

    file: Text | None = None
    report: Text | None = None
    logits: Text | None = None
    overwrite: Flag = False


@dataclass(frozen=True, config=FORBID)
class EvaluateKeys:
    """The composed configuration."""

    hardware: dict[str, Any]
    model: dict[str, Any]
    output: dict[str, Any]
    data: dict[str, Any] | None = None
    seed: Count | None = None
    tasks: tuple[Text, ...] | None = None


def run(arguments: list[str]) -> int:
    """Compose the configuration, evaluate the model, print the tables and write the requested files."""
    arguments, gate = gate_of(arguments)
    folder, overrides, search = _split(arguments)
    from_run, overrides = _from_run(overrides)
    keys = composed("evaluate", overrides, search)
    options = build(EvaluateKeys, keys, "")
    output = build(Output, options.output, "output")
    from rich.text import Text as Line

    from fsmerge_cli.common.output_files import check_files
    from fsmerge_cli.common.wording import worded_progress
    from fsmerge_cli.reporting import tables, terminal
    from fsmerge_cli.runs.evaluate import evaluate, evaluate_inputs
    from fsmerge_cli.runs.from_run import FROM_RUN
    from fsmerge_cli.runs.inputs import checkpoint_inputs, config_inputs, label_inputs
    from fsmerge_cli.runs.merged import load_merged

    data = FROM_RUN if from_run else options.data
    model = load_merged(folder, options.model, data).with_heads()
    files = {"file": output.file, "report": output.report, "logits": output.logits}
    given = [
        *label_inputs("model.labels", options.model.get("labels")),
        *checkpoint_inputs("model.base", options.model.get("base")),
        *config_inputs([search] if search else []),
    ]
    inputs = [*given, *evaluate_inputs(model, data, "--sources" in arguments)]
    check_files({f"output.{what}=": file for what, file in files.items()}, inputs, output.overwrite)
    quiet = bool({"-q", "--quiet"} & {*arguments})
    with terminal.Reporter(terminal.console(stderr=True, quiet=quiet)) as progress:
        found = evaluate(
            model,
            data=data,
            hardware=options.hardware,
            seed=options.seed,
            tasks=options.tasks,
            sources="--sources" in arguments,
            progress=worded_progress(progress, model.family.kind),
            command=shlex.join(["fsmerge", "evaluate", *arguments]),
            more_inputs=given,
        )
    found.save_files(file=output.file, report=output.report, logits=output.logits, overwrite=output.overwrite)
    evaluation = found.evaluation()
    measured = measured_in(evaluation["rows"]["merged"])
    terminal.print_notes(terminal.console(stderr=True, quiet=quiet), gate.unchecked(*measured))
    if "--json" in arguments:
        write_json(evaluation)
        gate.require("the model", evaluation["notes"], *measured)
        return 0
    console = terminal.console(quiet=quiet)
    for warning in warnings_in(evaluation["notes"]):
        console.print(Line(f"warning: {warning}"), style="bold", soft_wrap=True)
    for table in (tables.score_table(evaluation), *tables.task_tables(evaluation)):
        console.print(terminal.worded_table(table, model.family.kind))
    for note in notes_in(evaluation["notes"]):
        console.print(Line(f"note: {note}"))
    written = {"evaluation" if what == "file" else what: file for what, file in files.items() if file}
    paths = [f"model: {model.folder}", *(f"{what}: {file}" for what, file in written.items())]
    console.print(Line("   ".join(paths)), soft_wrap=True)
    gate.require("the model", evaluation["notes"], *measured)
    return 0


def _from_run(overrides: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether data=from_run is among the overrides, and the others. Raises ConfigError for other keys of data."""
    rest = [override for override in overrides if override.lstrip("+") != "data=from_run"]
    own = [override for override in rest if re.match(r"[+~]*data\b", override)]
    if len(rest) < len(overrides) and own:
        raise ConfigError(
            f"data=from_run takes the data as the run names them, so {own[0]} cannot be given as well. Leave one "
            "of them out."
        )
    return len(rest) < len(overrides), rest


def _split(arguments: Sequence[str]) -> tuple[str, list[str], str | None]:
    """The model, the overrides, and the folder of --config-dir."""
    rest, search = config_dir_of([argument for argument in arguments if argument not in FLAGS])
    overrides = [a for a in rest if _is_override(a)]
    models = [a for a in rest if a not in overrides and not a.startswith("-")]
    unknown_options = [a for a in rest if a.startswith("-")]
    if unknown_options:
        raise ConfigError(f"fsmerge evaluate: {unknown('option', unknown_options[0], (*FLAGS, '--config-dir'))}")
    if len(models) != 1:
        found = f"{len(models)} are given ({', '.join(models)})" if models else "none is given"
        read = [a for a in overrides if a.partition("=")[0].partition(".")[0] not in KEYS] if not models else []
        if read:
            found += f", since '{shown(read[0])}' is read as KEY=VALUE; write a path with = in its name as ./NAME"
        raise ConfigError(f"fsmerge evaluate takes one model, but {found}. See fsmerge evaluate --help.")
    return models[0], overrides, search


def _is_override(argument: str) -> bool:
    """Whether an argument is KEY=VALUE, not an option or a path with = in its name."""
    key, equals, _ = argument.partition("=")
    if not equals or argument.startswith("-") or "/" in key:
        return False
    return key.lstrip("+~").partition(".")[0] in KEYS or not Path(argument).exists()
