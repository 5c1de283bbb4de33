"""Made-up contents of evaluation.json and example images for the report page; no run is needed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from fsmerge_cli.evaluation.metrics import interval
from fsmerge_cli.evaluation.predictions import Example, Prediction

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=//evil.example/x onerror=alert(1)>',
    "שלום العربية \u202e",
    "名前 的 任務 {{ 7 * 7 }} ${x} </style></title>",
    "n" * 80,
)
CERTIFICATE = {"what": "a = b", "status": "holds", "error": 1e-7, "tolerance": 1e-3}


def task_score(correct: int, count: int = 200, own: float = 0.95) -> dict[str, Any]:
    share = correct / count
    return {
        "count": count,
        "top1": share,
        "interval": list(interval(correct, count)),
        "top5": None,
        "loss": 0.3,
        "calibration_error": 0.02,
        "relative": share / own,
    }


def row(tasks: Sequence[str], correct: int, *, single: bool = False, labelled: bool = True) -> dict[str, Any]:
    share = 1 / len(tasks)
    chosen = {task: {other: round(100 * share) + 20 * (other == task) for other in tasks} for task in tasks}
    return {
        "tasks": {task: task_score(correct) for task in tasks} if labelled else {},
        "mean_top1": correct / 200 if labelled else None,
        "mean_relative": correct / 190 if labelled else None,
        "joint_top1": {} if single or not labelled else {"softmax": correct / 300, "logits": correct / 310},
        "temperatures": {} if single else dict.fromkeys(tasks, 1.0),
        "feature_error": dict.fromkeys(tasks, 0.1),
        "feature_cosine": dict.fromkeys(tasks, None),
        "feature_cka": dict.fromkeys(tasks, 0.9),
        "chosen_tasks": {} if single else {"softmax": chosen, "logits": chosen},
    }


def rows(tasks: Sequence[str], labelled: bool = True) -> dict[str, Any]:
    sources = {task: row([task], 190, single=True, labelled=labelled) for task in tasks}
    others = {"ensemble": 190, "average": 61, "merged": 173}
    return sources | {name: row(tasks, correct, labelled=labelled) for name, correct in others.items()}


def class_results(labels: Sequence[str], number: int) -> dict[str, Any]:
    """Few classes with a confusion matrix, or, for every other task, 40 classes without one."""
    names = list(labels) if number % 2 == 0 else [f"class {i}" for i in range(40)]
    size = len(names)
    bins = [
        {"images": 10 + 5 * i, "confidence": (i + 0.5) / 15, "accuracy": ((i + 0.5) / 15) ** 1.5}
        for i in range(3, 15)
    ]
    return {
        "labels": names,
        "images": [20] * size,
        "correct": [20 - i % 7 for i in range(size)],
        "source_correct": [19 - i % 3 for i in range(size)],
        "confusion": [[16 if i == j else 4 * (j == (i + 1) % size) for j in range(size)] for i in range(size)]
        if size <= 30
        else None,
        "reliability": bins,
        "source_reliability": [own | {"accuracy": own["confidence"]} for own in bins[4:]],
    }


def joint_confusion(tasks: Sequence[str]) -> dict[str, Any]:
    classes = [{"task": task, "label": label} for task in tasks for label in "abcd"]
    return {
        "classes": classes,
        "counts": [[9 if i == j else (i * j) % 3 for j in range(len(classes))] for i in range(len(classes))],
    }


def evaluation(
    tasks: Sequence[str] = ("low", "high"),
    *,
    tested: bool = True,
    labelled: bool = True,
    steps: int = 200,
    layers: int = 4,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Content that the schema accepts."""
    similarity = {"cka": 0.9, "cosine": None, "error": None}
    depth = [f"blocks.{i}" for i in range(layers)]
    labels = [*HOSTILE, "a", "b", "c", "d", "e"]
    pairs = [{"label": x, "prediction": y, "count": 3, "source": 1} for x, y in itertools.pairwise(labels)]
    return {
        "schema_version": 4,
        "method": "fs_merge",
        "tasks": list(tasks),
        "rows": rows(tasks, labelled) if tested else {},
        "similarity": {
            task: {name: {**similarity, "cka": (i + n) % 11 / 10} for i, name in enumerate(depth)}
            for n, task in enumerate(tasks)
        }
        if tested
        else {},
        "predictions": {
            task: {"images": 200, "same_as_source": 170, "pairs": pairs if labelled else []} for task in tasks
        }
        if tested
        else {},
        "classes": {task: class_results(labels, n) for n, task in enumerate(tasks)} if tested and labelled else {},
        "joint_confusion": joint_confusion(tasks) if tested and labelled and 1 < len(tasks) < 4 else None,
        "training": {
            "start_error": dict.fromkeys(tasks, 0.5),
            "curve": [{"step": s + 1, "loss": 2 * math.exp(-s / 40) + 0.01} for s in range(steps)],
            "final_loss": 0.01 if steps else None,
            "validation": [{"step": s, "loss": 3 / s} for s in range(10, steps + 1, 10)],
            "validation_parts": [
                {"step": s, "features": 2 / s, "logits": 1 / s} for s in range(10, steps + 1, 10)
            ],
            "chosen_step": steps,
        },
        "certificates": {"reloaded": CERTIFICATE, "permuted": {"what": "c = d", "status": "not applicable"}},
        "facts": {"condition_number": 1234567.0},
        "notes": list(notes),
        "cost": {
            "seconds": {"fit": 3.2, "evaluate": 1.0},
            "steps": steps,
            "trained_parameters": 12345,
            "merged_parameters": 6789,
            "images": 100,
            "images_per_second": None,
            "peak_memory_bytes": None,
            "serving": {
                "images": 32,
                "merged_bytes": 44_000_000,
                "sources_bytes": 88_000_000,
                "merged_ms": 1.25,
                "sources_ms": 2.5,
            },
        },
        "provenance": {
            "command": "fsmerge merge +models=pair \"x=</pre><script>alert('no')</script>\"\x1b[2J",
            "seed": 0,
            "device": "cpu",
            "processes": 1,
            "threads": 1,
            "versions": {"python": "3.11"},
            "sources": [{"name": task, "origin": f"/far/{task}", "sha256": "0" * 64} for task in tasks],
            "images_sha256": "1" * 64,
            "tests_sha256": "2" * 64,
        },
        "config": {"models": {"sources": [{"name": task, "labels": labels} for task in tasks]}, "seed": 0},
    }


