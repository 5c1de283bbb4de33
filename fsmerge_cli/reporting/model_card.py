"""The model card, merged/README.md: the results in Markdown, and how to load the model without this package."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fsmerge_cli.architectures import Family
from fsmerge_cli.common.notes import notes_in, warnings_in
from fsmerge_cli.common.shown import printable, shown
from fsmerge_cli.common.wording import Kind, worded
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.reporting import summary
from fsmerge_cli.reporting.front_matter import front_matter, hub_task
from fsmerge_cli.reporting.losses import losses
from fsmerge_cli.reporting.summary import Table

CARD = """{front}
# A merged {family}

One backbone of the size of one source, merged by `{method}` from {k} sources, with one linear {kinds} per task
({tasks}). Input: {input}.{rounding}

{verdict}
{warnings}
## Scores

{table}

## Use it without fsmerge
{classifier}
The backbone in `merged/`, and {part}:

{snippet}

{sections}

## Origin

{command}

| source | SHA-256 of its weights |
|---|---|
{sources}
| all images that the merge used | `{images}` |

Versions: {versions}. Device: {device}. Seed: {seed}.

<details><summary>All options of the run</summary>

{options}

</details>
"""

WRITTEN_BY_US = "<!-- Written by fsmerge; `fsmerge push` replaces only a card with this line. -->"

CLASSIFIER = """
`classifier/` is one model with the labels of all tasks:

{code}
"""
TASKS = """
`tasks/NAME/` is {what} for each task:

{code}
"""
ACCURACY = "Top-1 accuracy on test images in per cent, in brackets the 95 % interval (Wilson)"
CORRELATION = "Pearson's correlation with the labels of the test texts"
SCORES = """{measure}. `ensemble` runs every source and
is the reference of a merge. `plain average` averages the sources' weights.{joint} `-`: not applicable."""
JOINT = """ `joint` is joint accuracy (the task is
not given: the prediction is the best label over all tasks)."""

TITLES = {
    "Agreement with the sources": "The share of the images on which a model predicts the label that the source of "
    "the task predicts, right or wrong; without classifier heads, the share of the images whose nearest image by "
    "the source's features is among the ten nearest by the model's (few images: the mean cosine of the features).",
    "Metrics by task": "The merged model. {details} Feature error (relative to the variance), cosine and CKA "
    "compare the features that each head receives with those of the source.",
    "Training": "The loss is the squared error of the features, relative to the variance of the sources' "
    "features, plus the terms on the heads' predictions weighted by `method.logit_weight` and "
    "`method.outlier_exposure`.",
    "Similarity by layer": "Similarity of the merged model to each source on the source's images: linear CKA (1 "
    "if the features differ only by a rotation and a scale) / cosine / relative error, unit by unit.",
    "Predicted tasks": "Task of the joint prediction, in % of the images of each row (number of images).",
    "Confused labels": "The most frequent wrong predictions, and how often the source makes the same one.",
    "Cost": "",
    "Certificates": "The written files, read back and compared with independent computations.",
}

COUNTED = ("Agreement with the sources", "Metrics by task", "Predicted tasks")
"""Sections on counts of the test."""


def model_card(plan: Plan, heads: Mapping[str, Head], evaluation: Mapping[str, Any], options: str) -> str:
    """Markdown from the content of evaluation.json and the resolved options.

    It has the content of the report page without the images and the paths of the sources, since this folder is
    passed on to others.
    """
    provenance = evaluation["provenance"]
    kind = plan.family.kind
    task = hub_task(kind, bool(heads), str(plan.arch.pooling) if kind == "text" else "first")
    scores = summary.scores(evaluation)
    card = worded(CARD, kind).format(
        front=front_matter(evaluation, plan.family.library, task),
        classifier=_classifier(evaluation, task),
        family=plan.family.name,
        method=evaluation["method"],
        k=len(plan.tasks),
        kinds="head" if heads else "projector",
        tasks=", ".join(map(escaped, plan.tasks)),
        input=_input(plan),
        rounding=_rounding(evaluation["config"]),
        verdict=escaped(" ".join(summary.verdict(evaluation))),
        warnings="".join(f"\n**Warning:** {escaped(text)}\n" for text in warnings_in(evaluation["notes"])),
        table=f"{markdown(scores)}\n\n{_caption(evaluation)}" if scores else worded(NO_LABELS, kind),
        sections=_sections(evaluation, kind),
        part="the head of one task" if heads else "what gives the features of one source",
        snippet=fenced(_snippet(plan, heads), "python"),
        command=fenced(provenance["command"], "sh"),
        sources="\n".join(f"| {escaped(s['name'])} | `{s['sha256']}` |" for s in provenance["sources"]),
        images=provenance["images_sha256"],
        versions=escaped(summary.versions(evaluation)),
        device=provenance["device"],
        seed=provenance["seed"],
        options=fenced(options, "yaml"),
    )
    return printable(f"{card}\n{WRITTEN_BY_US}\n")


