r"""Merging convolutional networks, every method, into docs/results/convnets.md.

    python -m scripts.convnets                                  # +models=convnet_pair: what is missing, resumable
    python -m scripts.convnets --methods pleas,fs_closed_form --seeds 0 --images 50
    python -m scripts.convnets --root DATA --groups cifar10_twice,cifar10_halves --images 50,500
    python -m scripts.convnets --table-only                     # the page from the existing rows

--root: folder with cifar10/ (scripts/natural/tasks.py); missing sources are trained first (sources.py). Every
finished run adds one line to docs/results/convnets.jsonl; runs with a line are not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from fsmerge_cli.cli import main as fsmerge
from fsmerge_cli.common.cache import cache_folder
from scripts.benchmark.goals import paragraph
from scripts.benchmark.intervals import Cell, Row, relative
from scripts.benchmark.lines import add, finished, flow, rows, write_above_notes
from scripts.benchmark.run import row
from scripts.benchmark.sources import SOURCES
from scripts.benchmark.table import table
from scripts.convnets.sources import GROUPS, SCALE, ensure, stored, task_of
from scripts.natural.tasks import SIZE, archive

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
    "kd_closed_form": ["method=kd_closed_form"],
    "fs_merge_matched": ["method=fs_merge", "method.start=matched", "method.budget=fast"],
    "fs_merge": ["method=fs_merge"],
}
"""Methods with a training, on the first seed."""

METHODS = {**CLOSED, **TRAINED}

MOST = {"train": 5000, "test": None}
"""Images per task, by split, of the archives that are merged from; a training reads all of them."""

TITLE = "# Merging convolutional networks\n"
HEAD = """`convnet_pair`: two ResNets of 4 blocks and 16 to 128 channels (`+models=convnet_pair`), trained from
different initialisations on rendered digits and capitals. `cifar10_twice` and `cifar10_halves`: two ResNets
of 20 layers (timm's resnet18d, 8 blocks, 16 to 128 channels times the width) from different initialisations,
on the same ten classes of CIFAR-10 and on five of them each, shown at 64 x 64 pixels. Per cent of the
sources' accuracy: top-1 on the test images (of convnet_pair: other fonts), mean over tasks and seeds; the 95
% interval is over test images, and over seeds where there are several. `joint`: top-1 accuracy among the
labels of both tasks (the task is not given), plain and calibrated; of no use for cifar10_twice, whose tasks
are the same. Trainings take 500 steps. Seconds are those of the
fit, on one thread of a machine of two cores that did other work at the same time. Written by `python -m
scripts.convnets`; `--table-only` writes it again from convnets.jsonl."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of the data sets")
    parser.add_argument("--groups", default=MODELS, help=f"comma-separated: {MODELS}, {', '.join(GROUPS)}")
    parser.add_argument(
        "--width", type=int, default=1, help="of the networks on CIFAR-10, in multiples of 16 channels"
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--images", default="50", help="comma-separated: unlabelled images per task")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--rows", type=Path, default=ROWS, help="file of the rows; the page stands beside it")
    parser.add_argument("--table-only", action="store_true")
    given = parser.parse_args()
    if not given.table_only:
        for seed in map(int, given.seeds.split(",")):
            for images in given.images.split(","):
                for group in given.groups.split(","):
                    for method in given.methods.split(","):
                        if method not in METHODS:
                            parser.error(f"unknown method '{method}'; available: {', '.join(METHODS)}.")
                        if group not in (MODELS, *GROUPS):
                            parser.error(f"unknown group '{group}'; available: {MODELS}, {', '.join(GROUPS)}.")
                        if group != MODELS and given.root is None:
                            parser.error("--root=FOLDER is missing: the folder with cifar10/.")
                        if method in CLOSED or seed == 0:
                            one(group, method, images, seed, given)
    write_page(rows(given.rows), given.rows.with_suffix(".md"))


def one(group: str, method: str, images: str, seed: int, given: argparse.Namespace) -> None:
    """Merge once and add the line, unless it is there."""
    name = group if group == MODELS else f"{group}_w{given.width}"
    key = {"group": name, "images": images, "method": method, "seed": seed}
    if finished(given.rows, key):
        return
    folder = Path("outputs/convnets") / f"{name}-{images}-{method}-{seed}"
    chosen = [f"+models={MODELS}"] if group == MODELS else _on_cifar10(group, given)
    call = ["merge", "--quiet", *chosen, f"data.images_per_task={images}", *METHODS[method]]
    call += [f"seed={seed}", "resume=true", "hardware.threads=1", f"output.dir={folder}"]
    if code := fsmerge(call):
        raise SystemExit(f"{key}: exit code {code}")
    found = row(folder, name, images, method, METHODS[method][1:])
    add(given.rows, found)
    sys.stderr.write(f"{name} {method} seed {seed}: {relative([found]):.1f} %, {found['seconds']:.0f} s\n")


def _on_cifar10(group: str, given: argparse.Namespace) -> list[str]:
    """The keys of the sources, which are trained where they are missing, and of their data."""
    work, names = cache_folder() / "natural", GROUPS[group]
    for name in names:
        ensure(name, given.width, given.root, work)
    sources = [{"name": name, "checkpoint": str(stored(name, given.width))} for name in names]

    def images(name: str, split: str) -> str:
        return str(archive(given.root, work / "tasks", task_of(name), split, size=SCALE * SIZE, most=MOST[split]))

    tasks = {name: {"name": "tensors", **{split: images(name, split) for split in MOST}} for name in names}
    return [f"+models.sources={flow(sources)}", "data=per_task", f"data.tasks={flow(tasks)}"]


def write_page(found: Sequence[Row], path: Path) -> None:
    """Write the page: one table per number of images; what stands behind them stays."""
    cells: dict[Cell, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for own in found:
        cells[own["group"], own["images"]][own["method"]].append(own)
    order = sorted(cells, key=lambda cell: (cell[0] != MODELS, cell[0], int(cell[1])))
    parts = [TITLE, paragraph(HEAD), sources_table()]
    parts += [table(cell, cells[cell], "kd") for cell in order]
    write_above_notes(path, parts)


def sources_table() -> str:
    """The accuracy of every stored source on CIFAR-10 and the time of its training."""
    lines = [
        "## The sources on CIFAR-10\n",
        "| source | width | top-1 % | steps of 128 images | minutes on one CPU thread, beside other work |",
        "|---|---|---|---|---|",
    ]
    for path in sorted(SOURCES.glob("*_resnet20_w*/training.json")):
        name, _, width = path.parent.name.partition("_resnet20_w")
        own = json.loads(path.read_text())
        lines.append(f"| {name} | {width} | {own['top1']:.1f} | {own['steps']} | {own['seconds'] / 60:.0f} |")
    return "\n".join(lines) + "\n"
