"""The metrics of a finished run by name, as `fsmerge compare` sorts and shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsmerge_cli.runs.finetuned import METHOD

JOINT = {"joint": "softmax", "joint_calibrated": "softmax_calibrated", "joint_logits": "logits"}
"""Metrics of joint accuracy (task not given), and the protocols that evaluation.json calls them by."""

TASK = ("top1", "top5", "loss", "calibration_error", "relative")
"""The metrics of one task."""

NUMBER, COLUMNS = ("pearson", "spearman", "loss", "relative"), ("top1.", "pearson.")
"""Metrics of one task that predicts a number; those of tasks that are columns of the table."""

EMPTY: Mapping[str, Any] = {"tasks": {}, "mean_top1": None, "mean_relative": None, "joint_top1": {}}
"""The row of a run without an evaluation."""


def row_of(evaluation: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scores of the written model: a source's row has its name."""
    name = evaluation["tasks"][0] if evaluation["method"] == METHOD else "merged"
    found: Mapping[str, Any] = evaluation["rows"].get(name, EMPTY)
    return found


def metrics_of(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of a run by name, those that are columns of the table first."""
    rows = evaluation["rows"]
    cost = evaluation["cost"]
    memory = cost["peak_memory_bytes"]
    row = row_of(evaluation)
    scores, numbers = scores_of(row), row.get("numbers", {})
    return {
        **{f"top1.{task}": scores.get(f"top1.{task}") for task in evaluation["tasks"] if task not in numbers},
        **{f"pearson.{task}": scores.get(f"pearson.{task}") for task in numbers},
        **{name: scores[name] for name in ("mean", "relative", "agreement", *JOINT)},
        "agreement_average": scores_of(rows.get("average", EMPTY))["agreement"],
        "seconds": sum(cost["seconds"].values()),
        "trained_parameters": cost["trained_parameters"],
        "peak_memory_gb": None if memory is None else memory / 1e9,
        **{name: cost.get(name) for name in ("steps", "images", "images_per_second")},
        **{name: value for name, value in scores.items() if "." in name and not name.startswith(COLUMNS)},
    }


def scores_of(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of a row by name: those over all tasks, and NAME.TASK for those of one task."""
    joint = row["joint_top1"]
    found = {
        "mean": row["mean_top1"],
        "relative": row["mean_relative"],
        **{name: joint.get(protocol) for name, protocol in JOINT.items()},
    }
    for task, values in row["tasks"].items():
        found |= {f"{name}.{task}": values.get(name) for name in TASK}
    for task, values in row.get("numbers", {}).items():
        found |= {f"{name}.{task}": values.get(name) for name in NUMBER}
    agreed = {task: own["same"] / own["images"] for task, own in row.get("agreement", {}).items()}
    found["agreement"] = sum(agreed.values()) / len(agreed) if agreed else None
    found |= {f"agreement.{task}": share for task, share in agreed.items()}
    found |= {
        f"neighbours.{task}": own["among"] / own["images"] for task, own in row.get("neighbours", {}).items()
    }
    found |= {f"probe.{task}": own["top1"] for task, own in row.get("probes", {}).items()}
    for name in ("feature_error", "feature_cosine", "feature_cka"):
        found |= {f"{name}.{task}": value for task, value in row.get(name, {}).items()}
    return found
