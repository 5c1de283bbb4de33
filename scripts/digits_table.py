"""The table of docs/results/index.md: average, kd and fs_merge on the digits pair, by images per task and targets.

    python scripts/digits_table.py                    # the whole table
    python scripts/digits_table.py --seeds 0 --images 10

Prints a Markdown table in per cent: mean and standard deviation over seeds of the mean accuracy over tasks and of
the joint accuracy (softmax per head). Every run is one JSON line in --log.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from fsmerge_cli import merge

# Only the loss on features, without augmentation: compares the methods, not their best recipes.
PLAIN: dict[str, Any] = {
    **{
        "logit_weight": 0.0,
        "outlier_exposure": 0.0,
        "augment": "none",
        "mixup": 0.0,
        "lr": 1e-3,
        "start": "first",
    },
    **{"optimizer": "adamw", "batch_size": 128, "steps": 1000},
}
FOLDED = {**PLAIN, "finetune_share": 0.0}

METHODS: dict[str, dict[str, Any]] = {
    "average": {"name": "average"},
    "kd, own": {"name": "kd", "targets": "own", **PLAIN},
    "kd, all": {"name": "kd", "targets": "all", **PLAIN},
    "fs_merge, own": {"name": "fs_merge", "targets": "own", **FOLDED},
    "fs_merge, all": {"name": "fs_merge", "targets": "all", **FOLDED},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="digits_mlp_pair")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--images", nargs="+", default=["10", "50", "all"])
    parser.add_argument("--log", type=Path, default=Path("outputs/digits_table.jsonl"))
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.log.parent.mkdir(parents=True, exist_ok=True)
    cells: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    ensemble: tuple[float, float] = (0.0, 0.0)
    with options.log.open("w") as log:
        for seed in options.seeds:
            for images in options.images:
                data = {"name": "digits", "images_per_task": images if images == "all" else int(images)}
                for label, method in METHODS.items():
                    result = merge(options.models, method=method, data=data, seed=seed)
                    score, upper = result.scores["merged"], result.scores["ensemble"]
                    cells[label, images].append((score.mean or 0.0, score.joint["softmax"]))
                    ensemble = (upper.mean or 0.0, upper.joint["softmax"])
                    seconds = result.cost["seconds"]["fit"]
                    row = {"seed": seed, "images": images, "method": label, "seconds": seconds}
                    log.write(json.dumps({**row, "mean": score.mean, **score.joint}) + "\n")
                    sys.stderr.write(f"{row}\n")
    print(table(cells, options.images, ensemble))


def table(
    cells: dict[tuple[str, str], list[tuple[float, float]]], images: list[str], ensemble: tuple[float, float]
) -> str:
    headers = [f"{n} images: {metric}" for n in images for metric in ("mean", "joint")]
    lines = ["| method | " + " | ".join(headers) + " |", "|---" * (len(headers) + 1) + "|"]
    for label in METHODS:
        values = [spread([run[i] for run in cells[label, n]]) for n in images for i in (0, 1)]
        lines.append(f"| {label} | " + " | ".join(values) + " |")
    values = [f"{100 * share:.1f}" for _ in images for share in ensemble]
    return "\n".join([*lines, "| ensemble of the sources | " + " | ".join(values) + " |"])


def spread(values: list[float]) -> str:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * std:.1f}"


if __name__ == "__main__":
    main()
