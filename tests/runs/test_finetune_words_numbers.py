"""`fsmerge finetune` of the tags of words and of numbers: losses, the written folder, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fsmerge_cli import merge
from fsmerge_cli.cli import main
from fsmerge_cli.common.inputs import READ, stack
from fsmerge_cli.common.seeding import derive, generator
from fsmerge_cli.data import DATASETS, Task, labelled
from fsmerge_cli.data.readers import reader
from fsmerge_cli.data.text.words import Words
from fsmerge_cli.training.criterion import Criterion, count, parts_of, with_label
from tests.support.encoders import (
    WORD_TAGS,
    encoder_source,
    save_encoder,
    sentence_source,
    texts,
    transformers_model,
)
from tests.support.finetuning import StopError, stop_after
from tests.support.text_finetuning import ARCH, label_folder, ordinary_loop, small_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return label_folder(tmp_path_factory.mktemp("texts") / "own")


@pytest.mark.parametrize("variant", ["BERT, tokens", "DistilBERT, tokens"])
def test_the_loss_of_tags_is_that_of_transformers(variant: str) -> None:
    source = encoder_source(variant, 1)
    random, inputs = torch.Generator().manual_seed(2), texts(source.arch, 6)
    labels = torch.randint(-1, 3, inputs.mask.shape, generator=random)
    ids = torch.where(inputs.mask != 0, inputs.tensors["input_ids"].clamp(min=2), 0)
    ignored = torch.where((labels < 0) | (inputs.mask == 0), -100, labels)
    expected = transformers_model(source)(input_ids=ids, attention_mask=inputs.mask, labels=ignored).loss
    own = inputs.replaced({"input_ids": ids})
    assert source.head is not None
    module = source.family.skeleton(source.arch)
    module.load_state_dict(dict(source.weights), assign=True)
    logits, target = source.head(module(own)), labels[own.tensors[READ] != 0]
    assert count(target) == int((ignored >= 0).sum()) < len(target)
    assert (Criterion().loss(logits, target) / count(target)).item() == pytest.approx(expected.item(), rel=1e-5)
    parts = parts_of(own, target, 4)
    assert [len(part) for part in parts] == [int(own.mask[:4].sum()), int(own.mask[4:].sum())]
    features, kept = with_label(logits, target)
    assert torch.equal(kept, target[target >= 0])
    assert torch.equal(features, logits[target >= 0])


@pytest.mark.full
def test_a_number_is_learned_in_units_of_its_labels_and_written_in_their_own(folder: Path) -> None:
    data = {"images_per_task": 20, "test_share": 0.0}
    done = small_text(folder, "rating", training={"head_steps": 0, "label_smoothing": 0.3}, data=data)
    start = small_text(folder, "rating", training={"head_steps": 1, "steps": 0, "head_lr": 1e-12}, data=data)
    backbone = start.backbone().requires_grad_(True).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, "finetune", "head"))
        head = torch.nn.Linear(16, 1)
    found = DATASETS["text"](root=str(folder), test_share=0.0).build(  # type: ignore[call-arg]
        "train", Task("rating", None, number=True), reader(start.source)
    )
    assert found is not None
    assert found.values is not None
    rows = sorted(torch.randperm(len(found), generator=generator(0, "finetune", "images")).tolist()[:20])
    inputs: Any = stack([found[row][0] for row in rows])
    labels = torch.tensor([found.values[row] for row in rows], dtype=torch.float64)
    mean, std = labels.mean(), labels.std(correction=0)
    targets, whole = ((labels - mean) / std).float(), torch.nn.Sequential(backbone, head)
    losses = ordinary_loop(whole, inputs, 20, 6, lambda found, batch: F.mse_loss(found[:, 0], targets[batch]))
    assert done.trace.loss == pytest.approx(losses, rel=1e-4)
    assert done.source.head is not None
    assert (done.source.head.regression, done.source.labels) == (True, ("value",))
    with torch.no_grad():
        own = done.source.head(done.backbone()(inputs))
        torch.testing.assert_close(own, head(backbone(inputs)) * std.float() + mean.float(), rtol=1e-3, atol=1e-3)
    guessed = (
        "task 'rating': its labels are numbers and not all of them whole, so that a number is predicted "
        "(regression); pass model.predicts=class if they are classes"
    )
    assert guessed in done.notes


STARTS = ["BERT", "RoBERTa", "DistilBERT", "ELECTRA", "ModernBERT", "BERT, tokens"]


@pytest.mark.full
@pytest.mark.parametrize("variant", STARTS)
@pytest.mark.parametrize("task", ["letter", "rating"])
def test_the_written_folder_loads_with_transformers_and_is_a_source(
    variant: str, task: str, folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

    from fsmerge_cli import load_source

    start = save_encoder(tmp_path / "start", sentence_source(variant, 1, ("a", "b", "c")))
    done = small_text(folder, task, {"checkpoint": str(start)}, output=tmp_path / "out")
    auto = AutoModelForTokenClassification if task == "letter" else AutoModelForSequenceClassification
    classifier = auto.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    words = ("the", "unbelievable", "cake", "was", "not", "bad")
    inputs = tokenizer([" ".join(words)], return_tensors="pt")
    if variant in ("DistilBERT", "RoBERTa"):
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        logits = classifier(**inputs).logits[0]
    own: Any = stack([reader(done.source)(Words(words))])
    if task == "letter":
        logits = logits[own.tensors[READ][0] != 0]
        assert (len(logits), tuple(classifier.config.id2label.values())) == (6, ("A", "E", "O"))
    else:
        assert (classifier.config.num_labels, classifier.config.problem_type) == (1, "regression")
    assert done.source.head is not None
    with torch.no_grad():
        found = done.source.head(done.backbone()(own))
    torch.testing.assert_close(logits.reshape(found.shape), found, rtol=1e-4, atol=1e-4)
    again = load_source(tmp_path / "out", name=task)
    assert (again.labels, again.arch) == (done.source.labels, done.source.arch)
    assert again.head is not None
    assert again.head.regression is (task == "rating")


@pytest.mark.full
@pytest.mark.parametrize("task", ["letter", "rating"])
def test_texts_read_on_demand_and_a_resumed_run_give_the_same_bytes(
    task: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"data": {"augment": "strong"}}
    small_text(folder, task, output=tmp_path / "kept", **options)
    for count_of_steps in (3, 7):
        part = tmp_path / f"stopped {count_of_steps}"
        with pytest.raises(StopError):
            small_text(
                folder, task, output=part, checkpoint_every=1, progress=stop_after(count_of_steps), **options
            )
        small_text(folder, task, output=part, resume=True, **options)
        assert (part / "model.safetensors").read_bytes() == (tmp_path / "kept/model.safetensors").read_bytes()
    monkeypatch.setattr(labelled, "MAX_KEPT_BYTES", 0)
    small_text(folder, task, output=tmp_path / "read", **options)
    assert (tmp_path / "read/model.safetensors").read_bytes() == (tmp_path / "kept/model.safetensors").read_bytes()


@pytest.mark.full
def test_two_trained_classifiers_of_words_are_merged_and_measured_by_words(folder: Path, tmp_path: Path) -> None:
    sources = []
    for task in WORD_TAGS:
        done = small_text(folder, task, output=tmp_path / task, training={"steps": 60, "lr": 0.01})
        row = json.loads((tmp_path / task / "evaluation.json").read_text())["rows"][task]["tasks"][task]
        lines = [json.loads(line) for line in (folder / task / "test.jsonl").read_text().splitlines()]
        assert row["count"] == sum(len(line["tokens"]) for line in lines)
        assert row["top1"] > 0.6
        assert done.source.arch.pooling == "tokens"
        assert len(done.notes) == len({*done.notes})
        sources.append({"name": task, "checkpoint": str(tmp_path / task)})
    result = merge(sources, method="regmean", data={"name": "text", "root": str(folder), "images_per_task": 10})
    own = result.evaluation()["rows"]["ensemble"]["tasks"]
    assert own["length"]["top1"] > 0.6


def test_tags_and_numbers_by_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    arch = "model.arch={" + ",".join(f"{key}:{value}" for key, value in ARCH.items()) + "}"
    start = [arch, "model.start=random", f"model.tokenizer={folder.parent / 'tokenizer'}", "hardware=cpu"]
    data = ["data=text", f"data.root={folder}", "training.head_steps=2", "training.steps=2"]
    for task, said in (("letter", "test words\n"), ("stars", "Spearman's")):
        predicts = ["model.predicts=number"] * (task == "stars")
        assert main(["finetune", *start, *data, *predicts, f"model.task={task}", f"output.dir={task}"]) == 0
        out, err = capsys.readouterr()
        assert said in out
        assert "image" not in out + err
        assert "image" not in Path(task, "README.md").read_text().replace("images_per_task", "")
    assert "3 classes of every word." in Path("letter/README.md").read_text()
    assert "It predicts a number (value)." in Path("stars/README.md").read_text()
    assert main(["predict", "letter", "a cake"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-2:]] == ["a", "cake"]
    assert main(["predict", "stars", "a cake", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)[0]["value"], float)
    again = ["finetune", *start, *data, "model.task=letter", "output.dir=letter", "resume=true"]
    assert main(again) == 0
    assert "already finished" in capsys.readouterr().out
