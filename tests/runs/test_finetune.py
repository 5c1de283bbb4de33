"""`fsmerge finetune`: what is trained is what an ordinary loop would train, and the folder is a source."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from fsmerge_cli import evaluate, load_merged
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.cli import main
from fsmerge_cli.cli.finetune_command import HELP
from fsmerge_cli.common.errors import (
    CertificateError,
    ConfigError,
    DataError,
    DivergedError,
    OutputError,
    SourceError,
)
from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.seeding import derive
from fsmerge_cli.data import labelled
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.finetune import finetune
from fsmerge_cli.runs.finetune_request import Start, request
from fsmerge_cli.runs.finetuned import Finetuned
from fsmerge_cli.training import classifier
from fsmerge_cli.training.batches import Order
from tests.support.third_party import hugging_face

pytestmark = pytest.mark.full

MLP = {"family": "mlp", "input_size": [1, 8, 8], "widths": [16, 16]}
VIT = {
    "family": "vit",
    "name": "vit_tiny_patch16_224",
    "args": {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 12, "depth": 2, "num_heads": 3},
}
LOW = ("0", "1", "2", "3", "4")
CPU = {"device": "cpu", "threads": 1}


def tuned(arch: Any = MLP, task: str = "low", labels: tuple[str, ...] = LOW, **options: Any) -> Finetuned:
    model = {"arch": arch, "start": "random", "task": task, "labels": labels, **options.pop("model", {})}
    training = {"head_steps": 20, "steps": 40, "lr": 0.003, **options.pop("training", {})}
    data = {"name": "digits", **options.pop("data", {})}
    return finetune(
        model, data=data, training=training, hardware={**CPU, **options.pop("hardware", {})}, **options
    )


def bytes_of(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model.safetensors").read_bytes(), (folder / "heads.safetensors").read_bytes()


def test_training_all_is_an_ordinary_loop() -> None:
    data = {"images_per_task": 30}  # too few for a validation share
    done = tuned(training={"head_steps": 0, "steps": 7, "batch_size": 8, "label_smoothing": 0.2}, data=data)
    start = tuned(training={"head_steps": 1, "steps": 0, "head_lr": 1e-12, "weight_decay": 0.0}, data=data)
    # The same with torch alone.
    backbone = start.backbone().requires_grad_(True).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, "finetune", "head"))
        head = torch.nn.Linear(16, 5)
    assert done.source.head is not None
    images = labelled_digits(30)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.003, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.003, total_steps=7, anneal_strategy="linear", cycle_momentum=False
    )
    order = Order(torch.arange(30), 8, 0)
    losses = []
    for step in range(7):
        pixels, classes = images[0][order.batch(step)], images[1][order.batch(step)]
        loss = F.cross_entropy(head(backbone(pixels)), classes, label_smoothing=0.2)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        cycle.step()
        losses.append(loss.item())
    assert done.trace.loss == pytest.approx(losses, rel=1e-5)
    for name, tensor in backbone.state_dict().items():
        torch.testing.assert_close(done.source.weights[name], tensor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(done.source.head.weight, head.weight.detach(), rtol=1e-4, atol=1e-5)


def labelled_digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The drawn images in the order in which the pool has them."""
    from fsmerge_cli.common.seeding import generator
    from fsmerge_cli.data import DATASETS, Task
    from fsmerge_cli.data.base import ToPixels

    images = DATASETS["digits"]().build("train", Task("low", LOW), ToPixels((1, 8, 8)))  # type: ignore[call-arg]
    assert images is not None
    rows = torch.randperm(len(images), generator=generator(0, "finetune", "images")).tolist()[:count]
    pairs = [images[row] for row in sorted(rows)]
    return torch.stack([p for p, _ in pairs]), torch.tensor([c for _, c in pairs])


def test_the_head_alone_leaves_the_backbone_as_it_was() -> None:
    before = tuned(training={"head_steps": 1, "steps": 0, "head_lr": 1e-12})
    after = tuned(training={"head_steps": 300, "steps": 0, "head_lr": 0.05})
    assert all(torch.equal(t, before.source.weights[n]) for n, t in after.source.weights.items())
    assert (after.scores["low"].mean or 0) > (before.scores["low"].mean or 0) + 0.2
    assert after.evaluation()["cost"]["trained_parameters"] == 16 * 5 + 5
    assert after.evaluation()["cost"]["steps"] == 300


