"""The model card, merged/README.md: the report in Markdown, and how to load the model without this package."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fsmerge_cli.common.errors import printable
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.reporting import summary
from fsmerge_cli.reporting.summary import Table

CARD = """# A merged {family}

One backbone of the size of one source, merged by `{method}` from {k} sources, with one linear head per task
({tasks}). Images are read as pixels in 0..1, {input}; no further normalisation.{rounding}

{verdict}

## Scores

{table}

Per cent of right answers on test images, in brackets the 95 % interval (Wilson). `ensemble` asks every source and
is what a merge is held against; `plain average` is that of the sources' weights. `joint` is the share of right
answers among the labels of all tasks. `-`: not applicable.

## Load it without fsmerge

{snippet}

{sections}

## Where it came from

{command}

| source | SHA-256 of its weights |
|---|---|
{sources}
| all images that the merge saw | `{images}` |

Versions: {versions}. Device: {device}. Seed: {seed}.

{options}
"""
TITLES = {
    "Task by task": "The merged model. Feature error (relative to the variance), cosine and CKA compare the "
    "features that it gives to each head with the source's own.",
    "Training": "The loss is the distance of the features to the sources', relative to their variance, and, where "
    "`method.logit_weight` and `method.outlier_exposure` say so, of the heads' answers.",
    "Layer by layer": "Likeness of the merged model to each source on the source's own images: linear CKA (1 "
    "where they differ by no more than a rotation) / cosine / relative error, unit by unit.",
    "Which task?": "Where the labels of all tasks compete: the label of which task wins, in % (images).",
    "Mistakes": "The labels that are confused most, and how often the source makes the same mistake.",
    "Cost": "",
    "Certificates": "The written files, read back and compared with independent computations.",
}


def model_card(plan: Plan, heads: Mapping[str, Head], evaluation: Mapping[str, Any], options: str) -> str:
    """Markdown from the content of evaluation.json and the resolved options.

    What the report page says, but for the images and the paths of the sources: this folder is handed on.
    """
    provenance = evaluation["provenance"]
    channels, height, width = plan.arch.input_size
    scores = summary.scores(evaluation)
    return CARD.format(
        family=plan.family.name,
        method=evaluation["method"],
        k=len(plan.tasks),
        tasks=", ".join(map(escaped, plan.tasks)),
        input=f"{channels} x {height} x {width}",
        rounding=_rounding(evaluation["config"]),
        verdict=" ".join(summary.verdict(evaluation)),
        table=markdown(scores) if scores else "There were no labelled test images.",
        sections=_sections(evaluation),
        snippet=fenced(plan.family.snippet(plan.arch, head_lines(heads)), "python"),
        command=fenced(printable(provenance["command"]), "sh"),
        sources="\n".join(f"| {escaped(s['name'])} | `{s['sha256']}` |" for s in provenance["sources"]),
        images=provenance["images_sha256"],
        versions=escaped(summary.versions(evaluation)),
        device=provenance["device"],
        seed=provenance["seed"],
        options=fenced(options, "yaml"),
    )


def _rounding(options: Mapping[str, Any]) -> str:
    dtype = (options.get("output") or {}).get("dtype", "float32")
    if dtype == "float32":
        return ""
    return f"\nNumbers are stored in `{dtype}`; the scores are those of the rounded model, computed in fp32."


def _sections(evaluation: Mapping[str, Any]) -> str:
    """Every table that there is, under its title and in the order of TITLES; notes first."""
    protocols = {summary.PROTOCOLS[p]: summary.confusion(evaluation, "merged", p) for p in ("softmax", "logits")}
    wrong = {escaped(name): summary.mistakes(evaluation, name) for name in evaluation["answers"]}
    tables: dict[str, dict[str, Table | None]] = {
        "Task by task": {"": summary.details(evaluation)},
        "Training": {"": summary.losses(evaluation)},
        "Layer by layer": {"": summary.similarity(evaluation)},
        "Which task?": protocols,
        "Mistakes": {name: table for name, table in wrong.items() if table.rows},
        "Cost": {"": summary.cost(evaluation)},
        "Certificates": {"": summary.certificates(evaluation)},
    }
    parts = []
    if evaluation["notes"]:
        parts.append("## Worth knowing\n\n" + "\n".join(f"- {escaped(note)}" for note in evaluation["notes"]))
    for title, words in TITLES.items():
        own = {name: table for name, table in tables[title].items() if table}
        if own:
            parts += [f"## {title}", *([words] if words else [])]
            parts += [
                f"**{name}**\n\n{markdown(table)}" if name else markdown(table) for name, table in own.items()
            ]
    return "\n\n".join(parts)


def markdown(table: Table) -> str:
    """A table in Markdown; cells are text."""
    rule = ["---" if i < table.words else "--:" for i in range(len(table.columns))]
    lines = [list(map(escaped, table.columns)), rule, *(list(map(escaped, row)) for row in table.rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


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
    if head.projector is not None:  # a head that scales its input to unit length keeps its unmerge map
        lines += [
            f"projector = torch.nn.Linear({head.projector.shape[1]}, {width}, bias=False)  # U_out, kept",
            f'projector.load_state_dict({{"weight": heads[{quoted(f"{name}.projector")}]}})',
            "classifier, normalize = head, torch.nn.functional.normalize",
            "head = lambda z: classifier(normalize(projector(z), dim=-1))",
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
