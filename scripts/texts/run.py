r"""Merging text encoders on real sentences, every method, into docs/results/text.md.

    python -m scripts.texts --sentences DATA/sentences --encoder MINILM         # everything, resumable
    python -m scripts.texts --sentences DATA --encoder MINILM --groups amazon_yelp --images 50 --methods kd
    python -m scripts.texts --sentences DATA --encoder MINILM \
        --methods kd,fs_merge_matched,kd_closed_form,fs_merge               # the trained ones
    python -m scripts.texts --table-only                                        # the page from the existing rows

Folders: see sources.py. Every finished run adds one line to docs/results/text.jsonl; runs with a line are not
repeated. Missing sources are trained first.
"""

from __future__ import annotations

import argparse
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
from scripts.benchmark.table import table as results_table
from scripts.texts.sources import DOMAIN, LENGTH, ensure, table

ROWS = Path("docs/results/text.jsonl")

GROUPS = {"amazon_yelp": ("amazon", "yelp"), "yelp_domain": ("yelp", DOMAIN)}
"""Two MiniLMs from one pretraining; a MiniLM and a BERT of its shape that was trained from random weights."""

SHORT = "method.steps=100"
"""Steps of the trainings: with the default of 2,000 a run takes hours on one thread."""

CLOSED: dict[str, list[str]] = {
    "average": ["method=average"],
    "task_arithmetic": ["method=task_arithmetic"],
    "ties": ["method=ties"],
    "tsv": ["method=tsv"],
    "activation_matching": ["method=activation_matching"],
    "zipit": ["method=zipit"],
    "regmean": ["method=regmean"],
    "regmean_pp": ["method=regmean_pp"],
    "pleas": ["method=pleas"],
    "fs_closed_form": ["method=fs_closed_form"],
}
"""Methods without a training."""

WITH_BASE = ("task_arithmetic", "ties", "tsv")
"""They need the pretrained weights of both sources."""

TRAINED: dict[str, list[str]] = {
    "fs_closed_form_trained": ["method=fs_closed_form_trained", SHORT],
    "kd": ["method=kd", SHORT],
    "kd_closed_form": ["method=kd", SHORT, "method.start=closed_form"],
    "fs_merge_matched": ["method=fs_merge", SHORT, "method.start=matched"],
    "fs_merge": ["method=fs_merge", SHORT],
}

METHODS = {**CLOSED, **TRAINED}

TITLE = "# Merging text encoders\n"
HEAD = f"""Sentences of three sites (UCI "Sentiment Labelled Sentences"), negative or positive; of every site 600
for training and 400 for testing. `amazon_yelp`: all-MiniLM-L6-v2 (a BERT of 6 layers, width 384) fine-tuned on
two of them, so a common pretraining. `yelp_domain`: the MiniLM of yelp, and a BERT of its shape
trained from random weights to tell the three sites apart. At most {LENGTH} tokens of a text. Per cent of the
sources' accuracy: top-1 on the test sentences, mean over tasks and seeds; the 95 % interval is over test
sentences, and over seeds where there are several. `joint`: top-1 accuracy among the labels of both tasks, plain
and calibrated. Trainings take 100 steps. Seconds are those of the fit, on one thread of a machine of two cores
that did other work at the same time. Written by `python -m scripts.texts`; `--table-only` writes it again from
text.jsonl."""


def main() -> None:
    given = arguments()
    if not given.table_only:
        if given.sentences is None or given.encoder is None:
            raise SystemExit("--sentences=FOLDER and --encoder=FOLDER are missing; see --help.")
        for seed in map(int, given.seeds.split(",")):
            for images in given.images.split(","):
                for group in given.groups.split(","):
                    for method in given.methods.split(","):
                        if group == "amazon_yelp" or method not in WITH_BASE:
                            one(group, method, images, seed, given)
    write_page(rows(given.rows), given.rows.with_suffix(".md"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=Path, help="folder of amazon.jsonl, imdb.jsonl and yelp.jsonl")
    parser.add_argument("--encoder", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--groups", default=",".join(GROUPS), help="comma-separated")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--images", default="16,50,200", help="comma-separated: unlabelled sentences per task")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--rows", type=Path, default=ROWS, help="file of the rows; the page stands beside it")
    parser.add_argument("--table-only", action="store_true")
    given = parser.parse_args()
    for name, known in (("groups", GROUPS), ("methods", METHODS)):
        for own in getattr(given, name).split(","):
            if own not in known:
                parser.error(f"--{name}: '{own}' is unknown; available: {', '.join(known)}.")
    return given


def one(group: str, method: str, images: str, seed: int, given: argparse.Namespace) -> None:
    """Merge once and add the line, unless it is there."""
    key = {"group": group, "images": images, "method": method, "seed": seed}
    if finished(given.rows, key):
        return
    work = cache_folder() / "texts"
    folder = Path("outputs/texts") / f"{group}-{images}-{method}-{seed}"
    entries = [
        {"name": name, "checkpoint": str(ensure(name, given.sentences, given.encoder, work))}
        for name in GROUPS[group]
    ]
    for name in GROUPS[group]:
        for split in ("train", "test"):
            table(name, split, given.sentences, work)
    call = ["merge", "--quiet", f"+models.sources={flow(entries)}", "data=text"]
    call += [f"data.{split}={work}/tasks/{{task}}-{split}.jsonl" for split in ("train", "test")]
    call += [f"data.max_length={LENGTH}", f"data.images_per_task={images}", *METHODS[method]]
    if method in WITH_BASE:
        call.append(f"models.base={given.encoder}")
    call += [f"seed={seed}", "resume=true", "hardware.threads=1", f"output.dir={folder}"]
    if code := fsmerge(call):
        raise SystemExit(f"{key}: exit code {code}")
    found = row(folder, group, images, method, METHODS[method][1:])
    add(given.rows, found)
    sys.stderr.write(
        f"{group} {images} {method} seed {seed}: {relative([found]):.1f} %, {found['seconds']:.0f} s\n"
    )


def write_page(found: Sequence[Row], path: Path) -> None:
    """Write the page: one table per group and number of sentences; what stands behind them stays."""
    cells: dict[Cell, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for own in found:
        cells[own["group"], own["images"]][own["method"]].append(own)
    order = sorted(cells, key=lambda cell: (cell[0], int(cell[1])))
    tables = (results_table(cell, cells[cell], "kd", "sentences") for cell in order)
    write_above_notes(path, [TITLE, paragraph(HEAD), *tables])
