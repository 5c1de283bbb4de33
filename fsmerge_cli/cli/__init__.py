"""The command line: `fsmerge COMMAND ...`. Commands are imported on use, so that help and lists are fast."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from importlib import import_module

from fsmerge_cli import __version__
from fsmerge_cli.cli import plugin_presets
from fsmerge_cli.common import streams
from fsmerge_cli.common.distributed import is_main, outcome
from fsmerge_cli.common.errors import ConfigError, FsmergeError, Interrupted, Stopped, reason, stop_behind, unknown
from fsmerge_cli.common.shown import printable, remember_typed, shown
from fsmerge_cli.training.interrupts import stop_on_signals

COMMANDS = {
    "merge": "merge trained networks into one and evaluate it",
    "init": "write the commented YAML of a merge, for fsmerge merge FILE",
    "finetune": "train a source model from a timm model and a data set",
    "check": "preview a merge: compatibility, applicable methods, memory and time",
    "evaluate": "evaluate a merged model or a third-party checkpoint",
    "predict": "predict the labels of images or texts with a merged model",
    "export": "write a merged model as ONNX or as a program of torch.export",
    "push": "upload a finished run to the Hugging Face hub",
    "list": "list the available methods, models, data sets and hardware settings",
    "curve": "measure loss and accuracy along the line between two sources",
    "compare": "compare finished runs in one table, with paired differences",
    "completion": "print a script that lets bash, zsh or fish complete commands and keys",
    "schema": "print the JSON schema of evaluation.json",
}

HELP = f"""fsmerge {__version__}: merge trained networks of the same architecture, with different
initialisations and tasks, into one network of the original size.

usage: fsmerge COMMAND ...

commands:
{chr(10).join(f"  {name:<12}{line}" for name, line in COMMANDS.items())}

  fsmerge COMMAND --help   options and examples of a command
  fsmerge --version        the version

examples:
  fsmerge list
  fsmerge check pets.safetensors cars.safetensors --images photos/
  fsmerge merge pets.safetensors cars.safetensors --images photos/ -o out
  fsmerge check +models=digits_mlp_pair
  fsmerge merge +models=digits_mlp_pair
  fsmerge merge +models=digits_mlp_pair method=kd output.dir=outputs/by-distillation

exit codes:
  0 success; 1 the run failed, or its result fails --strict or --fail-under;
  2 invalid input (the message states the cause);
  130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (a closed terminal)

environment variables:
  FSMERGE_DEBUG=1        show the traceback of every error
  FSMERGE_CACHE=FOLDER   folder of the trained example models and of cached features
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if argv is None else [*argv]
    streams.prepare()
    remember_typed(arguments)
    with stop_on_signals(until_exit=argv is None) as ignore_signals:
        try:
            return _run(arguments, ignore_signals)
        except KeyboardInterrupt as stop:
            ignore_signals()
            return _stopped(stop, arguments)


def _run(arguments: list[str], ignore_signals: Callable[[], None]) -> int:
    try:
        try:
            code = _dispatch(arguments)
            sys.stdout.flush()  # here, where an error of it can still be reported
            return code
        finally:
            ignore_signals()  # the rest takes no time
    except SystemExit as error:  # of Hydra's argument parser, which has printed the error; or of a callback
        if isinstance(error.__cause__, FsmergeError):
            return _fail(error.__cause__)
        return error.code if isinstance(error.code, int) else 2
    except Exception as error:
        if (stop := stop_behind(error)) is not None:
            raise stop from None
        if isinstance(error, BrokenPipeError):  # the reader of the output (head, less) has exited
            streams.discard(sys.stdout)
            return 0
        return _fail(error)


def _stopped(stop: KeyboardInterrupt, arguments: list[str]) -> int:
    """Print why the command stopped and how to go on; the exit code."""
    kept = [argument for argument in arguments if not argument.lstrip("+").startswith("resume=")]
    command = shlex.join(["fsmerge", *kept, "resume=true"])
    known = stop if isinstance(stop, Stopped) else Stopped()
    if isinstance(stop, Interrupted) or {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*arguments}:
        text = f"fsmerge: {known}. Continue with\n  {shown(command)}\n"
    elif known.finished:
        text = f"fsmerge: {known}; the run had finished: {shown(known.finished)}\n"
    else:
        text = f"fsmerge: {known}. Run the same command again.\n"
    if is_main():
        streams.complain(printable(text))
    return known.exit_code


def _fail(error: Exception) -> int:
    text, code = outcome(error)
    streams.complain(text)
    return code


def _require_working_folder() -> None:
    """Raise ConfigError where it was removed: libraries end the process without a message that helps."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"the current folder cannot be used ({reason(error)}). Change into another folder."
        ) from None


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        sys.stdout.write(f"fsmerge {__version__}\n")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise ConfigError(unknown("command", name, COMMANDS) + " See fsmerge --help.")
    _require_working_folder()
    command = import_module(f"fsmerge_cli.cli.{name}_command")  # a module named `list` would hide the builtin
    if any(argument in ("-h", "--help") for argument in rest):
        sys.stdout.write(command.HELP + plugin_presets.help_lines(command.HELP))
        return 0
    code: int = command.run(rest)
    return code
