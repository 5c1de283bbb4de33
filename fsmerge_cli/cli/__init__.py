"""The command line: `fsmerge COMMAND ...`. Commands are imported on use, so that help and lists are fast."""

from __future__ import annotations

import io
import os
import shlex
import sys
from importlib import import_module

from fsmerge_cli import __version__
from fsmerge_cli.common.distributed import is_main, outcome
from fsmerge_cli.common.errors import ConfigError, Interrupted, unknown
from fsmerge_cli.common.shown import printable, shown

COMMANDS = {
    "merge": "merge trained networks into one and evaluate it",
    "finetune": "train a source model from a timm model and a data set",
    "check": "preview a merge: compatibility, applicable methods, memory and time",
    "evaluate": "evaluate a merged model or a third-party checkpoint",
    "list": "list the available methods, models, data sets and hardware settings",
    "compare": "compare finished runs in one table, with paired differences",
    "schema": "print the JSON schema of evaluation.json",
}

HELP = f"""fsmerge {__version__}: merge trained networks of the same architecture, with different
initialisations and tasks, into one network of the original size.

usage: fsmerge COMMAND ...

commands:
{chr(10).join(f"  {name:<10}{line}" for name, line in COMMANDS.items())}

  fsmerge COMMAND --help   options and examples of a command
  fsmerge --version        the version

examples:
  fsmerge list
  fsmerge check +models=digits_mlp_pair
  fsmerge merge +models=digits_mlp_pair
  fsmerge merge +models=digits_mlp_pair method=kd output.dir=outputs/by-distillation

exit codes:
  0 success; 1 the run failed, or its result fails --strict or --fail-under;
  2 invalid input (the message states the cause); 130 interrupted

environment variables:
  FSMERGE_DEBUG=1        show the traceback of every error
  FSMERGE_CACHE=FOLDER   folder of the trained example models and of cached features
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if argv is None else [*argv]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding shows escapes, not an error
            stream.reconfigure(errors="backslashreplace")
    try:
        return _dispatch(arguments)
    except SystemExit as error:  # Hydra's argument parser has printed the error
        return error.code if isinstance(error.code, int) else 2
    except Interrupted as stop:
        kept = [argument for argument in arguments if not argument.startswith("resume=")]
        command = shlex.join(["fsmerge", *kept, "resume=true"])
        if is_main():
            text = f"fsmerge: {stop}; the training state is saved. Continue with\n  {shown(command)}\n"
            sys.stderr.write(printable(text))
        return stop.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("fsmerge: interrupted\n")
        return 130
    except BrokenPipeError:  # the reader of the output (head, less) has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    text, code = outcome(error)
    sys.stderr.write(text)
    return code


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
    command = import_module(f"fsmerge_cli.cli.{name}_command")  # a module named `list` would hide the builtin
    if any(argument in ("-h", "--help") for argument in rest):
        sys.stdout.write(command.HELP)
        return 0
    code: int = command.run(rest)
    return code