def test_the_head_comes_first_and_all_weights_after_it() -> None:
    phases: list[str] = []
    done = tuned(progress=lambda event: phases.append(event.phase))
    assert list(dict.fromkeys(phases)) == [
        "look at test images",
        "look at images",
        "read images",
        "features (training)",
        "features (validation)",
        "train the head",
        "train all",
        "evaluate low",
    ]
    assert phases.count("train the head") == 20
    assert phases.count("train all") == 40
    assert len(done.trace.loss) == 60
    assert done.trace.chosen_step > 20
    assert done.trace.validation[0][0] == 1
    assert done.trace.validation[-1][0] == 60


def test_what_gets_no_better_ends_early_with_the_best_weights() -> None:
    done = tuned(training={"head_steps": 0, "steps": 200, "lr": 3.0, "patience": 2})
    assert len(done.trace.loss) < 200
    losses = [loss for _, loss in done.trace.validation]
    best = losses.index(min(losses))
    assert done.trace.chosen_step == done.trace.validation[best][0]
    assert len(losses) == best + 3
    longer = tuned(training={"head_steps": 0, "steps": 200, "lr": 3.0, "patience": None})
    assert len(longer.trace.loss) == 200


def test_images_read_as_they_are_needed_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(output=tmp_path / "kept", data={"augment": "shift"})
    monkeypatch.setattr(labelled, "KEPT", 0)
    tuned(output=tmp_path / "read", data={"augment": "shift"})
    assert bytes_of(tmp_path / "kept") == bytes_of(tmp_path / "read")
    tuned(output=tmp_path / "plain")
    assert bytes_of(tmp_path / "plain") != bytes_of(tmp_path / "read")


class StopError(Exception):
    """As sudden as a kill, but in this process."""


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("stop_after", [3, 20, 33])
def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(
    stop_after: int, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(labelled, "KEPT", 0)
    steps = 0

    def stop(event: Event) -> None:
        nonlocal steps
        steps += event.phase.startswith("train")
        if steps == stop_after:
            raise StopError

    data = {"augment": "shift", "images_per_task": 100}
    tuned(output=tmp_path / "whole", data=data)
    with pytest.raises(StopError):
        tuned(output=tmp_path / "parts", data=data, checkpoint_every=2, progress=stop)
    assert [path.name for path in tmp_path.iterdir() if path.name != "whole"] == [".parts.state"]
    seen: list[Event] = []
    done = tuned(output=tmp_path / "parts", data=data, resume=True, progress=seen.append)
    assert sum(event.phase.startswith("train") for event in seen) <= 60 - stop_after + 3
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "parts")
    assert len(done.trace.loss) == 60
    assert not (tmp_path / ".parts.state").exists()


