"""Short fine-tuning runs of tiny text encoders on labels of every kind: names, tags of words, numbers."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.runs.finetune import finetune
from fsmerge_cli.runs.finetuned import Finetuned
from fsmerge_cli.training.batches import Order
from tests.support.encoders import tagged_texts, with_tokenizer
from tests.support.finetuning import CPU

ARCH = {
    "family": "bert",
    "model_type": "bert",
    "hidden_size": 16,
    "layers": 1,
    "heads": 4,
    "intermediate_size": 24,
    "positions": 66,
}
NOUNS = ("cake", "bread", "match", "ticket", "novel", "soup")


def ordinary_loop(
    network: nn.Module, inputs: Any, count: int, steps: int, loss_of: Callable[[Tensor, Tensor], Tensor]
) -> list[float]:
    """The losses of a plain training as `finetune` does it (lr 0.003, weight decay 0.05, batches of 8 of `count`).

    loss_of: of the outputs of a batch and its rows.
    """
    parameters = [*network.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.003, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.003, total_steps=steps, anneal_strategy="linear", cycle_momentum=False
    )
    order, losses = Order(torch.arange(count), 8, 0), []
    for step in range(steps):
        batch = order.batch(step)
        loss = loss_of(network(inputs[batch]), batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        cycle.step()
        losses.append(loss.item())
    return losses


def label_folder(root: Path) -> Path:
    """Tags of words in letter/ and length/, numbers in rating.csv and stars.csv, names in topic.csv."""
    tagged_texts(root, 40)
    rows = [(f"the {a} and the {b}", n - m + 0.5) for n, a in enumerate(NOUNS) for m, b in enumerate(NOUNS)]
    write_labels(root / "rating.csv", rows)
    write_labels(root / "stars.csv", [(text, int(value) % 3) for text, value in rows])
    write_labels(root / "topic.csv", [(text, "good" if value > 0 else "bad") for text, value in rows])
    with_tokenizer(root.parent / "tokenizer")
    return root


def write_labels(path: Path, rows: list[tuple[str, Any]]) -> None:
    with path.open("w") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def small_text(root: Path, task: str, model: dict[str, Any] | None = None, **options: Any) -> Finetuned:
    start: dict[str, Any] = {"arch": ARCH, "start": "random", "tokenizer": str(root.parent / "tokenizer")}
    values = {**(start if "checkpoint" not in (model or {}) else {}), "task": task, **(model or {})}
    training = {"head_steps": 4, "steps": 6, "lr": 0.003, "batch_size": 8, **options.pop("training", {})}
    data = {"name": "text", "root": str(root), **options.pop("data", {})}
    return finetune(values, data=data, training=training, hardware=CPU, **options)
