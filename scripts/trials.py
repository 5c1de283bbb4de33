"""Trials of a method on the benchmark's tuning groups: errors that are finer than an accuracy.

python -m scripts.trials --groups greek_cyrillic --label "30 views" name=fs_closed_form views=30

python -m scripts.trials --table

Appends one line per group, number of images and seed to docs/results/trials/trials.jsonl, and prints it.
`accuracy`, `joint`: as in quality.md (joint by softmax), of the merged model and of the ensemble. On the test
images of every task: `agreement` with the source's predictions in per cent, `divergence` (KL divergence of the
merged model's predictions from the source's, in nats), `error` and `error_elsewhere`: squared error of the
source's features relative to their variance, on the task's own images and on those of the other tasks.
`seconds`: CPU time of the fit, one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from fsmerge_cli.checkpoints.api import load_all
from fsmerge_cli.common.progress import silent
from fsmerge_cli.models.source import Source
from fsmerge_cli.runs.merge import problem_of
from fsmerge_cli.runs.request import request
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import network
from scripts.benchmark.sources import FOR_TUNING, GROUPS, prepare

RESULTS = Path("docs/results/trials/trials.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", default="digits_capitals,greek_cyrillic", help="comma-separated tuning groups")
    parser.add_argument("--images", default="50", help="comma-separated: unlabelled images per task")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--label", help="name of the trial")
    parser.add_argument("--table", action="store_true", help="only print all trials as a Markdown table")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="options of the method, with its name")
    given = parser.parse_args()
    if given.table:
        sys.stdout.write(table([json.loads(line) for line in RESULTS.read_text().splitlines()]))
        return
    if not given.label or not given.options:
        parser.error("give --label=NAME and the options of the method, such as name=fs_closed_form views=30.")
    torch.set_num_threads(1)
    options = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in given.options)}
    for group in given.groups.split(","):
        if group not in (*FOR_TUNING, "digits_mlp_pair"):
            parser.error(f"'{group}' is not for tuning; available: {', '.join(FOR_TUNING)}.")
        for images in map(int, given.images.split(",")):
            for seed in map(int, given.seeds.split(",")):
                line = {"trial": given.label, "group": group, "images": images, "seed": seed}
                line |= {"options": options, **trial(group, images, seed, options)}
                RESULTS.parent.mkdir(parents=True, exist_ok=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                sys.stdout.write(json.dumps({k: v for k, v in line.items() if k != "options"}) + "\n")
                sys.stdout.flush()


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """One row per trial and number of images; of several groups their figures side by side."""
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault((line["trial"], line["images"]), []).append(line)
    rows = ["| trial | images | accuracy | joint - ensemble | agreement | divergence | error | seconds |"]
    rows.append("|" + "---|" * 8)
    for (name, images), own in found.items():
        columns = [
            ", ".join(f"{line['accuracy']:.1f}" for line in own),
            ", ".join(f"{line['joint'] - line['ensemble']:+.1f}" for line in own),
            ", ".join(f"{line['agreement']:.1f}" for line in own),
            ", ".join(f"{line['divergence']:.4f}" for line in own),
            ", ".join(f"{line['error']:.4f}" for line in own),
            f"{sum(line['seconds'] for line in own) / len(own):.0f}",
        ]
        rows.append(f"| {name} | {images} | {' | '.join(columns)} |")
    return "\n".join(rows) + "\n"


def trial(group: str, images: int, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """Merge once and measure on the test images."""
    folder, plain = prepare([group]), GROUPS[group] is None
    text = (folder / "models" / f"quality_{group}.yaml").read_text() if not plain else ""
    models = group if plain else yaml.safe_load(text)["sources"]
    data = {"name": "digits" if plain else "glyphs", "images_per_task": images}
    asked = request(models, options, data, {"threads": 1}, seed, False, False, "60s", False, "float32")
    problem, tests, _ = problem_of(asked, load_all(asked.sources, silent), torch.device("cpu"), silent)
    start = time.process_time()
    solution = asked.method.fit(problem)
    seconds = time.process_time() - start
    sets = []
    for own in tests.sets:
        if own is not None:
            pixels, labels = zip(*(own[i] for i in range(len(own))))
            sets.append((torch.stack(pixels).float(), torch.tensor([int(label) for label in labels])))
    return {**measure(problem, solution, sets), "seconds": round(seconds, 1)}


def measure(problem: Problem, solution: Solution, sets: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """The figures of the module docstring."""
    merged = problem.plan.skeleton()
    merged.load_state_dict(dict(solution.weights), assign=True)
    networks = [network(source) for source in problem.sources]
    values: dict[str, list[float]] = {}

    def note(**found: float) -> None:
        for key, value in found.items():
            values.setdefault(key, []).append(value)

    for task, (pixels, labels) in enumerate(sets):
        z = features(merged.eval(), pixels)
        mine = [z @ U.T for U in solution.projectors]
        own = [features(net, pixels) for net in networks]
        a, b = logits(problem.sources, mine), logits(problem.sources, own)
        p, q = a[task].log_softmax(1), b[task].log_softmax(1)
        offset = sum(part.shape[1] for part in a[:task])
        hit, reference = (share(x[task].argmax(1) == labels) for x in (a, b))
        note(accuracy=100 * hit / reference, agreement=100 * share(a[task].argmax(1) == b[task].argmax(1)))
        note(divergence=float((q.exp() * (q - p)).sum(1).mean()))
        note(joint=100 * joint(a, labels + offset), ensemble=100 * joint(b, labels + offset))
        for i, (x, y) in enumerate(zip(mine, own)):
            error = float((x - y).square().sum() / (y - y.mean(0)).square().sum())
            note(**{"error" if i == task else "error_elsewhere": error})
    return {key: round(sum(found) / len(found), 4) for key, found in values.items()}


def features(net: nn.Module, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([net(part) for part in pixels.split(256)])  # type: ignore[no-untyped-call]


def logits(sources: Sequence[Source], outputs: Sequence[Tensor]) -> list[Tensor]:
    found = []
    for source, output in zip(sources, outputs):
        if source.head is None:
            raise SystemExit(f"{source.name} has no head")
        found.append(source.head(output))
    return found


def joint(outputs: Sequence[Tensor], truth: Tensor) -> float:
    """Accuracy among the labels of all tasks, one softmax per head."""
    return share(torch.cat([part.softmax(1) for part in outputs], 1).argmax(1) == truth)


def share(hits: Tensor) -> float:
    return float(hits.float().mean())


if __name__ == "__main__":
    main()
