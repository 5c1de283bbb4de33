"""The tasks and sources of the real check of text encoders: fine-tuned MiniLMs, and one BERT from random weights.

--sentences: UCI "Sentiment Labelled Sentences" (Kotzias et al. 2015), one amazon.jsonl, imdb.jsonl and yelp.jsonl
of 1,000 sentences each with `text` and `label`. --encoder: a folder of all-MiniLM-L6-v2 (a BERT of 6 layers, 384
wide) with its tokenizer. Every task is split into 600 sentences for training and 400 for testing (of `domain`:
1,800 and 1,200), in the order of a hash of the text. The sources are made by `fsmerge finetune`, in the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from fsmerge_cli.cli import main as fsmerge

DOMAINS = ("amazon", "imdb", "yelp")
"""Sentences of three sites, negative or positive."""

DOMAIN = "domain"
"""The task of telling which site a sentence is from."""

TRAINING = 600
"""Sentences of a site for training."""

SCRATCH = (
    "{family: bert, model_type: bert, vocab_size: 30522, hidden_size: 384, layers: 6, heads: 12, "
    "intermediate_size: 1536, positions: 512, types: 2}"
)
"""The architecture of all-MiniLM-L6-v2."""

LENGTH = 48
"""Tokens of a text, at most; 1.1 % of the sentences are longer."""

STEPS = {"pretrained": 150, "random": 300}
"""Training steps of 32 sentences, by start."""

RATES = {"pretrained": 1e-4, "random": 5e-4}


def table(task: str, split: str, sentences: Path, work: Path) -> Path:
    """A JSON Lines file of a task's texts and labels."""
    path = work / "tasks" / f"{task}-{split}.jsonl"
    if not path.is_file():
        rows = [
            row for domain in DOMAINS if task in (domain, DOMAIN) for row in _rows(domain, task, split, sentences)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in _shuffled(rows)))
    return path


def _rows(domain: str, task: str, split: str, sentences: Path) -> Sequence[dict[str, str]]:
    lines = (sentences / f"{domain}.jsonl").read_text().splitlines()
    rows = _shuffled([json.loads(line) for line in lines])
    chosen = rows[:TRAINING] if split == "train" else rows[TRAINING:]
    return [{"text": row["text"], "label": domain if task == DOMAIN else row["label"]} for row in chosen]


def _shuffled(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return sorted(rows, key=lambda row: hashlib.sha256(row["text"].encode()).hexdigest())


def ensure(task: str, sentences: Path, encoder: Path, work: Path) -> Path:
    """The folder of a source, trained where it is missing: `domain` from random weights, others from MiniLM."""
    folder, start = work / "sources" / task, "random" if task == DOMAIN else "pretrained"
    if not (folder / "model.safetensors").is_file():
        train, test = (table(task, split, sentences, work) for split in ("train", "test"))
        own = [f"model.checkpoint={encoder}"]
        if start == "random":
            own = [
                f"model.arch={SCRATCH}",
                "model.start=random",
                f"model.tokenizer={encoder}",
                "training.head_steps=0",
            ]
        call = ["finetune", *own, f"model.task={task}", "data=text", f"data.train={train}", f"data.test={test}"]
        call += [f"data.max_length={LENGTH}", "data.augment=strong", f"training.steps={STEPS[start]}"]
        call += [f"training.lr={RATES[start]}", "training.batch_size=32", "hardware.threads=1", "resume=true"]
        if code := fsmerge([*call, f"output.dir={folder}"]):
            raise SystemExit(f"source {task}: exit code {code}")
    return folder