def _snippet(plan: Plan, heads: Mapping[str, Head]) -> str:
    """Python that uses the model: the head of one task, or without heads the features of a source."""
    if heads:
        return plan.family.snippet(plan.arch, head_lines(heads))
    name = plan.tasks[0]
    lines = [
        'projectors = load_file("projectors.safetensors")',
        f"head = lambda z: z @ projectors[{quoted(f'{name}.weight')}].T  # the features of {shown(name)}",
    ]
    found = plan.family.snippet(plan.arch, "\n".join(lines))
    return found.replace('heads = load_file("heads.safetensors")\n', "").replace(
        "logits = head(", "features = head("
    )


def _caption(evaluation: Mapping[str, Any]) -> str:
    """What the table of scores holds."""
    numbers, classes = summary.has_numbers(evaluation), summary.has_accuracies(evaluation)
    measure = f"{ACCURACY}; of tasks of numbers {CORRELATION}" if numbers and classes else ACCURACY
    text = SCORES.format(
        measure=measure if classes else CORRELATION, joint=JOINT if summary.has_joint(evaluation) else ""
    )
    return summary.counted_word(evaluation, text)


NO_LABELS = "There were no labelled test images."


def _input(plan: Plan) -> str:
    if plan.family.kind == "text":
        return f"texts of up to {plan.arch.longest} tokens, by the tokenizer of this folder"
    return pixels_read(plan.family, plan.arch)


def pixels_read(family: Family, arch: Any) -> str:
    """What a model of images reads, with the mean and std of config.json where they are not 0 and 1."""
    stated, size = family.pixels(arch), " x ".join(map(str, arch.input_size))
    mean, std = stated["mean"], stated["std"]
    if set(mean) == {0.0} and set(std) == {1.0}:
        return f"pixels in 0..1, {size}, without further normalisation"
    values = [[round(own, 4) for own in one] for one in (mean, std)]
    return f"pixels in 0..1, {size}, minus the mean {values[0]}, divided by the std {values[1]}"


def _classifier(evaluation: Mapping[str, Any], task: str) -> str:
    """How to use classifier/ or tasks/; empty where there are none. task: see `hub_task`."""
    if "tasks" in evaluation["certificates"]:
        folder = quoted(f"tasks/{shown(evaluation['tasks'][0])}")
        if task == "feature-extraction":
            code = f"""from sentence_transformers import SentenceTransformer

print(SentenceTransformer({folder}).encode("a text"))"""
            return TASKS.format(what="an embedding model of sentence-transformers", code=fenced(code, "python"))
        code = f"""from transformers import pipeline

print(pipeline({quoted(task)}, model={folder})("a text"))"""
        return TASKS.format(what="a classifier of transformers", code=fenced(code, "python"))
    if "classifier" not in evaluation["certificates"]:
        return ""
    code = """from transformers import pipeline

print(pipeline("image-classification", model="classifier")("photo.jpg"))
# or: timm.create_model("local-dir:classifier", pretrained=True)"""
    return CLASSIFIER.format(code=fenced(code, "python"))


def _rounding(options: Mapping[str, Any]) -> str:
    dtype = (options.get("output") or {}).get("dtype", "float32")
    if dtype == "float32":
        return ""
    return f"\nThe weights are stored in `{dtype}`; the scores are those of the rounded model, computed in fp32."


