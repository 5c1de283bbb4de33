"""`fsmerge export`: a written model as one file for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from fsmerge_cli.cli.model_keys import HELP as MODEL_KEYS
from fsmerge_cli.cli.model_keys import model_inputs, model_keys
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.shown import shown

HELP = """usage: fsmerge export RUN --format onnx|torch [--output FILE] [--task NAME] [--overwrite] [--quiet]

Writes a merged model as one file that runs without fsmerge and timm: pixels in 0..1
[n, channels, height, width] -> logits [n, labels], of all tasks as `fsmerge predict` compares
them, or of one task. Of a text encoder: input_ids, attention_mask (and token_type_ids, where it has
types), each [n, length] of integers, by the tokenizer in merged/. The labels are in its metadata
(`labels`, of torch the file labels.json). The file is read back and compared with the model
(ONNX: where onnxruntime is installed).

  --format onnx    ONNX (needs pip install onnx onnxscript)
  --format torch   a program of torch.export, for torch.export.load
  --output FILE    default: the name of RUN, in the current folder, as .onnx or .pt2
  --task NAME      only the labels of this task
  --overwrite      replace an existing FILE
  -q, --quiet      print only errors
@MODEL_KEYS@
examples:
  fsmerge export outputs/demo --format onnx
  fsmerge export outputs/demo --format torch --task low --output low.pt2
""".replace("@MODEL_KEYS@", MODEL_KEYS)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"fsmerge export: {shown(message)}. See fsmerge export --help.")


def run(arguments: list[str]) -> int:
    """Write the file, compare it with the model, and print where it is."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("model", metavar="RUN")
    parser.add_argument("--format", choices=("onnx", "torch"), required=True)
    parser.add_argument("--output", type=Path, metavar="FILE")
    parser.add_argument("--task")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("-q", "--quiet", action="store_true")
    rest, reading = model_keys(arguments, "export")
    options = parser.parse_intermixed_args(rest)
    from rich.text import Text

    from fsmerge_cli.common.output_files import check_files, write_files
    from fsmerge_cli.reporting import terminal
    from fsmerge_cli.runs import export
    from fsmerge_cli.runs.merged import load_merged

    export.require_packages(options.format)
    run_folder = Path(options.model).absolute()
    name = run_folder.parent.name if run_folder.name == "merged" else run_folder.name
    path = options.output or Path(name + export.SUFFIXES[options.format])
    inputs = model_inputs(options.model, reading)
    files = check_files({"--output ": path}, inputs, options.overwrite, "--overwrite")
    model = load_merged(options.model, reading).with_heads()
    terminal.print_notes(terminal.console(stderr=True, quiet=options.quiet), model.notes)
    exported = export.prepared(model, options.task)
    errors: list[float | None] = []
    writers = {"--output ": lambda place: errors.append(export.write(exported, options.format, place))}
    write_files({key: (place, writers[key]) for key, place in files.items()}, options.overwrite)
    if not options.quiet:
        compared = "not compared: onnxruntime is not installed" if errors[0] is None else f"error {errors[0]:.1g}"
        text = f"{path}: {len(exported.labels)} labels, compared with the model: {compared}"
        terminal.console().print(Text(shown(text)), soft_wrap=True)
    return 0