def test_another_run_cannot_be_continued(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.phase == "train all" and event.done == 3:
            raise StopError

    with pytest.raises(StopError):
        tuned(output=tmp_path / "out", checkpoint_every=1, progress=stop)
    with pytest.raises(OutputError, match=r"an interrupted run into .*out left its state \(step 2 of 40\)"):
        tuned(output=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"training\.lr is 0\.003 there and 0\.1 now"):
        tuned(output=tmp_path / "out", resume=True, training={"lr": 0.1})


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_on_other_images_cannot_be_continued(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(labelled, "KEPT", 0)

    def stop(event: Event) -> None:
        if event.phase == "train all":
            raise StopError

    folder_of_images(tmp_path)
    data = {"name": "folder", "root": str(tmp_path), "test_share": 0.0}
    given: dict[str, Any] = {"task": "pets", "labels": ("cat", "dog"), "data": data, "output": tmp_path / "out"}
    with pytest.raises(StopError):
        tuned(**given, checkpoint_every=1, progress=stop)
    Image.new("L", (8, 8), 99).save(tmp_path / "pets/cat/3.png")
    with pytest.raises(ConfigError, match=r'is another one:\n  - images is "\w{64}" there and "\w{64}" now\n'):
        tuned(**given, resume=True)


def test_a_tasks_own_data_set_says_its_images_and_its_labels() -> None:
    digits = {"name": "per_task", "tasks": {"low": {"name": "digits", "images_per_task": 50}}}
    assert tuned(data=digits, training={"head_steps": 1, "steps": 0}).cost["images"] == 50
    glyphs = {"name": "per_task", "tasks": {"capitals": {"name": "glyphs"}}}
    model = {"arch": MLP, "start": "random", "task": "capitals"}
    asked = request(model, glyphs, None, CPU, 0, overwrite=False, resume=False, every="60s")
    assert len(asked.labels) == 26


def test_one_image_is_left_to_learn_from() -> None:
    data = {"images_per_task": 40, "validation": 0.99}
    assert tuned(data=data, training={"head_steps": 1, "steps": 1}).cost["images"] == 40


def test_memory_that_does_not_suffice_for_a_batch_changes_nothing_but_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = tuned()
    forward = classifier.Tuned.forward

    def small(self: classifier.Tuned, pixels: torch.Tensor) -> torch.Tensor:
        if self.training and len(pixels) > 20:
            raise RuntimeError("[enforce fail] not enough memory: you tried to allocate 9 bytes.")
        return forward(self, pixels)

    monkeypatch.setattr(classifier.Tuned, "forward", small)
    parts = tuned()
    assert parts.trace.part == 16
    assert parts.trace.loss == pytest.approx(whole.trace.loss, rel=1e-3)
    assert parts.notes == ("memory did not suffice for a whole batch: it was computed 16 images at a time",)


def test_a_loss_that_is_not_finite_says_which_rate() -> None:
    with pytest.raises(DivergedError) as error:
        tuned(training={"lr": 1e30})
    assert "Try a third of the learning rate (training.lr=...)." in str(error.value)
    assert str(error.value).startswith("train all: the loss became ")


def test_bf16_and_checkpointing_train_as_well() -> None:
    plain, checked = (tuned(VIT, hardware={"checkpointing": on}) for on in (False, True))
    assert checked.trace.loss == pytest.approx(plain.trace.loss, rel=1e-4)
    half = tuned(VIT, hardware={"precision": "bf16"})
    assert half.trace.loss == pytest.approx(plain.trace.loss, rel=0.2)
    assert {t.dtype for t in half.source.weights.values()} == {torch.float32}


def test_the_folder_is_a_source_and_loads_in_timm(tmp_path: Path) -> None:
    done = tuned(VIT, output=tmp_path / "low")
    assert sorted(path.name for path in (tmp_path / "low").iterdir()) == [
        "README.md",
        "correct.safetensors",
        "config.json",
        "config.yaml",
        "evaluation.json",
        "heads.safetensors",
        "model.safetensors",
    ]
    source = load(SourceSpec("low", checkpoint=str(tmp_path / "low")))
    assert source.labels == LOW
    pixels = torch.rand(4, 1, 8, 8)
    backbone = timm.create_model(f"local-dir:{tmp_path / 'low'}", pretrained=True).eval()
    head = load_file(tmp_path / "low/heads.safetensors")
    with torch.no_grad():
        logits = F.linear(backbone(pixels), head["low.weight"], head["low.bias"])
    torch.testing.assert_close(load_merged(tmp_path / "low").logits(pixels, "low"), logits)
    assert evaluate(tmp_path / "low", hardware=CPU).scores["merged"].mean == done.scores["low"].mean
    card = (tmp_path / "low/README.md").read_text()
    assert "| low \\(source\\) | " in card
    assert "- {name: low, checkpoint: low}" in card
    found = json.loads((tmp_path / "low/evaluation.json").read_text())
    assert found == json.loads(json.dumps(done.evaluation()))
    assert found["method"] == "finetune"
    low, high = found["rows"]["low"]["tasks"]["low"]["interval"]
    assert low < found["rows"]["low"]["mean_top1"] < high
    with pytest.raises(OutputError, match="holds a finished run"):
        tuned(VIT, output=tmp_path / "low")


def test_training_begins_with_the_checkpoint_whatever_its_head_and_normalisation(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model(VIT["name"], num_classes=9, **VIT["args"]).eval()  # type: ignore[arg-type]
    save_file(model.state_dict(), tmp_path / "start.safetensors")
    start = {"checkpoint": str(tmp_path / "start.safetensors"), "start": "pretrained", "mean": [0.3], "std": [0.5]}
    done = tuned(VIT, model=start, training={"steps": 0})
    pixels = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features((pixels - 0.3) / 0.5), pre_logits=True)
        torch.testing.assert_close(done.backbone()(pixels), expected, rtol=1e-4, atol=1e-5)
    assert done.source.head is not None
    assert len(done.source.head.weight) == 5
    # A folder of ours is a start, too, whatever heads it has.
    done.save(tmp_path / "one")
    heads = {f"{task}.weight": torch.zeros(3, 12) for task in ("a", "b")}
    save_file(heads, tmp_path / "one/heads.safetensors")
    again = tuned(VIT, model={"checkpoint": str(tmp_path / "one"), "arch": None, "start": "pretrained"})
    assert again.source.arch == done.source.arch
    assert again.evaluation()["provenance"]["sources"][0]["origin"] == str(tmp_path / "one")
    # And so is a wrapper with a head inside and one beside.
    wrapped = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file({**wrapped, "fc.weight": torch.zeros(3, 12)}, tmp_path / "start.safetensors")
    same = tuned(VIT, model=start, training={"steps": 0})
    assert all(torch.equal(t, done.source.weights[n]) for n, t in same.source.weights.items())


@pytest.mark.full
def test_a_vit_of_hugging_face_is_a_start_with_the_eps_of_what_is_written(tmp_path: Path) -> None:
    module = hugging_face(1, num_channels=1)
    module.save_pretrained(tmp_path / "hf")
    model = {"checkpoint": str(tmp_path / "hf"), "arch": None, "start": "pretrained"}
    done = tuned(model=model, training={"head_steps": 1, "steps": 1}, output=tmp_path / "out")
    assert done.source.arch.eps is None
    assert "'low': its norms have eps=1e-12, those of the trained model timm's 1e-06" in done.notes
    pixels = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            load_merged(tmp_path / "out").backbone(pixels), done.backbone()(pixels), rtol=1e-5, atol=1e-6
        )


def test_a_written_model_that_is_another_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = tuned()
    monkeypatch.setattr("fsmerge_cli.runs.finetuned.write_model", _wrong)
    with pytest.raises(CertificateError, match="reloaded: "):
        done.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _wrong(folder: Path, config: Any, weights: Any, heads: Any, facts: Any) -> None:
    from fsmerge_cli.checkpoints.write import write_model

    write_model(folder, config, weights, {name: tensor + 1 for name, tensor in heads.items()}, facts)


def folder_of_images(root: Path, task: str = "pets", classes: tuple[str, ...] = ("cat", "dog")) -> None:
    for number, name in enumerate(classes):
        (root / task / name).mkdir(parents=True)
        for i in range(30):
            Image.new("L", (8, 8), 200 * number + i).save(root / task / name / f"{i}.png")


def test_labels_are_the_class_folders(tmp_path: Path) -> None:
    folder_of_images(tmp_path)
    done = finetune(
        {"arch": MLP, "start": "random", "task": "pets"},
        data={"name": "folder", "root": str(tmp_path)},
        training={"head_steps": 20, "steps": 150, "lr": 0.01},
        hardware=CPU,
    )
    assert done.source.labels == ("cat", "dog")
    assert done.scores["pets"].mean == 1.0


def test_no_image_of_the_test_is_trained_on_and_bad_ones_are_named(tmp_path: Path) -> None:
    for split, first, count in (("train", 0, 8), ("test", 6, 4)):  # images 6 and 7 are on both sides
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(first, first + count):
                Image.new("L", (8, 8), 120 * number + i).save(tmp_path / f"pets/{split}/{name}/{i}.png")
    model = {"arch": MLP, "start": "random", "task": "pets"}
    data = {"name": "folder", "root": str(tmp_path)}
    done = finetune(model, data=data, training={"steps": 5}, hardware=CPU)
    assert done.cost["images"] == 12
    assert done.notes == ("4 images left out, identical to one among the test images",)
    for _ in range(2):  # instead of one that is left out, the next one is taken
        done = finetune(model, data={**data, "images_per_task": 12}, training={"steps": 5}, hardware=CPU)
        assert done.cost["images"] == 12
        shutil.copy(tmp_path / "pets/train/cat/0.png", tmp_path / "pets/train/dog/again.png")
    done = finetune(model, data=data, training={"steps": 5}, hardware=CPU)
    assert done.cost["images"] == 12
    assert done.notes == (
        "4 images left out, identical to one among the test images",
        "1 image left out, identical to another one to learn from",
    )
    (tmp_path / "pets/train/dog/again.png").unlink()
    (tmp_path / "pets/train/cat/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        finetune(model, data=data, training={"steps": 5}, hardware=CPU)
    done = finetune(model, data={**data, "bad_files": "skip"}, training={"steps": 5}, hardware=CPU)
    assert done.cost["images"] == 11
    assert done.notes[0].startswith("images that cannot be read are left out (1: ")


def test_without_test_images_nothing_is_evaluated(tmp_path: Path) -> None:
    folder_of_images(tmp_path)
    done = finetune(
        {"arch": MLP, "start": "random", "task": "pets"},
        data={"name": "folder", "root": str(tmp_path), "test_share": 0.0},
        training={"steps": 5},
        hardware=CPU,
        output=tmp_path / "out",
    )
    assert done.scores == {}
    assert done.notes == ("the data set has no labelled test images: nothing was evaluated",)
    assert "There were no labelled test images." in (tmp_path / "out/README.md").read_text()


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"training": {"steps": 0, "head_steps": 0}},
        ConfigError,
        "training.head_steps and training.steps are both 0. Give one of them, or both.",
    ),
    ({"training": {"lr": 0}}, ConfigError, "training.lr: should be greater than 0, got 0."),
    (
        {"model": {"labels": ("0",)}},
        ConfigError,
        "model.labels: a classifier needs two or more different classes, and there are 1 (0). Pass a list "
        "(model.labels=[cat,dog]), a file (.txt, .json).",
    ),
    (
        {"model": {"labels": "greek"}},
        ConfigError,
        "model.labels: unknown label set 'greek'. Available: none. Or give a list, or a file (.txt, .json).",
    ),
    (
        {"model": {"start": "pretrained"}},
        ConfigError,
        "model: no weights to start from. Pass model.checkpoint=PATH, a timm name with the tag of its weights "
        "(vit_base_patch16_224.augreg_in21k), or model.start=random.",
    ),
    (
        {"arch": "vit_tiny_patch16_224", "model": {"start": "pretrained"}},
        ConfigError,
        "model: no weights to start from. Pass model.checkpoint=PATH, a timm name with the tag of its weights "
        "(vit_tiny_patch16_224.augreg_in21k, vit_tiny_patch16_224.augreg_in21k_ft_in1k), or model.start=random.",
    ),
    (
        {"arch": None},
        ConfigError,
        "model.arch is missing: model.start=random needs a timm name, or {family: ...}.",
    ),
    (
        {"model": {"checkpoint": "x.safetensors"}},
        ConfigError,
        "model.start=random and model.checkpoint exclude each other. Leave one of them out.",
    ),
    (
        {"model": {"mean": (0.5,), "ema": False, "input_size": 8}},
        ConfigError,
        "model.start=random reads no checkpoint, and model.mean, model.ema, model.input_size would say how. Leave "
        "it out (the size of the images belongs into model.arch).",
    ),
    (
        {"model": {"checkpoint": "nowhere", "start": "pretrained"}},
        SourceError,
        "source 'low': nowhere does not exist. Check model.checkpoint.",
    ),
    (
        {"data": {"images_per_task": 0}},
        DataError,
        "data.images_per_task=0 leaves nothing to learn from. Pass a number, or all.",
    ),
    (
        {"hardware": {"distributed": True}},
        ConfigError,
        "finetune runs in one process. Pass hardware.distributed=false, or hardware=gpu.",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_a_mistake_is_said_in_whole(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        tuned(**options)
    assert str(error.value) == message


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    folder_of_images(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "pets/stray.png")
    with pytest.raises(DataError) as error:
        finetune(
            {"arch": MLP, "start": "random", "task": "pets"},
            data={"name": "folder", "root": str(tmp_path)},
            hardware=CPU,
        )
    assert str(error.value) == (
        "finetune needs labelled images, and data=folder has some without a label in the training split of task "
        "'pets'. Put every image into the folder of its class."
    )


def test_the_start_and_the_images_are_never_replaced(tmp_path: Path) -> None:
    tuned(output=tmp_path / "out")
    with pytest.raises(OutputError, match=r"model\.checkpoint lies in .*out, which output\.overwrite=true"):
        tuned(
            model={"checkpoint": str(tmp_path / "out"), "start": "pretrained", "arch": None},
            output=tmp_path / "out",
            overwrite=True,
        )
    folder_of_images(tmp_path / "out")
    with pytest.raises(OutputError, match=r"data\.root lies in .*out, which output\.overwrite=true"):
        tuned(
            task="pets",
            labels=("cat", "dog"),
            data={"name": "folder", "root": str(tmp_path / "out")},
            output=tmp_path / "out",
            overwrite=True,
        )
    assert (tmp_path / "out/pets/cat/0.png").is_file()


@pytest.fixture
def fsmerge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(argv))
        return code, *capsys.readouterr()

    return run


SMALL = (
    "model.arch={family:vit,name:vit_tiny_patch16_224,args:{img_size:12,patch_size:6,in_chans:1,embed_dim:24,"
    "depth:2,num_heads:3}}"
)


def test_two_sources_are_made_and_merged_by_command(
    fsmerge: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    shared = ("model.start=random", "data=glyphs", "data.train_images=12", "data.test_images=4", "data.size=12")
    short = ("training.steps=30", "training.head_steps=5", "training.lr=0.003", "hardware=cpu")
    for number, task in enumerate(("digits", "capitals")):
        run = ("finetune", SMALL, f"model.task={task}", *shared, *short, f"seed={number}", f"output.dir={task}")
        code, out, err = fsmerge(*run)
        assert code == 0, err
        assert f"source: {task}\n" in out
        assert "train all: 30/30 loss " in err
        assert (tmp_path / task / "run.log").is_file()
        assert fsmerge(*run, "resume=true", "-q") == (0, "", "")
        code, _, err = fsmerge(*run)
        assert code == 2
        assert err.endswith("or choose another output.dir=...\n")
    models = "+models.sources=[{name:digits,checkpoint:digits},{name:capitals,checkpoint:capitals}]"
    code, out, err = fsmerge("merge", models, *shared[1:], "method=fs_merge", "method.steps=5", "output.dir=both")
    assert code == 0, err
    code, out, _ = fsmerge("evaluate", "both", "--json", "--sources")
    found = json.loads(out)
    for task in ("digits", "capitals"):
        own = json.loads((tmp_path / task / "evaluation.json").read_text())
        assert found["rows"][task]["tasks"][task]["top1"] == own["rows"][task]["mean_top1"]
    code, out, _ = fsmerge("compare", "digits", "capitals", "both", "--json")
    rows = {row["folder"]: row for row in json.loads(out)}
    for task in ("digits", "capitals"):
        top1 = found["rows"][task]["mean_top1"]
        assert (rows[task][f"top1.{task}"], rows[task]["mean"], rows[task]["difference"]) == (top1, top1, None)
        assert "method=finetune" in rows[task]["run"]


def test_the_command_says_what_is_wrong(fsmerge: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    assert fsmerge("finetune", "--help") == (0, HELP, "")
    cases = {
        ("data=digits", "training.stps=3"): "unknown key in training 'stps'. Did you mean 'steps'? Available: "
        "batch_size, clip, head_lr, head_steps, label_smoothing, lr, patience, steps, weight_decay.",
        ("model.task=a",): "finetune needs labelled images. Pass data=NAME",
        ("outputs/x",): "fsmerge finetune: unknown argument 'outputs/x'. Available: KEY=VALUE.",
        ("--jsno",): "fsmerge finetune: unknown option '--jsno'. Did you mean '--json'? Available: --config-dir, "
        "--json, --quiet, -q.",
        (
            "-m",
            "seed=1,2",
        ): "fsmerge finetune trains one source. Leave out --multirun and give every key one value.",
        ("data=folder", "data.root=."): "model.task is missing: the folder in data.root that holds the images of "
        "the task.",
    }
    for arguments, message in cases.items():
        code, out, err = fsmerge("finetune", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"fsmerge: error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_the_yaml_says_every_field_and_its_default() -> None:
    from dataclasses import asdict

    from fsmerge_cli.cli.composing import composed
    from fsmerge_cli.cli.finetune_command import TOP, Output
    from fsmerge_cli.cli.launch import Checkpoint

    keys = composed("finetune", [], None)
    assert set(keys) == set(TOP)
    assert keys["model"] == asdict(Start())
    assert keys["training"] == asdict(classifier.Tuning())
    assert keys["output"] == asdict(Output())
    assert keys["checkpoint"] == asdict(Checkpoint())
    assert keys["data"] == {"images_per_task": "all"}
