"""Every method in one table: what it needs, and what it keeps on two standard groups, into docs/methods.md.

    python -m scripts.methods               # or: make methods; merges what is missing, resumable
    python -m scripts.methods --page-only   # the page from the registry and the existing rows

The groups: two ViTs that share a pretrained initialisation, and two of different initialisations. Every finished
run adds one line to docs/results/methods.jsonl; runs with a line are not repeated.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fsmerge_cli.cli import main as fsmerge
from fsmerge_cli.common import presets
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.base import Method, Trained
from scripts.benchmark.intervals import relative
from scripts.benchmark.run import row

ROOT = Path(__file__).resolve().parents[1]
PAGE, ROWS = ROOT / "docs/methods.md", ROOT / "docs/results/methods.jsonl"

GROUPS = {"shared_parent_pair": "common", "glyphs_vit_pair": "different"}
"""Models of the two groups -> what they have of their initialisation."""

IMAGES, SEED = "50", 0

FAILS = ("average", "slerp", "fisher")
"""Methods without a base that do not work across initialisations by themselves."""

OPENING = """# Methods

<!-- Written by scripts/methods.py (python -m scripts.methods --page-only); do not edit. -->

Every method, what it needs, and what it keeps. `base`: the pretrained weights that all sources share
(`models.base`). `widths`: whether sources of other widths, or a merged model of another width, are possible.
`across`: whether it is made for different initialisations. The last columns are per cent of the sources'
accuracy, with the seconds of the merge, for two vision transformers of 4 blocks and width 96 with a common
initialisation (`+models=shared_parent_pair`) and of different initialisations (`+models=glyphs_vit_pair`): 50
unlabelled images per task, one seed, one CPU thread, options as shipped, trainings with `method.budget=fast`.
The same methods on photographs: [results](results/index.md). How to choose: [here](choose-a-method.md).
"""

SHOWN = """## What the table shows

With a common initialisation the order of the literature is average, task arithmetic, TIES, AdaMerging. Here
average and AdaMerging are above task arithmetic and TIES with the coefficients of the papers, which were chosen
for eight tasks and larger networks. Task arithmetic passes the average with `method.coefficient=0.6` (76.9 % top-1
against 75.7); TIES did not with those tried (1.5: 74.4, 2: 68.0, 1.5 and `method.density=0.5`: 61.5). Of the
methods with a base TSV is the best. `expert_merging` holds its coefficients near their start, 0.1 as in the code
of its authors; with `method.start=0.5` it keeps 82.5. `concrete` keeps 73.1; with the step of the coefficients of
its authors' code (`method.inner_lr=1.0`) it ended at chance (8.8). Distillation, `fs_merge` and the closed form
need no base and no labels, and keep far more; across initialisations the closed form keeps 99.9, in a sixteenth of
the time of distillation, and `fs_merge`, with 125 steps from there, 100.1. With a common initialisation `kd`, with
four times as many steps, is the best by less than a point, which one seed does not separate.

Of the methods that align units and average them, `straight_through` keeps the most across initialisations (its
seconds are CPU time of one thread). `orthogonal_matching` keeps 59.4 across initialisations with
`method.repair=true`, and `activation_matching` 45.2; with a common initialisation it is as good as TSV, without
`models.base`. `ot_fusion` keeps 51.0 across initialisations with `method.regularization=0.08`, and 35.2 with
`method.cost=weights`, without images. `cca` is behind permutations there: activation functions act between its
maps and their inverses. `neuron_interpolation` keeps the most of all methods without a training but the closed
form, with both. The seconds of `concrete`, `expert_merging`, `fs_merge`, `kd_closed_form` and (common)
`neuron_interpolation` were taken beside other work.

On photographs (four vision transformers fine-tuned from one, [four_of_cifar10](results/natural.md), 50 images, one
seed) the published order holds: average 89.3 per cent of the sources, task arithmetic 89.6, TIES 89.8,
AdaMerging 91.2. The closed form keeps 96.7, and `fs_merge` with `method.budget=fast` (125 steps from there) 97.6.

## Scrambled sources

A source whose units were permuted and whose heads were turned after its fine-tuning computes the same function,
but is no longer near `models.base` (MergeLock). `fsmerge check` names it. Per cent of the sources' accuracy on the
group of a common initialisation, as it is and with source 2 scrambled (`python -m scripts.scrambled`):

| method | as it is | scrambled | method | as it is | scrambled |
| --- | --- | --- | --- | --- | --- |
| `average` | 82.4 | 25.6 | `zipit` | 80.2 | 75.8 |
| `task_arithmetic` | 75.6 | 29.3 | `regmean` | 84.2 | 81.1 |
| `ties` | 73.7 | 43.6 | `cca` | 83.1 | 82.3 |
| `tsv` | 86.4 | 34.5 | `orthogonal_matching` | 86.4 | 86.4 |
| `weight_matching` | 82.4 | 77.5 | `fs_closed_form` | 99.3 | 99.3 |
| `activation_matching` | 80.9 | 77.8 | | | |

Methods of task vectors and averages do not survive it. Permutations undo a part of it, `orthogonal_matching` and
the closed form undo all of it.
"""

TASK_MASKS = """## Task masks

