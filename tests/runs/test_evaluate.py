"""`fsmerge evaluate`: a written model again, on other data, and models made elsewhere; every number recomputed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from fsmerge_cli import evaluate, load_merged, merge
from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.cli import evaluate_command, main
from fsmerge_cli.common.errors import ConfigError, DataError, OutputError, SourceError
from fsmerge_cli.data import DATASETS
from fsmerge_cli.data.images.folder import Folder
from fsmerge_cli.reporting import schema
from fsmerge_cli.runs.merged import Reading
from fsmerge_cli.training.teachers import network
from tests.support.paths import REPOSITORY
from tests.support.sources import mlp_source
from tests.support.third_party import hugging_face

pytestmark = pytest.mark.full

Bytes = dict[str, bytes]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the digits."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    merge("digits_mlp_pair", method={"name": "kd", "steps": 20, "lr": 0.01}, hardware="cpu", output=folder)
    return folder


def written(folder: Path) -> Bytes:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def stated(run: Path) -> dict[str, Any]:
    rows: dict[str, Any] = json.loads((run / "evaluation.json").read_text())["rows"]
    return rows


def draw_images(root: Path, tasks: dict[str, tuple[str, ...]], split: str = "test", count: int = 4) -> Path:
    """Random grey images in class folders."""
    random = torch.Generator().manual_seed(len(split))
    for task, labels in tasks.items():
        for label in labels:
            (root / task / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (8, 8), generator=random, dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(root / task / split / label / f"{i}.png")
    return root


# A run of our own


def test_a_run_on_its_own_data_gives_its_own_numbers_and_stays_as_it_is(run: Path) -> None:
    before = written(run)
    found = evaluate(run, hardware="cpu", sources=True).evaluation()
    jsonschema.Draft202012Validator(json.loads(schema.text())).validate(found)
    old = stated(run)
    assert list(found["rows"]) == ["low", "high", "ensemble", "merged"]
    for name in ("low", "high", "ensemble"):
        assert found["rows"][name] == old[name]
    read_out = {
        key for key in old["merged"] if key.startswith("feature_")
    }  # the readouts are folded into the heads
    assert {k: v for k, v in found["rows"]["merged"].items() if k not in read_out} == {
        k: v for k, v in old["merged"].items() if k not in read_out
    }
    assert (found["method"], found["tasks"]) == ("kd", ["low", "high"])
    assert found["answers"] == json.loads((run / "evaluation.json").read_text())["answers"]
    assert written(run) == before


def test_heads_without_label_names_stay_without(tmp_path: Path) -> None:
    data = {"name": "digits", "images_per_task": 20}
    sources = []
    for seed, name in enumerate("ab"):
        source = mlp_source(name, [8], seed, classes=5, input_size=(1, 8, 8))
        assert source.head is not None
        tensors, _ = head_tensors({name: source.head})
        write_model(tmp_path / name, model_config(source.family, source.arch), source.weights, tensors, {})
        sources.append({"name": name, "checkpoint": str(tmp_path / name)})
    merge(sources, method="average", data=data, output=tmp_path / "run")
    old = stated(tmp_path / "run")["merged"]["joint_top1"]
    assert evaluate(tmp_path / "run").evaluation()["rows"]["merged"]["joint_top1"] == old
    assert load_merged(tmp_path / "run").labels == dict.fromkeys("ab", tuple("01234"))
    # The merged model as a source again: its heads are still nobody else's, until somebody names the classes.
    again = [{"name": n, "head": n, "checkpoint": str(tmp_path / "run/merged")} for n in "ab"]
    twice = merge(again, method="average", data=data)
    assert twice.scores["merged"].joint == pytest.approx(old)
    named = [{**entry, "labels": list("01234")} for entry in again]
    assert merge(named, method="average", data=data).scores["merged"].joint["softmax"] > old["softmax"]


@pytest.mark.parametrize("part", ["", "merged"])
def test_the_folder_and_its_model_are_the_same(run: Path, part: str) -> None:
    found = evaluate(run / part, hardware="cpu").evaluation()
    assert found["rows"].keys() == {"merged"}
    assert found["rows"]["merged"]["tasks"]["low"]["relative"] is None
    assert found["rows"]["merged"]["joint_top1"] == stated(run)["merged"]["joint_top1"]
    assert found["provenance"]["sources"][0]["origin"] == str(run / "merged")


def test_saved_logits_recomputed_with_scikit_learn_and_torchmetrics(run: Path, tmp_path: Path) -> None:
    found = evaluate(run, hardware="cpu")
    found.save_logits(tmp_path / "logits.safetensors")
    saved = load_file(tmp_path / "logits.safetensors")
    labels = found.model.labels
    logits = {name: saved[f"logits.{name}"].double() for name in labels}
    row = stated(run)["merged"]
    for index, name in enumerate(labels):
        own = saved["task"] == index
        share, truth = logits[name][own].softmax(1), saved["label"][own]
        task = row["tasks"][name]
        assert task["count"] == int(own.sum())
        assert task["top1"] == pytest.approx(accuracy_score(truth, share.argmax(1)), abs=1e-12)
        assert task["loss"] == pytest.approx(log_loss(truth, share.numpy()), rel=1e-5)
        error = multiclass_calibration_error(share, truth, num_classes=share.shape[1], n_bins=15, norm="l1")
        assert task["calibration_error"] == pytest.approx(error.item(), abs=1e-6)
    names = [label for own in labels.values() for label in own]
    truth = [list(labels.values())[t][c] for t, c in zip(saved["task"].tolist(), saved["label"].tolist())]
    for suffix, at in (("", dict.fromkeys(labels, 1.0)), ("_calibrated", row["temperatures"])):
        scaled = [logits[name] / at[name] for name in labels]
        protocols = {"softmax": [own.softmax(1) for own in scaled], "logits": scaled}
        for protocol, values in protocols.items():
            answers = [names[place] for place in torch.cat(values, 1).argmax(1).tolist()]
            assert row["joint_top1"][protocol + suffix] == pytest.approx(accuracy_score(truth, answers), abs=1e-12)


def test_top_5_recomputed_with_scikit_learn(tmp_path: Path) -> None:
    source = mlp_source("all", [8], 1, classes=10, input_size=(1, 8, 8))
    assert source.head is not None
    heads = head_tensors({"all": replace(source.head, labels=tuple("0123456789"))})
    write_model(tmp_path / "one", model_config(source.family, source.arch), source.weights, *heads)
    found = evaluate(tmp_path / "one", data="digits")
    truth, logits = found.truth[1].numpy(), found.outputs.logits[0].numpy()
    score = found.scores["merged"].tasks["all"]
    assert score.count == 540
    assert score.top5 == pytest.approx(top_k_accuracy_score(truth, logits, k=5))
    assert score.top1 == pytest.approx(top_k_accuracy_score(truth, logits, k=1))


def test_some_of_the_tasks(run: Path) -> None:
    found = evaluate(run, tasks=["high"]).evaluation()
    row = found["rows"]["merged"]
    assert (found["tasks"], row["joint_top1"], row["temperatures"]) == (["high"], {}, {})
    assert row["tasks"]["high"]["top1"] == stated(run)["merged"]["tasks"]["high"]["top1"]
    with pytest.raises(ConfigError) as error:
        evaluate(run, tasks=["hig"])
    assert str(error.value) == "unknown task 'hig'. Did you mean 'high'? Available: high, low."
    with pytest.raises(ConfigError) as error:
        evaluate(run, tasks=[])
    assert str(error.value) == "tasks=[] leaves nothing to evaluate. Name one or more, or null for all."


def test_images_for_the_test_alone_are_not_calibrated_on(run: Path, tmp_path: Path) -> None:
    tasks = {"low": ("0", "1", "4"), "high": ("5", "9")}
    data = Folder(root=str(draw_images(tmp_path / "images", tasks)))
    found = evaluate(run, data=data)
    row = found.evaluation()["rows"]["merged"]
    assert row["joint_top1"].keys() == {"softmax", "logits"}
    assert row["temperatures"] == {}
    assert [row["tasks"][name]["count"] for name in tasks] == [12, 8]
    assert found.notes == (
        "not calibrated, which takes images beside those for the test: data=folder: no images for task 'low' in "
        f"{tmp_path}/images/low/train. Put images there (.bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, "
        ".webp), flat or in class folders.",
    )
    draw_images(tmp_path / "images", tasks, "train")
    row = evaluate(run, data=data).evaluation()["rows"]["merged"]
    assert row["joint_top1"].keys() == {"softmax", "logits", "softmax_calibrated", "logits_calibrated"}
    assert row["temperatures"].keys() == tasks.keys()


def test_the_seed_is_the_runs_unless_another_is_given(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "other"
    (moved / "merged").mkdir(parents=True)
    for name, content in written(run).items():
        if name.startswith("merged/") or name == "config.yaml":
            (moved / name).write_bytes(content)
    options = yaml.safe_load((moved / "config.yaml").read_text())
    (moved / "config.yaml").write_text(yaml.safe_dump({**options, "seed": 7}))
    given = evaluate(run, seed=7).evaluation()
    assert given["rows"] == evaluate(moved).evaluation()["rows"]
    assert given["provenance"]["seed"] == 7
    assert given["rows"]["merged"]["temperatures"] != stated(run)["merged"]["temperatures"]


# The model as an object


def test_a_loaded_model_answers_as_the_merged_one(run: Path) -> None:
    found = load_merged(run)
    assert found.tasks == ("low", "high")
    assert found.labels == {"low": tuple("01234"), "high": tuple("56789")}
    images = torch.rand(5, 1, 8, 8)
    heads = load_file(run / "merged/heads.safetensors")
    features = found.backbone(images)
    for name in found.tasks:
        expected = features @ heads[f"{name}.weight"].T + heads[f"{name}.bias"]
        torch.testing.assert_close(found.logits(images, name), expected)
        answers = [found.labels[name][i] for i in expected.argmax(1).tolist()]
        assert found.predict(images, name) == answers
    both = torch.cat([found.logits(images, name).softmax(1) for name in found.tasks], 1)
    assert found.predict(images) == [str(i) for i in both.argmax(1).tolist()]
    with pytest.raises(ConfigError) as error:
        found.logits(images, "hgh")
    assert str(error.value) == "unknown task 'hgh'. Did you mean 'high'? Available: high, low."
    assert evaluate(found, data="digits").scores == evaluate(run).scores
    assert not any(p.requires_grad for p in found.backbone.parameters())


# Models made elsewhere


def timm_folder(folder: Path, **stated: Any) -> torch.nn.Module:
    """A timm ViT as `timm.models.save_for_hf` lays it out, its classifier inside."""
    args = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **args).eval()
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {"input_size": [3, 8, 8], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "crop_pct": 1.0}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": args, "num_classes": 4, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps({**config, **stated}))
    return model


def test_a_timm_folder_with_its_classifier_inside(tmp_path: Path) -> None:
    model = timm_folder(tmp_path / "other")
    root = draw_images(tmp_path / "images", {"pets": ("ant", "bee", "cat", "dog")})
    reading = {"task": "pets", "labels": ["ant", "bee", "cat", "dog"]}
    found = evaluate(tmp_path / "other", data=Folder(root=str(root)), reading=reading)
    pixels = torch.stack([_pixels(p) for p in sorted((root / "pets/test").rglob("*.png"))])
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    with torch.no_grad():
        torch.testing.assert_close(found.outputs.logits[0], model((pixels - mean) / std), rtol=1e-4, atol=1e-5)
    content = found.evaluation()
    jsonschema.Draft202012Validator(json.loads(schema.text())).validate(content)
    assert (content["method"], content["tasks"]) == ("unknown", ["pets"])
    assert content["rows"]["merged"]["tasks"]["pets"]["count"] == 16


def _pixels(path: Path) -> torch.Tensor:
    from torchvision.transforms.functional import pil_to_tensor

    return pil_to_tensor(Image.open(path).convert("RGB")).float() / 255


def test_a_bare_checkpoint_with_its_classifier_inside(run: Path, tmp_path: Path) -> None:
    heads = load_file(run / "merged/heads.safetensors")
    own = {f"head.{part}": heads[f"low.{part}"] for part in ("weight", "bias")}
    save_file({**load_file(run / "merged/model.safetensors"), **own}, tmp_path / "mine.safetensors")
    arch = {"family": "mlp", "input_size": [1, 8, 8], "widths": [64, 64]}
    reading = Reading(task="low", arch=arch, labels=tuple("01234"))
    row = evaluate(tmp_path / "mine.safetensors", data="digits", reading=reading).evaluation()["rows"]["merged"]
    assert row["tasks"]["low"] == {**stated(run)["merged"]["tasks"]["low"], "relative": None}


@pytest.mark.full
def test_heads_beside_the_weights_of_another_library(tmp_path: Path) -> None:
    module = hugging_face(1, head=False)
    module.save_pretrained(tmp_path)
    heads = {"pets.weight": torch.randn(4, 12), "cars.weight": torch.randn(3, 12), "cars.bias": torch.randn(3)}
    save_file(heads, tmp_path / "heads.safetensors")
    model, pixels = load_merged(tmp_path, {"mean": [0.0], "std": [1.0]}), torch.rand(2, 3, 8, 8)
    assert model.labels == {"cars": ("cat", "dog", "ox"), "pets": ("0", "1", "2", "3")}
    with torch.no_grad():
        features = module(pixels).last_hidden_state[:, 0]
    expected = features @ heads["cars.weight"].T + heads["cars.bias"]
    torch.testing.assert_close(model.logits(pixels, "cars"), expected, rtol=1e-4, atol=1e-5)


def test_a_trainers_checkpoint_is_read_as_a_source_is(run: Path, tmp_path: Path) -> None:
    heads = load_file(run / "merged/heads.safetensors")
    own = {f"head.{part}": heads[f"low.{part}"] for part in ("weight", "bias")}
    weights = {**load_file(run / "merged/model.safetensors"), **own}
    empty = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    torch.save({"model": empty, "model_ema": weights, "epoch": 3}, tmp_path / "trainer.pt")
    (tmp_path / "labels.txt").write_text("\n".join("01234"))
    arch = {"family": "mlp", "input_size": [1, 8, 8], "widths": [64, 64]}
    reading = {"task": "low", "arch": arch, "labels": str(tmp_path / "labels.txt"), "ema": True}
    found = evaluate(tmp_path / "trainer.pt", data="digits", reading=reading).evaluation()
    low = stated(run)["merged"]["tasks"]["low"]
    assert found["rows"]["merged"]["tasks"]["low"] == {**low, "relative": None}
    model = load_merged(tmp_path / "trainer.pt", {**reading, "ema": None})
    assert not model.backbone.state_dict()["fc0.weight"].any()
    assert model.notes == (
        "the weights under 'model.' were taken, the EMA weights under 'model_ema.' were not (model.ema=true takes "
        "them)",
    )
    save_file(
        {f"student.{n}": t for n, t in weights.items()} | {f"old.{n}": t for n, t in empty.items()},
        tmp_path / "two.safetensors",
    )
    for name in "abcde":
        (tmp_path / "images/low" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / f"images/low/{name}/0.png")
    reading = {"task": "low", "arch": arch, "labels": "data", "prefix": "student"}
    images = {"name": "folder", "root": str(tmp_path / "images")}
    model = load_merged(tmp_path / "two.safetensors", reading, images)
    assert model.labels == {"low": tuple("abcde")}
    assert torch.equal(model.backbone.state_dict()["fc0.weight"], weights["fc0.weight"])
    with pytest.raises(ConfigError) as error:
        load_merged(tmp_path / "two.safetensors", reading)
    assert str(error.value) == (
        "labels=data takes the names of class folders, and there is no data set. Pass data=folder with class "
        "folders, or a list: model.labels=[...]"
    )


def test_which_model_and_which_head_of_a_checkpoint_can_be_said(tmp_path: Path) -> None:
    one, two, other = (mlp_source("a", [8], seed) for seed in (1, 2, 3))
    arch, pixels = {"family": "mlp", "input_size": [1, 4, 4], "widths": [8]}, torch.rand(3, 1, 4, 4)
    parts = (("model", one), ("model_ema", two), ("teacher", other))
    state = {f"{part}.{name}": t for part, source in parts for name, t in source.weights.items()}
    heads = {"model.head.weight": torch.ones(3, 8), "fc.weight": torch.ones(2, 8)}
    save_file({**state, **heads}, tmp_path / "x.safetensors")

    def refused(**reading: Any) -> str:
        with pytest.raises(SourceError) as error:
            load_merged(tmp_path / "x.safetensors", {"arch": arch, **reading})
        return str(error.value)

    where = f"{tmp_path}/x.safetensors"
    assert refused() == (
        f"{where} holds 2 models, under 'model.', 'teacher.'. Say which one to take: model.prefix=..."
    )
    assert refused(prefix="model.x") == (
        f"{where}: unknown prefix 'model.x'. Did you mean 'model'? Available: model, model_ema, teacher."
    )
    assert refused(prefix="model") == (
        f"{where} has 2 heads: fc, model.head. Say which one this task uses: model.head=NAME"
    )
    model = load_merged(where, {"arch": arch, "prefix": "model", "head": "fc"})
    with torch.no_grad():
        assert torch.equal(model.backbone(pixels), network(one)(pixels))
    assert [len(labels) for labels in model.labels.values()] == [2]


LABLES = (
    "unknown key in model 'lables'. Did you mean 'labels'? Available: arch, ema, head, input_size, labels, mean, "
    "normalize, prefix, std, task."
)
MESSAGES: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "nowhere",
        {},
        SourceError,
        "{0}/nowhere does not exist. Give the folder of a run, its merged/, or a checkpoint.",
    ),
    (
        ".",
        {},
        SourceError,
        "{0} is no model: it holds neither merged/ nor model.safetensors. Give the folder of a run that `fsmerge "
        "merge` wrote, its merged/, a timm folder, or a checkpoint file.",
    ),
    (
        "headless",
        {"data": "digits"},
        SourceError,
        "{0}/headless has no head: neither heads.safetensors nor a classifier inside the weights, so there are no "
        "answers to evaluate. Put a heads.safetensors beside the weights (TASK.weight, TASK.bias).",
    ),
    (
        "other",
        {"reading": {"labels": ["a", "b"]}},
        SourceError,
        "{0}/other: the head of task 'model' has 4 classes and 2 labels. Pass as many in model.labels=[...]",
    ),
    (
        "bare.safetensors",
        {"reading": {"arch": {"family": "mlp", "input_size": [1, 8, 8], "widths": [4]}}},
        SourceError,
        "{0}/bare.safetensors does not hold the weights of its architecture: it lacks: fc0.bias. Check its "
        "config.json, or pass model.arch=...",
    ),
    (
        "bare.safetensors",
        {"data": "digits"},
        SourceError,
        "{0}/bare.safetensors says no architecture. Put a config.json beside the weights or pass "
        "model.arch=..., a timm name (vit_base_patch16_224) or {family: ..., ...} (mlp, vit).",
    ),
    (
        "other",
        {"data": "digits", "reading": {"labels": ["a", "b", "c", "d"]}},
        DataError,
        "data=digits: the labels of task 'model' are ['a', 'b', 'c', 'd'], this data set has '0' to '9'. Pass "
        "model.labels=[...] or another data=...",
    ),
    (
        "other",
        {"data": {"name": "folder", "root": "{0}/images"}},
        DataError,
        "data=folder: no folder for task 'model' in {0}/images. Found: pets. Name one folder after each task.",
    ),
    (
        "other",
        {"data": {"name": "folder", "root": "{0}/images"}, "reading": {"task": "pets"}},
        DataError,
        "data=folder: the class folders ant in {0}/images/pets/test are not labels of task 'pets' (0, 1, 2, 3). "
        "Rename the folders, pass model.labels=[...] (labels=data: the folders' names, sorted), or "
        "data.class_folders=none (test: only those in test/ are classes) to use images without labels.",
    ),
    (
        "other",
        {"data": {"name": "folder", "root": "{0}/flat"}, "reading": {"task": "pets"}},
        DataError,
        "no test image has a label, so there are no answers to count. Put the images into class folders.",
    ),
    (
        "other",
        {"data": {"name": "folder", "root": "{0}/trained"}, "reading": {"task": "pets", "labels": list("abcd")}},
        DataError,
        "data=folder has no test images for pets. Put some into TASK/test/, in class folders.",
    ),
    (
        "other",
        {},
        DataError,
        "no data: {0}/other says none of its own. Pass data=NAME (data.root=PATH for your own folder).",
    ),
    (
        "other",
        {"data": "digits", "sources": True},
        ConfigError,
        "--sources: {0}/other does not say what it was made of, for it lies in no run's folder (config.yaml). "
        "Leave out --sources.",
    ),
    ("other", {"seed": -1}, ConfigError, "seed: should be a whole number from 0 on, got -1."),
    (
        "other",
        {"reading": {"lables": ["a"]}},
        ConfigError,
        LABLES,
    ),
    (
        "other",
        {"hardware": "multi_gpu"},
        ConfigError,
        "an evaluation runs in one process. Pass hardware.distributed=false, or hardware=gpu.",
    ),
]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    timm_folder(folder / "other")
    source = mlp_source("a", [8], 1)
    write_model(folder / "headless", model_config(source.family, source.arch), source.weights, {}, {})
    save_file({"fc0.weight": torch.zeros(2, 3)}, folder / "bare.safetensors")
    draw_images(folder / "images", {"pets": ("ant",)})
    draw_images(folder / "trained", {"pets": tuple("abcd")}, "train")
    (folder / "flat/pets/test").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "flat/pets/test/0.png")
    return folder


@pytest.mark.parametrize(("model", "options", "kind", "message"), MESSAGES)
def test_what_cannot_be_evaluated_is_said(
    model: str, options: dict[str, Any], kind: type[Exception], message: str, elsewhere: Path
) -> None:
    given = json.loads(json.dumps(options).replace("{0}", str(elsewhere)))
    with pytest.raises(kind) as error:
        evaluate(elsewhere / model, **given)
    assert str(error.value) == message.replace("{0}", str(elsewhere))


def test_tasks_and_labels_of_our_own_heads_are_not_renamed(run: Path) -> None:
    with pytest.raises(SourceError) as error:
        evaluate(run, reading={"task": "x"})
    assert str(error.value) == (
        f"{run}/merged says its tasks and labels in heads.safetensors (low, high). Take model.task, "
        "model.head and model.labels away; tasks=[...] chooses some."
    )


def test_files_are_written_whole_beside_the_model(run: Path, tmp_path: Path) -> None:
    found = evaluate(run)
    before = written(run)
    saves = {found.save: "output.file", found.save_report: "output.report", found.save_logits: "output.logits"}
    for save, key in saves.items():
        file = tmp_path / f"{key}.x"
        save(file)
        content = file.read_bytes()
        with pytest.raises(OutputError) as error:
            save(file)
        assert str(error.value) == (
            f"{key}={file} is there already. Pass output.overwrite=true to replace it, or choose another."
        )
        save(file, overwrite=True)
        assert file.read_bytes() == content
        for place, why in (
            (
                run / "merged/model.safetensors",
                " lies in the evaluated model, which stays as it is. Choose another.",
            ),
            (tmp_path, " is a folder. Give the name of a file."),
            (tmp_path / "no/x", f": there is no folder {tmp_path}/no. Make it, or choose another."),
        ):
            with pytest.raises(OutputError) as error:
                save(place, overwrite=True)
            assert str(error.value) == f"{key}={place}{why}"
    assert written(run) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{key}.x" for key in sorted(saves.values())]


# The command


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def ran(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["evaluate", *arguments])
        return (code, *capsys.readouterr())

    return ran


def test_the_command_shows_the_tables_and_writes_what_is_asked_for(
    run: Path, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    before = written(run)
    files = ["output.file=e.json", "output.logits=l.safetensors", "output.report=r.html"]
    code, out, err = command(str(run), "--sources", *files)
    assert code == 0
    assert err.splitlines()[-1].startswith("evaluate merged: 540/540 ")
    low = stated(run)["merged"]["tasks"]["low"]
    assert f"{100 * low['top1']:.1f}" in out
    assert "high (source)" in out
    assert "calibrated softmax per head" in out
    assert (
        out.splitlines()[-1]
        == f"model: {run}/merged   evaluation: e.json   report: r.html   logits: l.safetensors"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.json", "l.safetensors", "r.html"]
    shown = (tmp_path / "r.html").read_text()
    assert shown.count("<img ") == 12
    assert f"{100 * low['top1']:.1f}" in shown
    content = json.loads((tmp_path / "e.json").read_text())
    assert content["rows"]["merged"]["tasks"]["low"] == low
    assert content["provenance"]["command"] == (f"fsmerge evaluate {run} --sources {' '.join(files)}")
    assert written(run) == before


def test_json_on_standard_output_is_of_the_published_form(
    run: Path, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, _ = command(str(run), "data=digits", "data.images_per_task=20", "seed=3", "tasks=[low]", "--json")
    assert code == 0
    found = json.loads(out)
    jsonschema.Draft202012Validator(json.loads(schema.text())).validate(found)
    assert (found["config"]["data"]["images_per_task"], found["config"]["seed"]) == (20, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_of_the_users_own(
    run: Path, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "own/data").mkdir(parents=True)
    (tmp_path / "own/data/few.yaml").write_text("name: digits\nimages_per_task: 3\n")
    code, out, _ = command(str(run), "--config-dir", "own", "data=few", "--json")
    assert code == 0
    assert json.loads(out)["config"]["data"]["images_per_task"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "fsmerge evaluate takes one model, none is given. See fsmerge evaluate --help."),
        (["a", "b"], "fsmerge evaluate takes one model, 2 are given (a, b). See fsmerge evaluate --help."),
        (
            ["a", "--source"],
            "fsmerge evaluate: unknown option '--source'. Did you mean '--sources'? Available: --config-dir, "
            "--json, --quiet, --sources, -q.",
        ),
        (["a", "dat=digits"], "unknown key 'dat'. Available: hardware, model, output, seed, tasks."),
        (
            ["a", "data=digit"],
            f"unknown data 'digit'. Did you mean 'digits'? Available: {', '.join(sorted(DATASETS))}.",
        ),
        (
            ["a", "model.lables=[x]"],
            LABLES,
        ),
        (["a", "seed=x"], "seed: should be a valid integer, got 'x'."),
        (["a", "output.file=3"], "output.file: should be a valid string, got 3."),
        (["a", "--config-dir", "b"], "--config-dir: 'b' is no folder. Pass a folder with data/*.yaml, ..."),
        (["a", "model.arch._target_=os.system"], None),
        (["a"], "a does not exist. Give the folder of a run, its merged/, or a checkpoint."),
    ],
)
def test_a_mistake_gets_one_message(
    arguments: list[str], message: str | None, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("fsmerge: error: ")
    assert message is None or err == f"fsmerge: error: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_yaml_says_every_key_and_its_default() -> None:
    keys = yaml.safe_load((REPOSITORY / "configs/evaluate.yaml").read_text())
    groups = {next(iter(entry)) for entry in keys.pop("defaults") if isinstance(entry, dict)}
    assert groups | keys.keys() == {field.name for field in fields(evaluate_command.Asked)}
    assert keys["model"] == {field.name: field.default for field in fields(Reading)}
    assert keys["output"] == {field.name: field.default for field in fields(evaluate_command.Output)}
    assert keys["seed"] is None
    assert keys["tasks"] is None
    for key in (*(f"model.{name}=" for name in keys["model"]), *(f"output.{name}=" for name in keys["output"])):
        assert key in evaluate_command.HELP