def examples(tasks: Sequence[str], labels: Sequence[str] = HOSTILE) -> list[Example]:
    """Example images: grey and colour, small and large, with and without a label."""
    random = torch.Generator().manual_seed(0)
    found = []
    for index, task in enumerate(tasks):
        size = (1, 8, 8) if index % 2 else (3, 224, 180)
        for n in range(6):
            pixels = torch.randint(0, 256, size, generator=random, dtype=torch.uint8)
            truth = labels[n % len(labels)] if n < 5 else None
            predictions = (
                Prediction(labels[n % len(labels)], 0.9),
                Prediction(labels[(n + n % 2) % len(labels)], 0.4),
            )
            found.append(Example(task, pixels, truth, *predictions, ("other", "x") if n == 2 else None))
    return found


def evaluated() -> dict[str, Any]:
    """Content of `fsmerge evaluate`: one task of a third-party model, without the parts of a merge."""
    content = evaluation(("pets",), steps=0)
    merged = row(("pets",), 150, single=True)
    merged["tasks"]["pets"]["relative"] = merged["mean_relative"] = None
    merged |= {name: {} for name in ("feature_error", "feature_cosine", "feature_cka")}
    return content | {
        "method": "unknown",
        "rows": {"merged": merged},
        "similarity": {},
        "predictions": {},
        "classes": {
            "pets": class_results(("cat", "dog", "bird"), 0) | {"source_correct": None, "source_reliability": None}
        },
        "cost": content["cost"] | {"serving": None},
        "certificates": {},
        "facts": {},
    }


CASES: dict[str, tuple[dict[str, Any], list[Example]]] = {
    "plain": (evaluation(), examples(("low", "high"), ("0", "1", "2"))),
    "hostile": (evaluation(HOSTILE, notes=HOSTILE), examples(HOSTILE)),
    "eight": (
        evaluation([f"a task with quite a long name {n}" for n in range(8)], layers=24, steps=500),
        examples([f"a task with quite a long name {n}" for n in range(8)]),
    ),
    "unlabelled": (evaluation(labelled=False), examples(("low", "high"))),
    "evaluated": (evaluated(), []),
    "nothing": (evaluation(tested=False, steps=0, notes=["no data: nothing was evaluated"]), []),
}
