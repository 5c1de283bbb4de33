r"""Merging convolutional networks: every method on +models=convnet_pair, into docs/results/convnets.md.

    python -m scripts.convnets                                  # everything that is missing, resumable
    python -m scripts.convnets --methods pleas,fs_closed_form --seeds 0 --images 50
    python -m scripts.convnets --table-only                     # the page from the existing rows

Every finished run adds one line to docs/results/convnets.jsonl; runs with a line are not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fsmerge_cli.cli import main as fsmerge
from scripts.benchmark.goals import paragraph
from scripts.benchmark.intervals import relative
from scripts.benchmark.run import row
from scripts.benchmark.table import table

ROWS = Path("docs/results/convnets.jsonl")
MODELS = "convnet_pair"

CLOSED: dict[str, list[str]] = {
    "average": ["method=average"],
    "activation_matching": ["method=activation_matching"],
    "zipit": ["method=zipit"],
    "regmean": ["method=regmean"],
    "regmean_pp": ["method=regmean_pp"],
    "pleas": ["method=pleas"],
    "pleas_1.5": ["method=pleas", "method.budget_flops=1.5"],
    "pleas_2": ["method=pleas", "method.budget_flops=2"],
    "fs_closed_form": ["method=fs_closed_form"],
    "fs_closed_form_no_reset": ["method=fs_closed_form", "method.reset_batchnorm=false"],
    "fs_closed_form_no_correction": ["method=fs_closed_form", "method.correct=false"],
    "fs_closed_form_no_views": ["method=fs_closed_form", "method.views=0"],
}
"""Methods without a training, on three seeds."""

TRAINED: dict[str, list[str]] = {
    "fs_closed_form_trained": ["method=fs_closed_form_trained"],
    "kd": ["method=kd", "method.budget=fast"],
    "kd_closed_form": ["method=kd", "method.start=closed_form", "method.budget=fast"],
    "fs_merge": ["method=fs_merge", "method.budget=fast"],
}
"""Methods with a training, on the first seed."""

METHODS = {**CLOSED, **TRAINED}

TITLE = "# Merging convolutional networks\n"
HEAD = """Two ResNets of 4 blocks and 16 to 128 channels (`+models=convnet_pair`), trained from different
initialisations on rendered digits and capitals. Per cent of the sources' accuracy: top-1 on the test images
(other fonts), mean over tasks and seeds; the 95 % interval is over test images, and over seeds where there are
several. `joint`: top-1 accuracy among the labels of both tasks (the task is not given), plain and calibrated.
Trainings take `method.budget=fast`, a quarter of the default steps. Seconds are those of the fit, on one thread
of a machine of two cores that did other work at the same time. Written by `python -m scripts.convnets`;
`--table-only` writes it again from convnets.jsonl."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--images", default="50", help="comma-separated: unlabelled images per task")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--rows", type=Path, default=ROWS, help="file of the rows; the page stands beside it")
    parser.add_argument("--table-only", action="store_true")
    given = parser.parse_args()
    if not given.table_only:
        for seed in map(int, given.seeds.split(",")):
            for images in given.images.split(","):
                for method in given.methods.split(","):
                    if method not in METHODS:
                        parser.error(f"unknown method '{method}'; available: {', '.join(METHODS)}.")
                    if method in CLOSED or seed == 0:
                        one(method, images, seed, given.rows)
    write_page(rows(given.rows), given.rows.with_suffix(".md"))


def one(method: str, images: str, seed: int, path: Path) -> None:
    """Merge once and add the line, unless it is there."""
    key = {"group": MODELS, "images": images, "method": method, "seed": seed}
    if any(all(old[k] == v for k, v in key.items()) for old in rows(path)):
        return
    folder = Path("outputs/convnets") / f"{images}-{method}-{seed}"
    call = ["merge", "--quiet", f"+models={MODELS}", f"data.images_per_task={images}", *METHODS[method]]
    call += [f"seed={seed}", "resume=true", "hardware.threads=1", f"output.dir={folder}"]
    if code := fsmerge(call):
        raise SystemExit(f"{key}: exit code {code}")
    found = row(folder, MODELS, images, method, METHODS[method][1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(found) + "\n")
    sys.stderr.write(f"{method} seed {seed}: {relative([found]):.1f} % of the sources, {found['seconds']:.0f} s\n")


def rows(path: Path) -> Sequence[Mapping[str, Any]]:
    """The finished runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def write_page(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the page: one table per number of images; what stands behind them stays."""
    cells: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for own in found:
        cells[own["images"]][own["method"]].append(own)
    parts = [TITLE, paragraph(HEAD)]
    parts += [table((MODELS, images), cells[images], "kd") for images in sorted(cells, key=int)]
    old = path.read_text() if path.is_file() else ""
    notes = old[old.index(NOTES) :] if NOTES in old else f"{NOTES}\n"
    path.write_text("\n".join([*parts, notes]))


NOTES = "## What was expected, and what came\n"
"""Heading of the part of the page that is written by hand."""


if __name__ == "__main__":
    main()
