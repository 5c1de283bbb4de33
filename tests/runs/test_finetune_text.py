"""`fsmerge finetune` of text encoders: the loop, the written folder, new poolers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import ConfigError, DataError, SourceError
from fsmerge_cli.common.inputs import stack
from fsmerge_cli.common.seeding import derive, generator
from fsmerge_cli.data import DATASETS, Task, labelled
from fsmerge_cli.data.readers import reader
from fsmerge_cli.runs.finetune import finetune
from fsmerge_cli.runs.finetuned import Finetuned
from fsmerge_cli.training.optimizers import matrices_of
from tests.support.encoders import TOPIC, VARIANTS, save_encoder, sentence_source, with_tokenizer
from tests.support.finetuning import CPU, StopError, stop_after
from tests.support.text_finetuning import ARCH, ordinary_loop

POOLED = [name for name, options in VARIANTS.items() if options.get("pooler", True)]
TEXTS = ["the cake was not bad!", "anna baked the bread and forgot about the ticket"]


def small(model: dict[str, Any] | None = None, **options: Any) -> Finetuned:
    start = {"arch": ARCH, "start": "random"} if model is None or "checkpoint" not in model else {}
    values = {**start, "task": "topic", "labels": "topic", **(model or {})}
    training = {"head_steps": 5, "steps": 10, "lr": 0.003, "batch_size": 8, **options.pop("training", {})}
    data = {"name": "sentences", "images_per_task": 40, **options.pop("data", {})}
    return finetune(values, data=data, training=training, hardware=CPU, **options)


@pytest.mark.full
def test_the_training_equals_an_ordinary_loop() -> None:
    data = {"images_per_task": 30}  # too few for a validation share
    done = small(training={"head_steps": 0, "steps": 6, "label_smoothing": 0.2}, data=data)
    start = small(training={"head_steps": 1, "steps": 0, "head_lr": 1e-12, "weight_decay": 0.0}, data=data)
    backbone = start.backbone().requires_grad_(True).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, "finetune", "head"))
        head = torch.nn.Linear(16, 4)
    texts = DATASETS["sentences"]().build("train", Task("topic", TOPIC), reader(start.source))  # type: ignore[call-arg]
    assert texts is not None
    rows = torch.randperm(len(texts), generator=generator(0, "finetune", "images")).tolist()[:30]
    items, classes = zip(*(texts[row] for row in sorted(rows)))
    inputs: Any = stack(items)
    targets, whole = torch.tensor(classes), torch.nn.Sequential(backbone, head)
    losses = ordinary_loop(
        whole, inputs, 30, 6, lambda found, batch: F.cross_entropy(found, targets[batch], label_smoothing=0.2)
    )
    assert done.trace.loss == pytest.approx(losses, rel=1e-5)
    for name, tensor in backbone.state_dict().items():
        torch.testing.assert_close(done.source.weights[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("variant", POOLED)
def test_the_written_folder_loads_with_transformers_and_is_a_source(variant: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from fsmerge_cli import load_source

    start = save_encoder(tmp_path / "start", sentence_source(variant, 1, ("a", "b", "c")))
    done = small({"checkpoint": str(start)}, output=tmp_path / "out")
    assert done.notes[0].startswith("'topic': the head of the checkpoint is not used: ")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    if variant in ("DistilBERT", "RoBERTa"):  # they have no second text
        inputs.pop("token_type_ids", None)
    own: Any = stack([reader(done.source)(text) for text in TEXTS])
    assert done.source.head is not None
    with torch.no_grad():
        expected = done.source.head(done.backbone()(own))
        torch.testing.assert_close(classifier(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    assert tuple(classifier.config.id2label.values()) == TOPIC
    found = load_source(tmp_path / "out", name="topic")
    assert (found.labels, found.arch) == (TOPIC, done.source.arch)
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in done.source.weights.items())


@pytest.mark.full
@pytest.mark.parametrize("variant", ["BERT", "DistilBERT", "ModernBERT"])
def test_an_encoder_without_a_pooler_gets_a_new_one(variant: str, tmp_path: Path) -> None:
    start = save_encoder(tmp_path, sentence_source(variant, 1, TOPIC))
    tensors = load_file(start / "model.safetensors")
    parts = ("classifier.", "pre_classifier.", "bert.pooler.", "head.")
    save_file({n: t for n, t in tensors.items() if not n.startswith(parts)}, start / "model.safetensors")
    done = small({"checkpoint": str(start)}, training={"steps": 0})
    name = {"BERT": "pooler.dense", "DistilBERT": "pre_classifier", "ModernBERT": "head"}[variant]
    assert done.notes == (f"'topic': its files have no pooler, so that {name} starts from random weights",)
    assert done.source.arch.pooler
    new = f"{name}.dense.weight" if variant == "ModernBERT" else f"{name}.weight"
    assert done.source.weights[new].std() == pytest.approx(0.02, rel=0.3)


@pytest.mark.full
def test_texts_read_on_demand_and_a_resumed_run_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"data": {"augment": "strong"}}
    small(output=tmp_path / "kept", **options)
    with pytest.raises(StopError):
        small(output=tmp_path / "stopped", checkpoint_every=1, progress=stop_after(9), **options)
    small(output=tmp_path / "stopped", resume=True, **options)
    monkeypatch.setattr(labelled, "MAX_KEPT_BYTES", 0)
    small(output=tmp_path / "read", **options)
    kept, read, stopped = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("kept", "read", "stopped"))
    assert kept == read == stopped


@pytest.mark.full
def test_muon_leaves_the_tables_to_adamw() -> None:
    encoder = small(training={"steps": 0}).backbone()
    names = {id(own): name for name, own in encoder.named_parameters()}
    found = {names[id(own)] for own in matrices_of(encoder)}
    assert "encoder.layer.0.intermediate.dense.weight" in found
    assert not [name for name in found if "embeddings" in name]


def test_a_file_of_labelled_texts_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    lines = [f"we {word} the {noun} {i},{label}" for i in range(12) for word, noun, label in WORDS]
    Path("texts").mkdir()
    Path("texts/reviews.csv").write_text("\n".join(["text,label", *lines, *lines[:2]]) + "\n")
    with_tokenizer(Path("tokenizer"))
    arch = "model.arch={" + ",".join(f"{key}:{value}" for key, value in ARCH.items()) + "}"
    short = ("training.head_steps=2", "training.steps=4", "hardware=cpu", "output.dir=out")
    start = ("model.start=random", "model.tokenizer=tokenizer", "model.task=reviews")
    assert main(["finetune", arch, *start, "data=text", "data.root=texts", *short]) == 0
    out, err = capsys.readouterr()
    assert "note: 2 texts left out, identical to another training text\n" in out
    assert "test texts\n" in out
    assert "image" not in out + err
    assert "image" not in Path("out/README.md").read_text().replace("images_per_task", "")
    assert main(["predict", "out", "we baked the bread"]) == 0
    assert "food" in capsys.readouterr().out


WORDS = [("won", "match", "sports"), ("baked", "bread", "food")]

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"training": {"mixup": 0.2, "patch_drop": 0.5}},
        ConfigError,
        "training.mixup, training.patch_drop: only for images, and this model reads texts. Leave it out; "
        "data.augment=strong hides or replaces a random share of the tokens at every step.",
    ),
    (
        {"data": {"augment": "paper"}},
        ConfigError,
        "data.augment=paper is an augmentation of images, and these sources read texts. Pass data.augment=none, "
        "or data.augment=strong (a random share of the tokens is hidden or replaced).",
    ),
    (
        {"data": {"name": "digits"}, "model": {"labels": ("0", "1"), "tokenizer": "TOKENIZER"}},
        ConfigError,
        "data=digits holds images, and these sources read texts. Pass one of hf_text, none, per_task, sentences, "
        "text: data=NAME",
    ),
    (
        {"data": {"name": "text", "root": "."}, "model": {"labels": ("0", "1")}},
        ConfigError,
        "model.tokenizer is missing: random weights of a text encoder need the folder of a tokenizer "
        "(tokenizer.json).",
    ),
    (
        {"model": {"mean": (0.5,)}},
        SourceError,
        "source 'topic': this is a text encoder, for which model.mean means nothing.",
    ),
    (
        {"model": {"arch": {**ARCH, "vocab_size": 20}}},
        SourceError,
        "source 'topic': its tokenizer has 217 tokens, and the table of words 20 rows (vocab_size). Put the "
        "tokenizer of this model beside the weights.",
    ),
    (
        {"model": {"arch": {"family": "mlp", "widths": [4]}, "tokenizer": "TOKENIZER"}},
        ConfigError,
        "model.tokenizer: only for a text encoder with random weights (model.start=random, model.arch={family: "
        "bert, ...}); a checkpoint has its tokenizer beside the weights. Leave it out.",
    ),
    (
        {"model": {"task": None}, "data": {"name": "text", "root": "FOLDER", "images_per_task": "all"}},
        ConfigError,
        "model.task is missing: the file or folder in data.root that holds the texts of the task.",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED, ids=[message[:50] for *_, message in REFUSED])
def test_a_mistake_gets_one_message(
    options: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("topic.txt").write_text("a text\n")
    model = dict(options.get("model", {}))
    if "tokenizer" in model:
        model["tokenizer"] = str(with_tokenizer(tmp_path))
    with pytest.raises(kind) as error:
        small(model, **{key: value for key, value in options.items() if key != "model"})
    assert str(error.value) == message


def test_texts_without_labels_are_refused_in_words_of_texts(tmp_path: Path) -> None:
    (tmp_path / "topic.txt").write_text("one text\nanother text\n")
    tokenizer = str(with_tokenizer(tmp_path / "tokenizer"))
    data = {"name": "text", "root": str(tmp_path)}
    with pytest.raises(DataError) as error:
        small({"labels": ("a", "b"), "tokenizer": tokenizer}, data=data)
    assert str(error.value) == (
        "finetune needs labelled texts, and data=text has some without a label in the training split of task "
        "'topic'. Give every one a label, and pass data.label_column=NAME if no column of labels was found."
    )
