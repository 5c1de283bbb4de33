"""A head of one logit decides at 0; models of several labels per image and of numbers are refused everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsmerge_cli import evaluate, load_merged, load_source, merge
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import DataError, SourceError
from fsmerge_cli.data import Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images.tensors import Tensors
from fsmerge_cli.data.matching import of_task
from fsmerge_cli.evaluation.scoring import task_score
from fsmerge_cli.runs.finetune_request import load_start, request
from fsmerge_cli.training.objective import TEMPERATURE, confidence_penalty, divergence
from fsmerge_cli.training.teachers import network
from tests.support.sources import mlp_source
from tests.support.third_party import PIXELS, hugging_face

MLP = {"family": "mlp", "input_size": [1, 4, 4], "widths": [6, 5]}
NOTE = "'{0}': its head has one logit, read as two classes: '{2}' above 0, '{1}' at 0 and below"


def binary(folder: Path, name: str = "a", seed: int = 3, bias: bool = True, **keys: Any) -> dict[str, Any]:
    """The entry of an MLP with a head of one logit."""
    source = mlp_source(name, [6, 5], seed)
    random = torch.Generator().manual_seed(seed)
    head = {"head.weight": 3 * torch.randn(1, 5, generator=random)}
    features = network(source)(pixels(64))
    if bias:  # so that both classes occur
        head["head.bias"] = -(features @ head["head.weight"].T).median().reshape(1)
    save_file({**source.weights, **head}, folder / f"{name}.safetensors")
    return {"name": name, "checkpoint": str(folder / f"{name}.safetensors"), "arch": MLP, **PIXELS, **keys}


def pixels(count: int) -> Tensor:
    """Images whose values are exact in 8 bits."""
    random = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, 1, 4, 4), generator=random) / 255


def logit(entry: dict[str, Any], images: Tensor) -> Tensor:
    """The logit of the file itself, [n]."""
    tensors = load_file(entry["checkpoint"])
    features = network(load_source({k: v for k, v in entry.items() if k != "labels"}))(images)
    return F.linear(features, tensors["head.weight"], tensors.get("head.bias"))[:, 0]


@pytest.mark.parametrize("bias", [True, False])
def test_one_logit_is_two_logits_of_which_one_is_0(bias: bool, tmp_path: Path) -> None:
    entry = binary(tmp_path, bias=bias)
    found, images = load_source(entry), pixels(64)
    assert found.head is not None
    logits, z = found.head(network(found)(images)), logit(entry, images)
    torch.testing.assert_close(logits, torch.stack([torch.zeros_like(z), z], 1))
    torch.testing.assert_close(logits.softmax(1)[:, 1], z.sigmoid())
    assert torch.equal(logits.argmax(1), (z > 0).long())
    assert (found.labels, found.head.named) == (("0", "1"), False)
    assert found.notes == (NOTE.format("a", "0", "1"),)


def test_losses_and_temperatures_of_one_logit_are_those_of_sigmoid_and_bernoulli() -> None:
    """The cross-entropy, the distillation and the temperature need no code for one logit."""
    random = torch.Generator().manual_seed(0)
    z, w = (3 * torch.randn(40, generator=random, dtype=torch.double) for _ in range(2))
    label = torch.randint(0, 2, (40,), generator=random)
    two, other = (torch.stack([torch.zeros_like(x), x], 1) for x in (z, w))
    score = task_score(two, label)
    assert score.top1 == ((z > 0).long() == label).double().mean().item()
    assert score.loss == pytest.approx(F.binary_cross_entropy_with_logits(z, label.double()).item())
    p, q = (
        torch.distributions.Bernoulli(logits=w / TEMPERATURE),
        torch.distributions.Bernoulli(logits=z / TEMPERATURE),
    )
    expected = torch.distributions.kl_divergence(p, q) * TEMPERATURE**2
    torch.testing.assert_close(divergence(two, other), expected)
    uniform = torch.distributions.Bernoulli(torch.full((40,), 0.5, dtype=torch.double))
    expected = torch.distributions.kl_divergence(uniform, torch.distributions.Bernoulli(logits=z)).sum()
    torch.testing.assert_close(confidence_penalty(two), expected)


@pytest.mark.full
@pytest.mark.parametrize("labels", [None, ["cat", "dog"]])
def test_the_accuracy_of_a_merge_and_of_evaluate_is_that_of_the_threshold(
    labels: list[str] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {} if labels is None else {"labels": labels}
    entries = [binary(tmp_path, name, seed, **keys) for seed, name in enumerate("ab")]
    names = labels or ["0", "1"]
    images, expected = pixels(40), {}
    for entry in entries:  # a quarter of the labels is wrong
        right = (logit(entry, images) > 0).long()
        truth = torch.where(torch.arange(40) % 4 == 0, 1 - right, right)
        assert 0 < right.sum() < 40
        stored = np.array(names)[truth] if labels else truth.numpy()
        for split in ("train", "test"):
            np.savez(
                tmp_path / f"{entry['name']}_{split}.npz",
                images=(images * 255).round().byte().numpy(),
                labels=stored,
            )
        expected[entry["name"]] = 0.75
    data = {"name": "tensors", **{s: str(tmp_path / f"{{task}}_{s}.npz") for s in ("train", "test")}}
    found = merge(entries, method="average", data={**data, "images_per_task": 0}, output=tmp_path / "out")
    assert {name: found.scores[name].tasks[name].top1 for name in "ab"} == expected
    notes = [NOTE.format(name, *names) for name in "ab"]
    assert [note for note in found.notes if "logit" in note] == notes
    evaluation = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert [note for note in evaluation["notes"] if "logit" in note] == notes
    written = load_merged(tmp_path / "out")
    assert written.labels == {"a": tuple(names), "b": tuple(names)}
    assert written.heads["a"].weight.shape == (2, 5)
    again = evaluate(tmp_path / "out", data=data, sources=True)
    assert {name: again.scores[name].tasks[name].top1 for name in "ab"} == expected
    reading = {"task": "a", "arch": MLP, **PIXELS, **keys}
    single = evaluate(entries[0]["checkpoint"], data=data, reading=reading)
    assert single.scores["merged"].tasks["a"].top1 == 0.75
    assert [note.removeprefix("'a': ") for note in single.notes if "logit" in note] == [
        note.removeprefix("'a': ") for note in notes[:1]
    ]


def test_check_names_the_reading_of_one_logit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("ab"):
        binary(tmp_path, name, seed)
    arch = "{family:mlp,input_size:[1,4,4],widths:[6,5]}"
    entries = ",".join(f"{{name:{n},checkpoint:{tmp_path}/{n}.safetensors,arch:{arch}}}" for n in "ab")
    assert main(["check", f"+models.sources=[{entries}]", "method=average"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert NOTE.format("a', 'b", "0", "1") in shown


ONE_NAME = (
    "source 'a': {0}: the head '{1}' has one logit, which decides between two classes, and there is one name, "
    "'cat'. Pass both: models.sources.N.labels=[NAME_BELOW_0,NAME_ABOVE_0]"
)


@pytest.mark.parametrize("where", ["entry", "heads.safetensors", "config.json"])
def test_one_name_for_one_logit_is_refused(where: str, tmp_path: Path) -> None:
    entry = binary(tmp_path)
    name, head = entry["checkpoint"], "head"
    if where == "entry":
        entry["labels"] = ["cat"]
    elif where == "config.json":
        (tmp_path / "config.json").write_text(json.dumps({"label_names": ["cat"]}))
    else:
        tensors = load_file(entry["checkpoint"])
        own = {n.replace("head", "pets"): tensors.pop(n) for n in ("head.weight", "head.bias")}
        save_file(tensors, tmp_path / "model.safetensors")
        save_file(own, tmp_path / "heads.safetensors", {"fsmerge": json.dumps({"labels": {"pets": ["cat"]}})})
        entry["checkpoint"], name, head = str(tmp_path), str(tmp_path), "pets"
    with pytest.raises(SourceError) as error:
        load_source(entry)
    assert str(error.value) == ONE_NAME.format(name, head)


def test_placeholders_of_hugging_face_are_no_names(tmp_path: Path) -> None:
    hugging_face(1, id2label={0: "LABEL_0"}).save_pretrained(tmp_path)
    found = load_source(tmp_path)
    assert found.labels == ("0", "1")
    assert NOTE.format("source", "0", "1") in found.notes


# Several labels per image, and numbers


TARGETS = {
    "multi_label_classification": "several labels per image (multi-label)",
    "regression": "a number per image (regression)",
}


@pytest.mark.full
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("form", ["folder", "module", "heads.safetensors"])
def test_a_model_of_other_targets_is_refused_unless_its_head_is_not_used(
    form: str, kind: str, tmp_path: Path
) -> None:
    module = hugging_face(1, problem_type=kind)
    module.save_pretrained(tmp_path)
    if form == "heads.safetensors":
        save_file({"pets.weight": torch.ones(3, 12)}, tmp_path / "heads.safetensors")
    where = "module ViTForImageClassification" if form == "module" else str(tmp_path)
    entry = {"name": "a", **({"module": module} if form == "module" else {"checkpoint": str(tmp_path)})}
    complaint = (
        f"predicts {TARGETS[kind]}: problem_type in config.json is '{kind}'. fsmerge evaluates and distils one "
        "label per image, the one of the largest logit. Pass a model trained for that, or remove its head from "
        "the file to merge it without one."
    )
    with pytest.raises(SourceError) as error:
        load_source(entry)
    assert str(error.value) == f"source 'a': {where} {complaint}"
    if form == "module":
        return
    with pytest.raises(SourceError) as error:
        load_merged(tmp_path)
    assert complaint in str(error.value)
    start = {"checkpoint": str(tmp_path), "labels": ["x", "y"]}
    assert load_start(request(start, "digits", {}, "cpu", 0, False, False, "60s")).head is None


MANY = "Several labels per image (multi-label) are not supported: one class index or name per image."


@pytest.mark.parametrize(
    "labels",
    [np.eye(4, dtype=np.int64), np.eye(4, dtype=np.float32), np.ones((4, 2), dtype=np.int64), np.eye(4) > 0],
)
def test_a_matrix_of_labels_is_refused(labels: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 4, 4), np.uint8), labels=labels)
    data = Tensors(train=str(tmp_path / "x.npz"))
    for read in (
        lambda: data.build("train", Task("a", ("0", "1")), ToPixels((1, 4, 4))),
        lambda: data.classes(Task("a", None)),
    ):
        with pytest.raises(DataError) as error:
            read()
        assert str(error.value) == (
            f"{tmp_path}/x.npz: 'labels' should be 4 class indices or names, one per image, and is {labels.dtype} "
            f"{list(labels.shape)}. {MANY} Pass data.labels_key=NAME, or another file."
        )


@pytest.mark.parametrize("labels", [[[0, 1], [1]], [["cat"], ["dog"]], [(0, 1), (1, 0)], [{"cat"}, {"dog"}]])
def test_a_list_of_labels_is_refused(labels: list[Any]) -> None:
    with pytest.raises(DataError) as error:
        of_task(Task("a", ("cat", "dog")), labels, None, "here")
    assert str(error.value) == (
        f"here: a label should be a class index or a class name, and one is {str(labels[0])!r}. {MANY} Pass "
        "another column or file of labels."
    )


def test_numbers_that_are_no_classes_are_refused() -> None:
    with pytest.raises(DataError) as error:
        of_task(Task("a", ("cat", "dog")), [0.25, 0.5], None, "here")
    assert str(error.value) == (
        "here: a label should be a class index or a class name, and one is '0.25'. Pass another column or file of "
        "labels."
    )


class Listed:
    """A data set of torchvision that lists nothing: its targets are read one by one."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        return Image.new("L", (4, 4)), self.target


@pytest.mark.parametrize("target", [torch.ones(40), 0.25, {"a": 1}, [0, 1], "1", torch.tensor(0.5)])
def test_targets_of_torchvision_that_are_no_class_are_refused(target: Any) -> None:
    from fsmerge_cli.data.images.torchvision import _classes

    with pytest.raises(DataError) as error:
        _classes(Listed(target), "data=torchvision: CelebA")
    assert str(error.value) == (
        f"data=torchvision: CelebA has no class indices ({type(target).__name__}), so it is not a classification "
        "data set with one label per image. Pass another data.dataset=NAME, or data.args={...} that select class "
        "labels."
    )


@pytest.mark.parametrize("target", [1, torch.tensor(1), np.int64(1), True])
def test_targets_of_torchvision_that_are_a_class_are_read(target: Any) -> None:
    from fsmerge_cli.data.images.torchvision import _classes

    assert _classes(Listed(target), "here") == [1, 1]
