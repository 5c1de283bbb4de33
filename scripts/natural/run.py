r"""Merging networks trained on photographs: per cent of the sources' accuracy, by images per task and method.

    python -m scripts.natural --root ../shared/data                    # everything that is missing, resumable
    python -m scripts.natural --root DATA --groups animals_vehicles --images 50 --methods kd,fs_merge --seeds 0
    python -m scripts.natural --root DATA --groups deer_horse_ship_truck --label ridge_1 \
        --methods fs_closed_form method.ridge=0.01
    python -m scripts.natural --table-only                             # the page from the existing rows

--root: folder with cifar10/, fashion_mnist/ and mnist/ (scripts/natural/tasks.py). Every finished run adds one
line to docs/results/natural.jsonl; runs with a line are not repeated. Missing sources are trained first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fsmerge_cli.checkpoints.files import file_sha256
from fsmerge_cli.cli import main as fsmerge
from fsmerge_cli.common.cache import cache_folder
from fsmerge_cli.methods import METHODS as METHOD_CLASSES
from scripts.benchmark.intervals import relative
from scripts.benchmark.lines import add, finished, flow, rows
from scripts.benchmark.run import row
from scripts.natural.page import write_page
from scripts.natural.sources import ensure, parent, stored
from scripts.natural.tasks import archive

ROWS = Path("docs/results/natural.jsonl")

GROUPS = {
    "cifar10_fashion": ("cifar10", "fashion"),
    "animals_vehicles": ("animals", "vehicles"),
    "cifar10_fashion_mnist": ("cifar10", "fashion", "mnist"),
    "deer_horse_ship_truck": ("deer_horse", "ship_truck"),
    "four_of_cifar10": ("fashion_of_cifar10", "mnist_of_cifar10", "animals_of_cifar10", "vehicles_of_cifar10"),
}

FOR_TUNING = ("deer_horse_ship_truck",)
"""Groups on which options were chosen; their rows stand in a part of their own."""

AUXILIARY = {
    "cifar10_fashion": "mnist",
    "animals_vehicles": "fashion",
    "deer_horse_ship_truck": "other_photographs",
}
"""What replaces the images of the tasks at --images=auxiliary: 5,000 of another data set, or of other classes."""

SOLVED = ("average", "activation_matching", "zipit", "regmean", "fs_closed_form")
TRAINED = ("fs_closed_form_trained", "kd", "fs_merge", "fs_merge_paper")
METHODS = (*SOLVED, *TRAINED)
OF_TASK_VECTORS = tuple(sorted(name for name, method in METHOD_CLASSES.items() if method.uses_base))
"""Further methods of the groups whose sources have a parent."""
IMAGES = ("16", "50", "100", "500", "auxiliary")
SEEDS = (0, 1, 2)


def main() -> None:
    given = arguments()
    if not given.table_only:
        if given.root is None:
            raise SystemExit("--root=FOLDER is missing: the folder with cifar10/, fashion_mnist/ and mnist/.")
        for seed in map(int, given.seeds.split(",")):  # seed by seed: a part already gives a complete table
            for images in given.images.split(","):
                for group in given.groups.split(","):
                    for method in given.methods.split(",") if given.methods else methods_of(group):
                        one(group, images, method, seed, given)
    write_page(rows(given.rows), given.rows.with_suffix(".md"), FOR_TUNING)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of the data sets")
    parser.add_argument("--groups", default=",".join(GROUPS), help="comma-separated")
    parser.add_argument("--images", default=",".join(IMAGES), help="comma-separated: counts per task, auxiliary")
    parser.add_argument("--methods", default="", help="comma-separated; default: all that fit the group")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="comma-separated")
    parser.add_argument("--label", default="", help="name of a variant with OVERRIDE; a row of its own")
    parser.add_argument("--device", default="cpu", help="cpu (one thread), or cuda")
    parser.add_argument("--rows", type=Path, default=ROWS, help="file of the rows; the page stands beside it")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="KEY=VALUE of the configuration")
    given = parser.parse_args()
    for name in given.groups.split(","):
        if name not in GROUPS:
            parser.error(f"unknown group '{name}'; available: {', '.join(GROUPS)}.")
    if bool(given.overrides) != bool(given.label):
        parser.error("an OVERRIDE needs --label=NAME, and a NAME needs an OVERRIDE.")
    return given


def methods_of(group: str) -> tuple[str, ...]:
    """The methods of a group."""
    return (*METHODS, *OF_TASK_VECTORS) if base_of(group) is not None else METHODS


def base_of(group: str) -> Path | None:
    """The folder of the parent of all sources of a group; None: they have none."""
    return parent(GROUPS[group][0])


def one(group: str, images: str, method: str, seed: int, given: argparse.Namespace) -> None:
    """Merge once and add the line, unless it is there."""
    name = given.label or method
    key = {"group": group, "images": images, "method": name, "seed": seed}
    if finished(given.rows, key):
        return
    if images == "auxiliary" and group not in AUXILIARY:
        return
    work = cache_folder() / "natural"
    for task in GROUPS[group]:
        ensure(task, given.root, work)
    folder = Path("outputs/natural") / f"{group}-{images}-{name}-{seed}"
    call = ["merge", "--quiet", f"+models.sources={_entries(group)}", f"method={method}", f"seed={seed}"]
    if (base := base_of(group)) is not None:
        call.append(f"+models.base={base}")
    call += [*_data(group, images, given.root, work), f"hardware.device={given.device}", "resume=true"]
    call += ["hardware.threads=1", *given.overrides, f"output.dir={folder}"]
    if code := fsmerge(call):
        raise SystemExit(f"{key}: exit code {code}")
    found = row(folder, group, images, name, given.overrides)
    own = {task: file_sha256(stored(task) / "model.safetensors") for task in GROUPS[group]}
    if own != {task: found["sources_sha256"][task] for task in GROUPS[group]}:
        raise SystemExit(f"{folder} was made from other sources. Delete it and call again.")
    add(given.rows, found)
    sys.stderr.write(
        f"{group} {images} {name} seed {seed}: {relative([found]):.1f} % of the sources, "
        f"{found['seconds']:.0f} s\n"
    )


def _entries(group: str) -> str:
    """The sources of a group as a value of the command line."""
    entries = [{"name": task, "checkpoint": str(stored(task))} for task in GROUPS[group]]
    return flow(entries)


def _data(group: str, images: str, root: Path, work: Path) -> list[str]:
    """The keys of the data set: archives of all tasks, and auxiliary images where the tasks give none."""
    for task in GROUPS[group]:
        for split in ("train", "test"):
            archive(root, work / "tasks", task, split)
    keys = [
        "data=tensors",
        f"data.train={work}/tasks/{{task}}-train.npz",
        f"data.test={work}/tasks/{{task}}-test.npz",
    ]
    if images != "auxiliary":
        return [*keys, f"data.images_per_task={images}"]
    others = archive(root, work / "tasks", AUXILIARY[group], "train", labels=False)
    return [
        *keys,
        "data.images_per_task=0",
        f"data.auxiliary={{name: tensors, train: {others}, images_per_task: 5000}}",
    ]
