"""`fsmerge push`: a finished run as a repository of the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.separation import expanded
from fsmerge_cli.common.shown import shown

HELP = """usage: fsmerge push RUN USER/NAME [--private] [--dry-run] [--quiet]

Uploads a finished run of `fsmerge merge` to the Hugging Face hub, in one commit: the model card,
the whole model in the root (timm: hf-hub:USER/NAME; transformers: pipeline(model="USER/NAME")),
classifier/, merged/, config.yaml, evaluation.json and report.html. It needs a token
(hf auth login). report.html contains test images with their predictions, which become public
with the repository. A repository with files and without a card of fsmerge is not touched.

  --private     create a private repository; an existing public one is refused
  --dry-run     list the files and their sizes; nothing is sent
  -q, --quiet   print only errors

examples:
  fsmerge push outputs/demo jane/digits --dry-run
  fsmerge push outputs/demo jane/digits --private
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"fsmerge push: {shown(message)}. See fsmerge push --help.")


def run(arguments: list[str]) -> int:
    """Upload the run, or list what would be uploaded."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("name", metavar="USER/NAME")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("-q", "--quiet", action="store_true")
    options = parser.parse_args(arguments)
    from rich.text import Text

    from fsmerge_cli.reporting import terminal
    from fsmerge_cli.runs.push import REPORT, push, repository_files, require_name, shown_inputs, sizes

    console, folder = terminal.console(quiet=options.quiet), expanded(options.run)
    require_name(options.name)
    if options.dry_run:
        files = repository_files(folder)
        found = sizes(files)
        for path, size in found:
            console.print(Text(f"{size / 1e6:>10,.2f} MB  {shown(path)}"), soft_wrap=True)
        total = sum(size for _, size in found)
        text = f"{total / 1e6:>10,.2f} MB  {len(found)} files would be sent to {options.name}; nothing was sent"
        console.print(Text(text), soft_wrap=True)
        if what := shown_inputs(files):
            console.print(Text(f"{REPORT} contains test {what}. Look at it before they become public."))
        return 0
    console.print(Text(push(folder, options.name, private=options.private)), soft_wrap=True)
    return 0
