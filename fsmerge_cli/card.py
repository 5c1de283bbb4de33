"""The model card, merged/README.md: scores, how to load the model without this package, where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsmerge_cli.plan import Plan

CARD = """# A merged {family}

One backbone of the size of one source, merged by `{method}` from {k} sources, with one linear head per task
({tasks}). Images are read as pixels in 0..1, {input}; no further normalisation.

## Scores

{table}

`joint` is the share of right answers among the labels of all tasks (softmax per head). `-`: not applicable.

## Load it without fsmerge

```python
{snippet}
```

## Where it came from

Command: `{command}`

| source | SHA-256 of its weights |
|---|---|
{sources}

Versions: {versions}. Device: {device}.

```yaml
{options}```
"""


def model_card(plan: Plan, evaluation: Mapping[str, Any], options: str) -> str:
    """Markdown from the content of evaluation.json and the resolved options."""
    provenance = evaluation["provenance"]
    channels, height, width = plan.arch.input_size
    return CARD.format(
        family=plan.family.name,
        method=evaluation["method"],
        k=len(plan.tasks),
        tasks=", ".join(plan.tasks),
        input=f"{channels} x {height} x {width}",
        table=score_table(evaluation),
        snippet=plan.family.snippet(plan.arch, plan.tasks[0]),
        command=provenance["command"],
        sources="\n".join(f"| {s['name']} | `{s['sha256']}` |" for s in provenance["sources"]),
        versions=", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        device=provenance["device"],
        options=options,
    )


def score_table(evaluation: Mapping[str, Any]) -> str:
    """The rows of evaluation.json as a Markdown table, in per cent."""
    tasks = evaluation["tasks"]
    lines = ["| model | " + " | ".join([*tasks, "mean", "joint"]) + " |", "|---" * (len(tasks) + 3) + "|"]
    for name, row in evaluation["rows"].items():
        cells = [row["tasks"].get(task, {}).get("top1") for task in tasks]
        cells += [row["mean_top1"], row["joint_top1"].get("softmax")]
        lines.append(f"| {name} | " + " | ".join("-" if c is None else f"{100 * c:.1f}" for c in cells) + " |")
    return "\n".join(lines)
