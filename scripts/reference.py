"""Write docs/configuration.md: every key with its type, default and meaning, from the dataclasses and the YAML.

    python scripts/reference.py           # or: make reference

tests/test_docs.py fails where the page is not what this would write.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from fsmerge_cli.cli import evaluate_command, finetune_command
from fsmerge_cli.cli.launch import Checkpoint, Evaluation, Output
from fsmerge_cli.common import presets
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.data import DATASETS
from fsmerge_cli.methods import METHODS
from fsmerge_cli.models.source_spec import Recipe, SourceSpec
from fsmerge_cli.runs.finetune_request import Start
from fsmerge_cli.runs.merged import Reading
from fsmerge_cli.training.classifier import Tuning

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/configuration.md"

OPENING = """# Configuration

<!-- Written by scripts/reference.py (make reference) from the dataclasses and configs/; do not edit. -->

Every key of every command: what it takes, its default, what it means. On the command line a key is `KEY=VALUE`; a
group's file is chosen with `GROUP=NAME` (`fsmerge list` shows the names), and a folder of your own with the same
groups is added with `--config-dir FOLDER`. From Python the same keys are the mappings that `merge`, `evaluate` and
`finetune` take. A key that is unknown or out of range is refused with the nearest name and all that would do.
"""


def page() -> str:
    """The whole page."""
    merge = comments("merge.yaml")
    tune, again = comments("finetune.yaml"), comments("evaluate.yaml")
    top = {key: ("", value) for key, value in values("merge.yaml").items() if key in ("seed", "resume")}
    parts = [
        OPENING,
        "## `fsmerge merge` and `fsmerge check`\n",
        plain(top, {"seed": "whole number from 0", "resume": "true, false"}, merge),
        section("`checkpoint`", Checkpoint, "checkpoint", merge, level=3),
        section("`output`", Output, "output", merge, level=3),
        section("`evaluation`", Evaluation, "evaluation", merge, level=3),
        "## `models`\n",
        "The entries of `models.sources`, one per trained model ([what can be merged](sources.md)).\n",
        shipped("models"),
        section("An entry", SourceSpec, "models.sources.N", {}, level=3, skip=("module",)),
        section("`recipe` of an entry", Recipe, "models.sources.N.recipe", {}, level=3),
        "## `data`\n",
        *(group("data", name, cls) for name, cls in sorted(DATASETS.items())),
        "## `method`\n",
        *(group("method", name, cls) for name, cls in sorted(METHODS.items())),
        section("`hardware`", Hardware, "hardware", comments("hardware/auto.yaml"), prefix=""),
        shipped("hardware"),
        "## Sweeps (`--multirun`)\n",
        shipped("launcher"),
        shipped("sweep"),
        "## `fsmerge finetune`\n\n`seed`, `resume` and `checkpoint` as above; `data` and `hardware` as above, but "
        "`data.images_per_task` is `all` and `data.augment` is drawn anew at every step.\n",
        section("`model`", Start, "model", tune, level=3),
        section("`training`", Tuning, "training", tune, level=3),
        section("`output`", finetune_command.Output, "output", tune, level=3),
        "## `fsmerge evaluate`\n\n`data` and `hardware` as above; `seed` and `tasks` may be null.\n",
        section("`model`", Reading, "model", again, level=3),
        section("`output`", evaluate_command.Output, "output", again, level=3),
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def group(kind: str, name: str, cls: type[Any]) -> str:
    return section(f"`{kind}={name}`", cls, kind, comments(f"{kind}/{name}.yaml"), level=3, prefix="", name=name)


def section(
    title: str,
    cls: type[Any],
    key: str,
    said: Mapping[str, str],
    *,
    level: int = 2,
    prefix: str | None = None,
    name: str | None = None,
    skip: Sequence[str] = (),
) -> str:
    """A dataclass: its line and a row per field, explained by the YAML's comment or else by the docstring."""
    inside = f"{key}." if prefix is None else prefix
    schema = TypeAdapter(cls).json_schema()
    start, explained = told(cls)
    rows = []
    for field in fields(cls):
        if field.name in skip or (name is not None and field.name == "name"):
            continue
        text = said.get(f"{inside}{field.name}") or explained.get(field.name, "")
        default = "(required)" if field.default is MISSING else code(field.default)
        shape = kind(schema["properties"][field.name], schema)
        rows.append(f"| `{key}.{field.name}` | {shape} | {default} | {escaped(text)} |")
    summary = presets.summary(key, name) if name else ""
    lines = [f"{'#' * level} {title}", ""]
    lines += [f"{escaped(summary)}. {escaped(start)}", ""] if summary else []
    return "\n".join([*lines, "| key | takes | default | |", "|---|---|---|---|", *rows, ""])


