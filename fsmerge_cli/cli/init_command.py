"""`fsmerge init`: the commented YAML of a merge, from what `fsmerge merge` would be given."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fsmerge_cli.cli.composing import composed, config_dir_of
from fsmerge_cli.cli.merge_command import composed as in_hydra_s_syntax
from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError, unknown
from fsmerge_cli.common.output_files import check_files, write_files
from fsmerge_cli.common.separation import Input, expanded

HELP = """usage: fsmerge init MODEL [MODEL ...] [--images FOLDER] [GROUP=NAME ...] [KEY=VALUE ...] [-o FILE]

Writes the configuration of a merge as YAML, each key with its meaning, from the arguments of
`fsmerge merge`. `fsmerge merge FILE` and `fsmerge check FILE` take it, and KEY=VALUE behind it
changes a key. No model and no image is read.

  -o FILE              write to FILE, which must not exist (default: standard output)
  --config-dir FOLDER  your own folder with models/*.yaml, method/*.yaml, ... (trusted like code)

examples:
  fsmerge init +models=digits_mlp_pair method=kd
  fsmerge init pets.safetensors cars.safetensors --images photos/ output.dir=out -o mine.yaml
  fsmerge merge mine.yaml seed=1
"""

TOP = ("seed", "resume", "checkpoint", "evaluation", "output")
START = """# A merge. Run it:     fsmerge merge FILE          KEY=VALUE behind FILE changes a key
# Look at it before:  fsmerge check FILE
# Paths are relative to the folder in which the command runs.

models:
  # each has a name, and a checkpoint (file or folder) or arch (a timm name with a tag); where its files do not
  # state them: arch, head, labels ([...], a file, or data), mean, std, ... (docs/sources.md)
  sources:
"""


def run(arguments: list[str]) -> int:
    """Compose the configuration and write it."""
    rest, file = _file_of(arguments)
    rest, search = config_dir_of(rest)
    if options := [argument for argument in rest if re.match(r"-(?!-images\b)", argument)]:
        known = ("--images", "-o", "--config-dir")
        raise ConfigError(f"fsmerge init: {unknown('option', options[0].partition('=')[0], known)}")
    overrides = in_hydra_s_syntax(rest, "init", ("--images", "-o"))
    keys = composed("merge", overrides, search)
    text = START + "".join(f"{line}\n" for line in _lines(keys))
    if file is None:
        sys.stdout.write(text)
        return 0
    sources = keys["models"].get("sources") or []
    entries = [*sources, base if isinstance(base := keys["models"].get("base"), Mapping) else {"checkpoint": base}]
    paths = [own["checkpoint"] for own in entries if isinstance(own, Mapping) and own.get("checkpoint")]
    if expanded(file).exists():
        raise ConfigError(f"-o {file} exists, and fsmerge init replaces no file. Choose another one.")
    found = check_files({"-o ": file}, [Input("a source", path) for path in paths], False)
    write_files({"-o ": (found["-o "], lambda path: _write(path, text))}, False)
    return 0


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _file_of(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments without -o FILE, and the file."""
    rest: list[str] = []
    file: str | None = None
    given = iter(arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name in ("-o", "--output"):
            file = value if equals else next(given, "")
            if not file:
                raise ConfigError("fsmerge init: -o needs a path: -o FILE.")
        else:
            rest.append(argument)
    return rest, file


def _lines(keys: Mapping[str, Any]) -> Iterator[str]:
    for source in keys["models"].get("sources") or []:
        yield f"    - {_flow(source)}"
    if (base := keys["models"].get("base")) is not None:
        yield f"  base: {_flow(base)}   # the pretrained weights that all of them were fine-tuned from"
    for group in ("data", "method", "hardware"):
        values = keys.get(group)
        yield ""
        if not isinstance(values, Mapping):
            yield from (f"# {line}" for line in NO_DATA)
            yield f"{group}: null"
            continue
        name = str(values.get("name", "auto"))
        comments = presets.comments(group, name)
        yield f"# {presets.summary(group, name)}"
        yield f"{group}:"
        yield from _with_comments({f"  {key}": value for key, value in values.items()}, comments)
    yield ""
    own = presets.comments("", "merge")
    yield from _with_comments({key: keys[key] for key in ("seed", "resume")}, own)
    for key in ("checkpoint", "evaluation", "output"):
        yield f"{key}:"
        yield from _with_comments({f"  {name}": value for name, value in keys[key].items()}, own)


NO_DATA = (
    "Without images only method=average and slerp apply. Your own: data: {name: folder, root: photos/}, a folder",
    "of images for all tasks, or one folder per task, named after it.",
)


def _with_comments(values: Mapping[str, Any], comments: Mapping[str, str]) -> Iterator[str]:
    """`key: value`, each with its comment, below each other."""
    lines = {key: f"{key}: {_flow(value)}" for key, value in values.items()}
    width = min(30, max(map(len, lines.values()), default=0))
    for key, line in lines.items():
        comment = comments.get(key.strip(), "")
        yield f"{line:<{width}}  # {comment}" if comment else line


def _flow(value: Any) -> str:
    """A value of YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").strip()
