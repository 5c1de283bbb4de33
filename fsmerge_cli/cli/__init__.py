"""The door: `fsmerge COMMAND ...`. Commands are imported on use, so that help and lists stay quick."""

from __future__ import annotations

import os
import shlex
import sys
from importlib import import_module

from fsmerge_cli import __version__
from fsmerge_cli.common.distributed import is_main, outcome
from fsmerge_cli.common.errors import ConfigError, Interrupted, unknown

COMMANDS = {
    "merge": "merge trained networks into one and evaluate it",
    "finetune": "train a source from a timm model and a data set",
    "check": "say what a merge would be, before anything is read, trained or written",
    "evaluate": "measure a written model again, also one made elsewhere",
    "list": "show the methods, models, data and hardware there are",
    "compare": "finished runs in one table, with paired differences",
    "schema": "print the JSON schema of evaluation.json",
}

HELP = f"""fsmerge {__version__}: merge trained networks of one architecture, from different initialisations and
tasks, into one network of the original size.

usage: fsmerge COMMAND ...

commands:
{chr(10).join(f"  {name:<10}{line}" for name, line in COMMANDS.items())}

  fsmerge COMMAND --help   options and examples of one command
  fsmerge --version

examples:
  fsmerge list
  fsmerge check +models=digits_mlp_pair
  fsmerge merge +models=digits_mlp_pair
  fsmerge merge +models=digits_mlp_pair method=kd output.dir=outputs/by-distillation

exit codes: 0 done; 2 something in the input (the message says what); 1 the run itself failed; 130 interrupted.
FSMERGE_DEBUG=1 shows the traceback of every error; FSMERGE_CACHE=FOLDER moves embedded sources and features.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if argv is None else [*argv]
    try:
        return _dispatch(arguments)
    except SystemExit as error:  # Hydra's own argument parser has said what is wrong
        return error.code if isinstance(error.code, int) else 2
    except Interrupted as stop:
        again = [argument for argument in arguments if not argument.startswith("resume=")]
        command = shlex.join(["fsmerge", *again, "resume=true"])
        if is_main():
            sys.stderr.write(f"fsmerge: {stop}; what was done is saved. Continue with\n  {command}\n")
        return stop.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("fsmerge: interrupted\n")
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has gone
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
    command = import_module(f"fsmerge_cli.cli.{name}_command")  # `list` alone would hide the builtin
    if any(argument in ("-h", "--help") for argument in rest):
        sys.stdout.write(command.HELP)
        return 0
    code: int = command.run(rest)
    return code
