r"""The quality benchmark: per cent of the sources' accuracy, by images per task and method.

    python -m scripts.benchmark                      # the small matrix (`make quality`), 30 minutes on 2 cores
    python -m scripts.benchmark --full               # the full matrix (`make quality-full`), days on 2 cores
    python -m scripts.benchmark --groups lower_hebrew --images 50 --methods kd,fs_merge --seeds 0
    python -m scripts.benchmark --results docs/results/ablation --against=everything --groups digits_capitals \
        --methods fs_merge --seeds 0 --label no_mixing method.budget=fast method.mixup=0.0
    python -m scripts.benchmark --device cuda --jobs 8 --groups lower_hebrew --images 16,50     # on a GPU, in fp32
    python -m scripts.benchmark --table-only         # tables and plot from the existing rows

Every finished run adds one line to quality.jsonl in the results folder (docs/results); runs with a line are not
repeated. Each group and number of images is one `fsmerge merge --multirun ... resume=true` with --jobs parallel
jobs, so an interrupted benchmark resumes where it stopped.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from fsmerge_cli.cli import main as fsmerge
from scripts.benchmark.goals import Block
from scripts.benchmark.intervals import METHODS, relative
from scripts.benchmark.sources import FOR_TUNING, GROUPS, fingerprints, prepare
from scripts.benchmark.table import write_results

ROWS = "quality.jsonl"
"""File name in the results folder."""

TRAINED = ("fs_closed_form", "fs_closed_form_trained", "kd", "fs_merge_paper", "fs_merge")
"""Methods that train; the others take seconds and use no augmentation."""

STARTED = ("kd", "fs_merge")
MATCHED = {"method.start": "matched", "method.steps": "2000"}
"""Methods whose rows have these keys, unless an OVERRIDE sets them."""

AUXILIARY = {
    "auxiliary": "{name: glyphs, labels: cyrillic, images_per_task: 1000, train_images: 100}",
    "generated": "{name: generated, images_per_task: 2000, size: 24}",
}
"""The data that replaces the images of the tasks, by its name in a row."""

SMALL: tuple[Block, ...] = (
    ("digits_mlp_pair", "16", METHODS, (0, 1, 2)),
    ("digits_mlp_pair", "50", METHODS, (0, 1, 2)),
    ("lower_hebrew", "50", METHODS, (0,)),
)


def full() -> tuple[Block, ...]:
    """Every group with every number of images; seed by seed, so that a part already gives a complete table."""
    groups = [name for name in GROUPS if name not in FOR_TUNING]
    blocks: list[Block] = []
    for seed in (0, 1, 2):
        for images in ("50", "16", "500", *AUXILIARY):
            for name in groups:
                if name == "digits_mlp_pair" and images == "auxiliary":
                    continue  # there are no other digits
                blocks.append((name, images, METHODS if images not in AUXILIARY else TRAINED, (seed,)))
    return tuple(blocks)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--groups", default="", help="comma-separated")
    parser.add_argument("--images", default="50", help="comma-separated: counts per task, auxiliary, generated")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--label", default="", help="name of a variant with OVERRIDE; a row of its own")
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda; in fp32 on both")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of the rows and tables")
    parser.add_argument("--against", default="kd", help="baseline of the differences in the tables")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="KEY=VALUE of the configuration, for every run"
    )
    options = parser.parse_args()
    if options.overrides and not options.label:
        parser.error(
            "an OVERRIDE needs --label=NAME: its rows must not be mixed with those of the default options."
        )
    for name in options.groups.split(",") if options.groups else ():
        if name not in GROUPS:
            parser.error(f"unknown group '{name}'; available: {', '.join(GROUPS)}.")
    if options.label and (options.label in METHODS or "," in options.methods):
        parser.error(
            "--label=NAME names one variant of one method: pass --methods=METHOD and a NAME that is not a method."
        )
    return options


def main() -> None:
    options = arguments()
    if not options.table_only:
        blocks: Sequence[Block] = full() if options.full else SMALL
        if options.groups:
            methods, seeds = tuple(options.methods.split(",")), tuple(map(int, options.seeds.split(",")))
            pairs = [(g, i) for i in options.images.split(",") for g in options.groups.split(",")]
            blocks = [(group, images, methods, seeds) for group, images in pairs]
        todo = [part for block in blocks for part in missing(block, options)]
        if not todo:
            sys.stderr.write(f"{options.results / ROWS} already has every row; --results=FOLDER measures again\n")
        groups = list(dict.fromkeys(part[0] for part in todo))
        folder = prepare(groups)
        for group in groups:  # before anything runs
            same_sources(group, fingerprints(group), options.results)
        for part in todo:
            measure(part, folder, options)
    write_results(list(rows(options.results)), options.results, options.against, full())


def missing(block: Block, options: argparse.Namespace) -> list[Block]:
    """The runs of a block that have no line yet; methods with the same missing seeds and keys are grouped."""
    group, images, methods, seeds = block
    cell = [row for row in rows(options.results) if (row["group"], row["images"]) == (group, images)]
    done = {(row["method"], row["seed"]) for row in cell}
    groups: dict[tuple[tuple[int, ...], bool], list[str]] = {}
    for method in methods:
        todo = tuple(seed for seed in seeds if (options.label or method, seed) not in done)
        if todo:
            groups.setdefault((todo, method in STARTED), []).append(method)
    return [(group, images, tuple(names), todo) for (todo, _), names in groups.items()]


def measure(block: Block, folder: Path, options: argparse.Namespace) -> None:
    """Run a block with parallel jobs and add its lines."""
    group, images, methods, seeds = block
    names = {method: options.label or method for method in methods}
    shown = "_".join([*names.values(), *map(str, seeds)])
    sweep = Path("outputs/quality") / options.results.name / f"{group}-{images}-{shown}"
    models = group if GROUPS[group] is None else f"quality_{group}"
    sampling = (
        [f"data.images_per_task={images}"]
        if images not in AUXILIARY
        else ["data.images_per_task=0", f"data.auxiliary={AUXILIARY[images]}"]
    )
    command = ["merge", "--multirun", "--quiet", "--config-dir", str(folder), f"+models={models}"]
    command += [f"method={','.join(methods)}", *sampling, f"seed={','.join(map(str, seeds))}", "resume=true"]
    command += ["launcher=joblib", f"hydra.launcher.n_jobs={options.jobs}", "hardware.threads=1"]
    command += [f"hardware.device={options.device}", "hardware.precision=fp32"]
    keys = [own.partition("=")[0] for own in options.overrides]
    command += [f"{key}={value}" for key, value in MATCHED.items() if methods[0] in STARTED and key not in keys]
    code = fsmerge([*command, *options.overrides, f"hydra.sweep.dir={sweep}"])
    if code:
        raise SystemExit(f"{group}, {images} images, {shown}: exit code {code}")
    jobs = sorted((sweep / "jobs").glob("*.json"))  # in the order of the command
    for (method, seed), job in zip(product(methods, seeds), jobs, strict=True):
        made = Path(json.loads(job.read_text())["folder"])
        found = row(made, group, images, names[method], options.overrides)
        if found["seed"] != seed:
            raise SystemExit(f"{job} is of seed {found['seed']}, not {seed}")
        add(found, options.results)


def row(folder: Path, group: str, images: str, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The line of one run: its metrics and, packed into bits, which test images are classified correctly."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    merged, ensemble = evaluation["rows"]["merged"], evaluation["rows"]["ensemble"]
    correct = load_file(folder / "correct.safetensors")
    bits = {
        key.removeprefix("task."): base64.b64encode(np.packbits(values.numpy().astype(bool)).tobytes()).decode()
        for key, values in correct.items()
        if key.startswith("task.")
    }
    return {
        "group": group,
        "images": images,
        "method": name,
        "seed": evaluation["provenance"]["seed"],
        "overrides": list(overrides),
        "tasks": {task: own["top1"] for task, own in merged["tasks"].items()},
        "sources": {task: own["top1"] for task, own in ensemble["tasks"].items()},
        "counts": {task: own["count"] for task, own in merged["tasks"].items()},
        "mean": merged["mean_top1"],
        "joint": merged["joint_top1"],
        "ensemble_joint": ensemble["joint_top1"],
        "steps": evaluation["cost"]["steps"],
        "seconds": evaluation["cost"]["seconds"]["fit"],
        "device": _device(evaluation["provenance"]["device"]),
        "versions": evaluation["provenance"]["versions"],
        "sources_sha256": {own["name"]: own["sha256"] for own in evaluation["provenance"]["sources"]},
        "right": bits,
    }


def _device(name: str) -> str:
    """The device that the seconds of a run were measured on."""
    return torch.cuda.get_device_name() if name.startswith("cuda") else "one CPU thread"


def rows(results: Path) -> Iterator[Mapping[str, Any]]:
    """The finished runs."""
    if (results / ROWS).is_file():
        yield from map(json.loads, (results / ROWS).read_text().splitlines())


def same_sources(group: str, found: Mapping[str, str], results: Path) -> None:
    """Raise SystemExit if rows of the same group were made from different sources.

    found: SHA-256 of every source's weights; {} if not known yet.
    """
    for row in rows(results):
        if row["group"] == group and found and row["sources_sha256"] != found:
            raise SystemExit(
                f"{results / ROWS} has rows of {group} from different sources ({', '.join(found)}); trained "
                "weights depend on the machine. --results=FOLDER measures the group again in another folder."
            )


def add(found: Mapping[str, Any], results: Path) -> None:
    """Add one line and log it."""
    same_sources(found["group"], found["sources_sha256"], results)
    results.mkdir(parents=True, exist_ok=True)
    with (results / ROWS).open("a") as file:
        file.write(json.dumps(found) + "\n")
    sys.stderr.write(
        f"{found['group']} {found['images']} {found['method']} seed {found['seed']}: "
        f"{relative([found]):.1f} % of the sources, {found['seconds']:.0f} s\n"
    )