def _sections(evaluation: Mapping[str, Any], kind: Kind) -> str:
    """Notes, then every table that is not empty, in the order of TITLES."""
    protocols = {summary.PROTOCOLS[p]: summary.confusion(evaluation, "merged", p) for p in ("softmax", "logits")}
    wrong = {escaped(name): summary.mistakes(evaluation, name) for name in evaluation["predictions"]}
    tables: dict[str, dict[str, Table | None]] = {
        "Agreement with the sources": {"": summary.agreements(evaluation)},
        "Metrics by task": {"": summary.details(evaluation)},
        "Training": {"": losses(evaluation)},
        "Similarity by layer": {"": summary.similarity(evaluation)},
        "Predicted tasks": protocols,
        "Confused labels": {name: table for name, table in wrong.items() if table.rows},
        "Cost": {"": summary.cost(evaluation)},
        "Certificates": {"": summary.certificates(evaluation)},
    }
    parts = []
    if notes := notes_in(evaluation["notes"]):
        parts.append("## Notes\n\n" + "\n".join(f"- {escaped(note)}" for note in notes))
    for title, description in TITLES.items():
        own = {name: table for name, table in tables[title].items() if table}
        if own:
            text = description.replace("{details}", summary.details_in_words(evaluation))
            word = evaluation.get("counted") or kind if title in COUNTED else kind
            parts += [f"## {title}", *([worded(text, word)] if text else [])]
            parts += [
                f"**{name}**\n\n{markdown(table, kind)}" if name else markdown(table, kind)
                for name, table in own.items()
            ]
    return "\n\n".join(parts)


def markdown(table: Table, kind: Kind = "image") -> str:
    """A table in Markdown; cells are escaped."""
    rule = ["---" if i < table.text_columns else "--:" for i in range(len(table.columns))]
    titles = [escaped(worded(column, kind)) for column in table.columns]
    lines = [titles, rule, *(list(map(escaped, row)) for row in table.rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def head_lines(heads: Mapping[str, Head]) -> str:
    """Python code that builds `head` of the first task from the tensors `heads`."""
    if not heads:
        return "head = torch.nn.Identity()  # the sources have no classifier heads: the output is the features"
    name, head = next(iter(heads.items()))
    classes, width = head.weight.shape
    bias = f', "bias": heads[{quoted(f"{name}.bias")}]' if head.bias is not None else ""
    no_bias = "" if head.bias is not None else ", bias=False"
    lines = [
        f"head = torch.nn.Linear({width}, {classes}{no_bias})  # the task {shown(name)}",
        f'head.load_state_dict({{"weight": heads[{quoted(f"{name}.weight")}]{bias}}})',
    ]
    if head.projector is not None:  # a head that normalises its input cannot absorb its projector
        lines += [
            f"projector = torch.nn.Linear({head.projector.shape[1]}, {width}, bias=False)  # U_out",
            f'projector.load_state_dict({{"weight": heads[{quoted(f"{name}.projector")}]}})',
            *_normalised(head, width),
        ]
    return "\n".join(lines)


def _normalised(head: Head, width: int) -> list[str]:
    """The last lines of a head that normalises the projected features."""
    if head.layer_norm is not None:
        return [
            "classifier, layer_norm = head, torch.nn.functional.layer_norm",
            f"head = lambda z: classifier(layer_norm(projector(z), ({width},), eps={head.layer_norm!r}))",
        ]
    return [
        "classifier, normalize = head, torch.nn.functional.normalize",
        "head = lambda z: classifier(normalize(projector(z), dim=-1))",
    ]


def quoted(text: str) -> str:
    """`text` as a Python string literal, so that a task's name cannot end it."""
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    r"""`text` escaped for Markdown: no markup, formula, link (also of a bare address), table cell or new line.

    >>> escaped("a|b<script>")
    'a\\|b\\<script\\>'
    """
    plain = printable(text.replace("\n", " "))
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$@]|:(?=//)|(?<=[wW])\.)", r"\\\1", plain)


def fenced(text: str, language: str = "") -> str:
    """`text` as a code block whose fence is longer than any inside it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
