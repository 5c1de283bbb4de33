"""The model card, merged/README.md: scores, how to load the model without this package, where it came from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fsmerge_cli.errors import printable
from fsmerge_cli.plan import Plan
from fsmerge_cli.sources import Head

CARD = """# A merged {family}

One backbone of the size of one source, merged by `{method}` from {k} sources, with one linear head per task
({tasks}). Images are read as pixels in 0..1, {input}; no further normalisation.

## Scores

{table}

`joint` is the share of right answers among the labels of all tasks (softmax per head). `-`: not applicable.

## Load it without fsmerge

{snippet}

## Where it came from

{command}

| source | SHA-256 of its weights |
|---|---|
{sources}

Versions: {versions}. Device: {device}.

{options}
"""


def model_card(plan: Plan, heads: Mapping[str, Head], evaluation: Mapping[str, Any], options: str) -> str:
    """Markdown from the content of evaluation.json and the resolved options."""
    provenance = evaluation["provenance"]
    channels, height, width = plan.arch.input_size
    return CARD.format(
        family=plan.family.name,
        method=evaluation["method"],
        k=len(plan.tasks),
        tasks=", ".join(map(escaped, plan.tasks)),
        input=f"{channels} x {height} x {width}",
        table=score_table(evaluation),
        snippet=fenced(plan.family.snippet(plan.arch, head_lines(heads)), "python"),
        command=fenced(printable(provenance["command"]), "sh"),
        sources="\n".join(f"| {escaped(s['name'])} | `{s['sha256']}` |" for s in provenance["sources"]),
        versions=", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        device=provenance["device"],
        options=fenced(options, "yaml"),
    )


def head_lines(heads: Mapping[str, Head]) -> str:
    """Python that makes `head` of the first task from the tensors `heads`."""
    if not heads:
        return "head = torch.nn.Identity()  # the sources had no heads: features come out"
    name, head = next(iter(heads.items()))
    classes, width = head.weight.shape
    bias = f', "bias": heads[{quoted(f"{name}.bias")}]' if head.bias is not None else ""
    no_bias = "" if head.bias is not None else ", bias=False"
    lines = [
        f"head = torch.nn.Linear({width}, {classes}{no_bias})  # the task {name}",
        f'head.load_state_dict({{"weight": heads[{quoted(f"{name}.weight")}]{bias}}})',
    ]
    if head.readout is not None:  # a head that scales its input to unit length keeps its unmerge map
        lines += [
            f"readout = torch.nn.Linear({head.readout.shape[1]}, {width}, bias=False)  # U_out, not foldable here",
            f'readout.load_state_dict({{"weight": heads[{quoted(f"{name}.readout")}]}})',
            "classifier, normalize = head, torch.nn.functional.normalize",
            "head = lambda z: classifier(normalize(readout(z), dim=-1))",
        ]
    return "\n".join(lines)


def quoted(text: str) -> str:
    """`text` as Python source: a task's name cannot end the string that it stands in."""
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    r"""`text` as itself in Markdown: no markup, link, table cell or line of its own.

    >>> escaped("a|b<script>")
    'a\\|b\\<script\\>'
    """
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", printable(text).replace("\n", " "))


def fenced(text: str, language: str = "") -> str:
    """`text` as a block of code whose fence is longer than any in it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def score_table(evaluation: Mapping[str, Any]) -> str:
    """The rows of evaluation.json as a Markdown table, in per cent."""
    tasks = evaluation["tasks"]
    lines = [
        "| model | " + " | ".join([*map(escaped, tasks), "mean", "joint"]) + " |",
        "|---" * (len(tasks) + 3) + "|",
    ]
    for name, row in evaluation["rows"].items():
        cells = [row["tasks"].get(task, {}).get("top1") for task in tasks]
        cells += [row["mean_top1"], row["joint_top1"].get("softmax")]
        lines.append(
            f"| {escaped(name)} | " + " | ".join("-" if c is None else f"{100 * c:.1f}" for c in cells) + " |"
        )
    return "\n".join(lines)
