"""Write docs/configuration.md: every key with its type, default and meaning, from the dataclasses and the YAML.

    python scripts/reference.py           # or: make reference

tests/test_docs.py fails if the page is not up to date.
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

from fsmerge_cli.cli import curve_command, evaluate_command, finetune_command
from fsmerge_cli.cli.keys import Checkpoint, Evaluation, Output
from fsmerge_cli.common import presets
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.data import DATASETS
from fsmerge_cli.methods import METHODS
from fsmerge_cli.models.source_spec import Recipe, SourceSpec
from fsmerge_cli.runs.curve_result import CurveOptions
from fsmerge_cli.runs.finetune_request import FinetuneStart
from fsmerge_cli.runs.merged import Reading
from fsmerge_cli.training.finetuning_options import TrainingOptions

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/configuration.md"

OPENING = """# Configuration

<!-- Written by scripts/reference.py (make reference) from the dataclasses and configs/; do not edit. -->

Every key of every command, with its type, default and meaning. On the command line a key is set with `KEY=VALUE`.
`GROUP=NAME` selects a file of a group (`fsmerge list` shows the names), and `--config-dir FOLDER` adds a folder of
your own with the same groups. In Python, `merge`, `evaluate` and `finetune` take the same keys as mappings. An
unknown key or a value out of range is refused; the message shows the nearest name and all accepted ones.
"""


def page() -> str:
    """The whole page."""
    merge = comments("merge.yaml")
    tune, again, line = (comments(f"{name}.yaml") for name in ("finetune", "evaluate", "curve"))
    top = {key: ("", value) for key, value in values("merge.yaml").items() if key in ("seed", "resume")}
    parts = [
        OPENING,
        "## `fsmerge merge` and `fsmerge check`\n",
        plain(top, {"seed": "integer from 0", "resume": "true, false"}, merge),
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
        "## `fsmerge finetune`\n\n`seed`, `resume` and `checkpoint` as above; `data` and `hardware` as above, "
        "except that `data.images_per_task` is `all` and that `data.augment` is sampled at every step.\n",
        section("`model`", FinetuneStart, "model", tune, level=3),
        section("`training`", TrainingOptions, "training", tune, level=3),
        section("`output`", finetune_command.Output, "output", tune, level=3),
        "## `fsmerge evaluate`\n\n`data` and `hardware` as above; `seed` and `tasks` may be null.\n",
        section("`model`", Reading, "model", again, level=3),
        section("`output`", evaluate_command.Output, "output", again, level=3),
        "## `fsmerge curve`\n\n`models`, `data`, `hardware` and `seed` as in a merge.\n",
        section("`curve`", CurveOptions, "curve", line, level=3),
        section("`output`", curve_command.Output, "output", line, level=3),
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def group(kind: str, name: str, cls: type[Any]) -> str:
    return section(f"`{kind}={name}`", cls, kind, comments(f"{kind}/{name}.yaml"), level=3, prefix="", name=name)


def section(
    title: str,
    cls: type[Any],
    key: str,
    descriptions: Mapping[str, str],
    *,
    level: int = 2,
    prefix: str | None = None,
    name: str | None = None,
    skip: Sequence[str] = (),
) -> str:
    """A dataclass: its summary and one row per field, described by the YAML comment or else by the docstring."""
    inside = f"{key}." if prefix is None else prefix
    schema = TypeAdapter(cls).json_schema()
    start, documented = documentation(cls)
    rows = []
    for field in fields(cls):
        if field.name in skip or (name is not None and field.name == "name"):
            continue
        text = descriptions.get(f"{inside}{field.name}") or documented.get(field.name, "")
        default = "(required)" if field.default is MISSING else code(field.default)
        shape = kind(schema["properties"][field.name], schema)
        rows.append(f"| `{key}.{field.name}` | {shape} | {default} | {escaped(text)} |")
    summary = presets.summary(key, name) if name else ""
    lines = [f"{'#' * level} {title}", ""]
    lines += [f"{escaped(summary)}. {escaped(start)}", ""] if summary else []
    return "\n".join([*lines, "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def documentation(cls: type[Any]) -> tuple[str, dict[str, str]]:
    """The start of a dataclass's docstring, and field -> its description there or in a base class."""
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
    """A replacement of the same length without names and colons."""
    return "," + " " * (len(found[0]) - 1)


def shipped(kind: str) -> str:
    """The names of a group with their summaries."""
    form = f"+{kind}=" if kind == "models" else f"{kind}="
    rows = [f"| `{form}{name}` | {escaped(presets.summary(kind, name))} |" for name in presets.names(kind)]
    return "\n".join(["| included | |", "|---|---|", *rows, ""])


def plain(keys: Mapping[str, tuple[str, Any]], types: Mapping[str, str], descriptions: Mapping[str, str]) -> str:
    rows = [
        f"| `{k}` | {types[k]} | {code(v)} | {escaped(descriptions.get(k, ''))} |" for k, (_, v) in keys.items()
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def kind(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """The type of a JSON schema in words."""
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
        bounds = [form.format(f"{schema[key]:g}") for key, form in limits.items() if key in schema]
        return " ".join(["integer" if shape == "integer" else "number", *bounds])
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
    """Text escaped for a table cell."""
    return re.sub(r"(?<!\\)([|<>])", r"\\\1", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}: {len(page().splitlines())} lines\n")