`method=consensus method.masks=true` also writes `compressed/` ([TALL masks](https://arxiv.org/abs/2405.07813)):
the pretrained weights W_0, the sum s of the task vectors, and for each task the bits of its mask m_i. With n
parameters, k tasks and b bytes per value (`output.dtype`: 4 or 2) its files hold 2 b n + k ceil(n / 8) bytes; the
sources have k b n. `load_compressed(RUN, TASK)` is the network W_0 + m_i s of a task, with its head. On the group
of a common initialisation (1,679,568 bytes; the sources 1,628,672, so it saves space from three tasks on) these
networks have 90.5 % and 70.6 % top-1 with the default `method.mask=0.4`, 94.0 % and 85.6 % with 1, where
W_0 + m_i s is closest to the source (in the sum of absolute differences), and the sources 95.0 % and 88.3 %:

<!-- slow -->
```python
from fsmerge_cli import load_compressed, merge
from fsmerge_cli.common import presets

models, data = "shared_parent_pair", {"name": "glyphs", "images_per_task": 50}
base = presets.load("models", models)["base"]
masks = {"name": "consensus", "masks": True, "mask": 1.0}
tasks = merge(models, base=base, method=masks, data=data, output="outputs/masks", overwrite=True).plan.tasks
rows = merge([load_compressed("outputs/masks", task) for task in tasks], method="average", data=data).scores
print({task: rows[task].tasks[task].top1 for task in tasks})
```
"""

OUT_OF_SCOPE = """## Out of scope

Methods that keep more than one network for the inference (Twin-Merging and other mixtures of experts with
routers, reversible merging) give no single network of the original size, which is what `merged/` is. Task masks
are therefore a second output (above), not a part of `merged/`.

Partial linearisation ([arXiv 2310.04742](https://arxiv.org/abs/2310.04742)) changes the fine-tuning: adapters are
trained in the first-order expansion of the network around its pretrained weights. It cannot be applied to given
checkpoints, which were fine-tuned without it. Task vectors of networks trained like this are merged by
`task_arithmetic` as any others.
"""


def main() -> None:
    """Merge what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(presets.shipped("method")), help="comma-separated")
    parser.add_argument("--groups", default=",".join(GROUPS), help="comma-separated")
    parser.add_argument("--page-only", action="store_true")
    given = parser.parse_args()
    if not given.page_only:
        for group in given.groups.split(","):
            for method in given.methods.split(","):
                if not (kind_of(method).uses_base and GROUPS[group] == "different"):
                    one(group, method)
    PAGE.write_text(page())


def kind_of(preset: str) -> type[Method]:
    """The class of a method's preset."""
    return METHODS[presets.load("method", preset)["name"]]


def one(group: str, method: str) -> None:
    """Merge once and add the line, unless it is there. A method that fails is reported and left out."""
    if any((old["group"], old["method"]) == (group, method) for old in rows()):
        return
    folder = Path("outputs/methods") / f"{group}-{method}"
    fast = (
        ["method.budget=fast"] if issubclass(kind_of(method), Trained) and method == kind_of(method).name else []
    )
    call = ["merge", "--quiet", f"+models={group}", f"data.images_per_task={IMAGES}", f"method={method}", *fast]
    call += [f"seed={SEED}", "resume=true", "hardware.threads=1", "hardware=cpu", f"output.dir={folder}"]
    if code := fsmerge(call):
        sys.stderr.write(f"{group}, {method}: exit code {code}\n")
        return
    found = row(folder, group, IMAGES, method, fast)
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    with ROWS.open("a") as file:
        file.write(json.dumps(found) + "\n")
    sys.stderr.write(f"{group}, {method}: {relative([found]):.1f} % of the sources, {found['seconds']:.0f} s\n")


def rows() -> Sequence[Mapping[str, Any]]:
    """The finished runs."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.is_file() else []


def page() -> str:
    """The page: one table, a paragraph per method, what is left out."""
    found = {(own["group"], own["method"]): own for own in rows()}
    names = presets.shipped("method")
    titles = [
        "method",
        "base",
        "images",
        "trains",
        "widths",
        "across",
        *(f"{kind}, %" for kind in GROUPS.values()),
    ]
    lines = [titles, ["---"] * len(titles), *(cells(name, found) for name in names)]
    table = "\n".join(f"| {' | '.join(own)} |" for own in lines)
    return "\n".join([OPENING, table, "", SHOWN, *(paragraph(name) for name in names), TASK_MASKS, OUT_OF_SCOPE])


def cells(name: str, found: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    """The row of one method."""
    kind = kind_of(name)
    trains = "yes" if issubclass(kind, Trained) or name.endswith("_trained") else "no"
    if kind.uses_base and kind.uses_images:
        trains = "coefficients"
    measured = [
        "-" if (own := found.get((group, name))) is None else f"{relative([own]):.1f} ({own['seconds']:.1f} s)"
        for group in GROUPS
    ]
    own_facts = [kind.uses_base, kind.uses_images]
    last = [not kind.one_width, not kind.uses_base and name not in FAILS]
    yes = ["yes" if fact else "no" for fact in (*own_facts, *last)]
    return [f"[`{name}`](#{name})", yes[0], yes[1], trains, yes[2], yes[3], *measured]


def paragraph(name: str) -> str:
    """Heading, the sentence of the preset, the paper, and the formula."""
    kind = kind_of(name)
    module = inspect.getdoc(sys.modules[kind.__module__]) or ""
    source = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", module.split("\n\n")[0])
    formula = (inspect.getdoc(kind) or "").split("\n\n")[0]
    return f"## {name}\n\n{' '.join(source.split())}\n\n```text\n{formula}\n```\n"


if __name__ == "__main__":
    main()