def told(cls: type[Any]) -> tuple[str, dict[str, str]]:
    """How a dataclass's own docstring begins, and field -> what it, or a class above, says of the field."""
    names = [field.name for field in fields(cls)]
    one = rf"(?:{'|'.join(names)})"
    found: dict[str, str] = {}
    start = ""
    for own in cls.__mro__:
        if not own.__module__.startswith("fsmerge_cli") or not vars(own).get("__doc__"):
            continue
        text = " ".join(inspect.cleandoc(own.__doc__ or "").split())
        marks = list(
            re.finditer(rf"(?:^|[.;] )({one}(?:,[ ,]*{one})*)[ ,]*: ", re.sub(r" \([^)]*\)(?=[,:])", _blank, text))
        )
        if own is cls:
            start = text[: marks[0].start() + 1] if marks else text
        for mark, after in zip(marks, [*(m.start() for m in marks[1:]), len(text)]):
            for name in re.findall(one, mark[1]):
                found.setdefault(name, text[mark.end() : after].rstrip(". "))
        for name, words in re.findall(rf"\b({one}) \(([^()]*)\)", text):
            found.setdefault(name, words)
    return start, found


def _blank(found: re.Match[str]) -> str:
    """As many characters that are neither names nor marks."""
    return "," + " " * (len(found[0]) - 1)


def shipped(kind: str) -> str:
    """The names of a group with their lines."""
    form = f"+{kind}=" if kind == "models" else f"{kind}="
    rows = [f"| `{form}{name}` | {escaped(presets.summary(kind, name))} |" for name in presets.names(kind)]
    return "\n".join(["| shipped | |", "|---|---|", *rows, ""])


def plain(keys: Mapping[str, tuple[str, Any]], takes: Mapping[str, str], said: Mapping[str, str]) -> str:
    rows = [f"| `{k}` | {takes[k]} | {code(v)} | {escaped(said.get(k, ''))} |" for k, (_, v) in keys.items()]
    return "\n".join(["| key | takes | default | |", "|---|---|---|---|", *rows, ""])


def kind(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        return "keys and values (see below)"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(part, whole) for part in schema["anyOf"]))
    if "const" in schema:
        return code(schema["const"])
    if "enum" in schema:
        return ", ".join(code(value) for value in schema["enum"])
    shape = schema.get("type")
    if shape in ("integer", "number"):
        limits = {
            "minimum": "from {}",
            "exclusiveMinimum": "above {}",
            "maximum": "to {}",
            "exclusiveMaximum": "below {}",
        }
        said = [form.format(f"{schema[key]:g}") for key, form in limits.items() if key in schema]
        return " ".join(["whole number" if shape == "integer" else "number", *said])
    if shape == "array":
        inner = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        count = schema.get("minItems")
        return f"list of {f'{count} ' if count and count == schema.get('maxItems') else ''}({kind(inner, whole)})"
    words = {"boolean": "true, false", "string": "text", "null": "null", "object": "keys and values"}
    return words.get(str(shape), "anything")


def comments(file: str) -> dict[str, str]:
    """Dotted key -> the comment on its line of a YAML file."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in (ROOT / "configs" / file).read_text().splitlines():
        match = re.match(r"( *)([\w]+):[^#]*(?:#\s*(.*))?$", line)
        if not match:
            continue
        indent, key, text = len(match[1]), match[2], match[3]
        path = [(i, k) for i, k in path if i < indent] + [(indent, key)]
        if text:
            found[".".join(k for _, k in path)] = text
    return found


def values(file: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "configs" / file).read_text())
    return found


def code(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(str, value))}]`"
    words = {None: "null", True: "true", False: "false"}
    return f"`{words[value] if value is None or isinstance(value, bool) else value}`"


def escaped(text: str) -> str:
    """Text as itself in a table's cell, code spans kept."""
    return re.sub(r"(?<!\\)([|<>])", r"\\\1", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}: {len(page().splitlines())} lines\n")
