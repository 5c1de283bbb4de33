"""`fsmerge curve`: loss and accuracy along the straight line between two sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from fsmerge_cli.cli.composing import composed, config_dir_of
from fsmerge_cli.cli.json_output import write_json
from fsmerge_cli.cli.merge_command import rewrite
from fsmerge_cli.cli.run_file import is_run_file
from fsmerge_cli.cli.short_form import expanded
from fsmerge_cli.common.errors import ConfigError, unknown
from fsmerge_cli.common.notes import notes_in, warnings_in
from fsmerge_cli.common.options import FORBID, Count, Flag, Text, build
from fsmerge_cli.common.shown import json_text, shown

HELP = """usage: fsmerge curve MODEL MODEL [--images FOLDER] [KEY=VALUE ...] [--json] [--quiet]
       fsmerge curve +models=NAME [KEY=VALUE ...] [--json] [--quiet]

Evaluates the networks (1 - alpha) W_1 + alpha W_2 on the straight line between the weights of two
sources of one task, before and after the units of source 2 are permuted to match source 1. With
labelled images: loss and accuracy. Without labels, or where the classes differ: agreement with the
predictions of both sources, and the error of the features. The barrier of a line is the largest
height of the loss (of the error rate) above the straight line between its values at both ends.

  MODEL            a file of weights, a folder, or a timm name with a tag; also NAME=MODEL
  --images FOLDER  images of the task (stands for data=folder data.root=FOLDER): class folders, or
                   train/ and test/ with these, or images without labels. Test images are
                   evaluated, else some that are held back
  --json           print the curves as JSON
  -q, --quiet      print only errors; output files are still written

keys:
  curve.align=weights          how source 2 is aligned: weights (weight matching, no images needed),
                               activations (activation matching), none
  curve.points=11              points of each line, both ends included
  curve.repair=true            reset the statistics of the network at each point to those between
                               the sources' (REPAIR)
  data=NAME                    digits, folder, generated, glyphs, hf, hf_text, none, per_task,
                               sentences, tensors, text, torchvision
  hardware=NAME                auto (default), cpu, gpu
  seed=0                       random seed of the sampled images and of the matching
  models.sources.0.labels=FILE class names of the first source; also arch, head, mean, std, ...
  output.file=FILE             write the curves as JSON
  output.csv=FILE              write the points as CSV
  output.plot=FILE             draw the curves, as .svg, .png or .pdf (needs pip install matplotlib)
  output.overwrite=true        replace these files
  --config-dir FOLDER          your own folder with models/*.yaml, ... (trusted like code)

examples:
  fsmerge curve a.safetensors b.safetensors --images photos/ output.plot=curve.svg
  fsmerge curve +models=one_task_pair
  fsmerge curve +models=one_task_pair curve.align=activations curve.points=21 --json
"""

FLAGS = ("--json", "--quiet", "-q")


@dataclass(frozen=True, config=FORBID)
class Output:
    """file: the curves as JSON; csv: the points as CSV; plot: .svg, .png or .pdf; overwrite: replace the files."""

    file: Text | None = None
    csv: Text | None = None
    plot: Text | None = None
    overwrite: Flag = False


@dataclass(frozen=True, config=FORBID)
class CurveKeys:
    """The composed configuration."""

    hardware: dict[str, Any]
    curve: dict[str, Any]
    output: dict[str, Any]
    models: dict[str, Any]
    data: dict[str, Any] | None = None
    seed: Count = 0


def run(arguments: list[str]) -> int:
    """Compose the configuration, compute the curves, print them and write the requested files."""
    overrides, search = _overrides(arguments)
    keys = build(CurveKeys, composed("curve", overrides, search), "")
    output = build(Output, keys.output, "output")
    from fsmerge_cli.common.output_files import check_files, write_files
    from fsmerge_cli.reporting import curves, plots, tables, terminal
    from fsmerge_cli.runs.curve import curve, curve_request
    from fsmerge_cli.runs.curve_result import CurveOptions
    from fsmerge_cli.runs.inputs import config_inputs

    options = build(CurveOptions, keys.curve, "curve")
    sources = keys.models["sources"]
    requested = curve_request(sources, options, keys.data, keys.hardware, keys.seed)
    if output.plot:
        plots.check_plot(Path(output.plot), "output.plot=")
    given = {"file": output.file, "csv": output.csv, "plot": output.plot}
    inputs = [*requested.inputs(), *config_inputs([search] if search else [])]
    files = check_files({f"output.{name}=": path for name, path in given.items()}, inputs, output.overwrite)
    quiet = bool({"-q", "--quiet"} & {*arguments})
    with terminal.Reporter(terminal.console(stderr=True, quiet=quiet)) as progress:
        found = curve(
            sources,
            align=options.align,
            points=options.points,
            repair=options.repair,
            data=keys.data,
            hardware=keys.hardware,
            seed=keys.seed,
            progress=progress,
        )
    rows, content = found.rows(), json_text(found.content())
    names = [name for name, _ in found.sources]
    kind = Path(output.plot).suffix if output.plot else None
    writers: dict[str, Callable[[Path], None]] = {
        "output.file=": lambda path: _write(path, content),
        "output.csv=": lambda path: tables.write_csv(path, rows),
        "output.plot=": lambda path: curves.plot_curves(path, rows, names, kind),
    }
    write_files({key: (path, writers[key]) for key, path in files.items()}, output.overwrite)
    if "--json" in arguments:
        write_json(found.content())
        return 0
    console = terminal.console(quiet=quiet)
    for warning in warnings_in(found.notes):
        console.print(f"warning: {warning}", style="bold", soft_wrap=True)
    for table in curves.curve_tables(rows):
        console.print(table)
    for line in (*curves.barrier_lines(found.content()), *(f"note: {note}" for note in notes_in(found.notes))):
        console.print(line, soft_wrap=True)
    if files:
        written = [f"{key.removeprefix('output.').rstrip('=')}: {given}" for key, given in files.items()]
        console.print("   ".join(written), soft_wrap=True)
    return 0


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _overrides(arguments: list[str]) -> tuple[list[str], str | None]:
    """The overrides in Hydra's syntax, and the folder of --config-dir. Raises ConfigError."""
    if {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*arguments}:
        raise ConfigError("fsmerge curve computes one curve. Leave out --multirun and give every key one value.")
    rest, search = config_dir_of([argument for argument in arguments if argument not in FLAGS])
    if files := [argument for argument in rest if is_run_file(argument)]:
        raise ConfigError(
            f"fsmerge curve: {shown(files[0])} describes a merge. Give two checkpoints, or +models=NAME."
        )
    rest = expanded(rest, "curve")
    if options := [argument for argument in rest if argument.startswith("-")]:
        raise ConfigError(f"fsmerge curve: {unknown('option', options[0], (*FLAGS, '--images', '--config-dir'))}")
    if others := [argument for argument in rest if "=" not in argument and not argument.startswith("~")]:
        raise ConfigError(
            f"fsmerge curve: '{shown(others[0])}' is no file, no folder and no KEY=VALUE. See fsmerge curve "
            "--help."
        )
    if not any(argument.lstrip("+").startswith(("models=", "models.sources=")) for argument in rest):
        raise ConfigError(
            "fsmerge curve takes two sources, and none is given. Pass two checkpoints, or +models=NAME (fsmerge "
            "list models shows the names; +models=one_task_pair is an example)."
        )
    return [rewrite(argument) for argument in rest], search
