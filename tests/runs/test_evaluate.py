"""`fsmerge evaluate` on the folder of a run: the scores of the run, recomputed with other libraries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from fsmerge_cli import evaluate, load_merged, merge
from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.errors import ConfigError, OutputError
from fsmerge_cli.common.notes import notes_in
from fsmerge_cli.data.images.files import SUFFIXES
from fsmerge_cli.data.images.folder import Folder
from fsmerge_cli.reporting import schema
from tests.support.evaluations import file_bytes, rows_of, write_random_images
from tests.support.sources import mlp_source

pytestmark = pytest.mark.full


def test_a_run_on_its_own_data_gives_its_scores_and_is_not_changed(digits_run: Path) -> None:
    before = file_bytes(digits_run)
    found = evaluate(digits_run, data="from_run", hardware="cpu", sources=True).evaluation()
    jsonschema.Draft202012Validator(json.loads(schema.text())).validate(found)
    old = rows_of(digits_run)
    assert list(found["rows"]) == ["low", "high", "ensemble", "merged"]
    for name in ("low", "high", "ensemble"):
        assert found["rows"][name] == old[name]
    features = {key for key in old["merged"] if key.startswith("feature_")}  # projectors are folded into the heads
    new = {key: value for key, value in found["rows"]["merged"].items() if key not in features}
    assert new == {key: value for key, value in old["merged"].items() if key not in features}
    assert (found["method"], found["tasks"]) == ("kd", ["low", "high"])
    assert found["predictions"] == json.loads((digits_run / "evaluation.json").read_text())["predictions"]
    assert file_bytes(digits_run) == before


def test_heads_without_label_names_get_none(tmp_path: Path) -> None:
    data = {"name": "digits", "images_per_task": 20}
    sources = []
    for seed, name in enumerate("ab"):
        source = mlp_source(name, [8], seed, classes=5, input_size=(1, 8, 8))
        assert source.head is not None
        tensors, _ = head_tensors({name: source.head})
        write_model(tmp_path / name, model_config(source.family, source.arch), source.weights, tensors, {})
        sources.append({"name": name, "checkpoint": str(tmp_path / name)})
    merge(sources, method="average", data=data, output=tmp_path / "run")
    old = rows_of(tmp_path / "run")["merged"]["joint_top1"]
    assert evaluate(tmp_path / "run", data="from_run").evaluation()["rows"]["merged"]["joint_top1"] == old
    assert load_merged(tmp_path / "run").labels == dict.fromkeys("ab", tuple("01234"))
    # The merged model as a source again: its heads have class names only when the user gives them.
    again = [{"name": n, "head": n, "checkpoint": str(tmp_path / "run/merged")} for n in "ab"]
    twice = merge(again, method="average", data=data)
    fitted = {"classifier"}  # its decision is fitted to the sources' predictions
    assert {k: v for k, v in twice.scores["merged"].joint.items() if k not in fitted} == pytest.approx(
        {k: v for k, v in old.items() if k not in fitted}
    )
    named = [{**entry, "labels": list("01234")} for entry in again]
    assert merge(named, method="average", data=data).scores["merged"].joint["softmax"] > old["softmax"]


@pytest.mark.parametrize("part", ["", "merged"])
def test_the_folder_and_its_model_are_the_same(digits_run: Path, part: str) -> None:
    found = evaluate(digits_run / part, data="from_run", hardware="cpu").evaluation()
    assert found["rows"].keys() == {"merged"}
    assert found["rows"]["merged"]["tasks"]["low"]["relative"] is None
    assert found["rows"]["merged"]["joint_top1"] == rows_of(digits_run)["merged"]["joint_top1"]
    assert found["provenance"]["sources"][0]["origin"] == str(digits_run / "merged")


def test_saved_logits_recomputed_with_scikit_learn_and_torchmetrics(digits_run: Path, tmp_path: Path) -> None:
    found = evaluate(digits_run, data="from_run", hardware="cpu")
    found.save_logits(tmp_path / "logits.safetensors")
    saved = load_file(tmp_path / "logits.safetensors")
    labels = found.model.labels
    logits = {name: saved[f"logits.{name}"].double() for name in labels}
    row = rows_of(digits_run)["merged"]
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
            chosen = [names[place] for place in torch.cat(values, 1).argmax(1).tolist()]
            assert row["joint_top1"][protocol + suffix] == pytest.approx(accuracy_score(truth, chosen), abs=1e-12)


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


def test_selected_tasks(digits_run: Path) -> None:
    found = evaluate(digits_run, data="from_run", tasks=["high"]).evaluation()
    row = found["rows"]["merged"]
    assert (found["tasks"], row["joint_top1"], row["temperatures"]) == (["high"], {}, {})
    assert row["tasks"]["high"]["top1"] == rows_of(digits_run)["merged"]["tasks"]["high"]["top1"]
    with pytest.raises(ConfigError) as error:
        evaluate(digits_run, tasks=["hig"])
    assert str(error.value) == "unknown task 'hig'. Did you mean 'high'? Available: high, low."
    with pytest.raises(ConfigError) as error:
        evaluate(digits_run, tasks=[])
    assert str(error.value) == "tasks=[] leaves nothing to evaluate. List one or more tasks, or pass null for all."


def test_without_training_images_there_is_no_calibration(digits_run: Path, tmp_path: Path) -> None:
    tasks = {"low": ("0", "1", "4"), "high": ("5", "9")}
    data = Folder(root=str(write_random_images(tmp_path / "images", tasks)))
    found = evaluate(digits_run, data=data)
    row = found.evaluation()["rows"]["merged"]
    assert row["joint_top1"].keys() == {"softmax", "logits", "classifier"}
    assert row["temperatures"] == {}
    assert [row["tasks"][name]["count"] for name in tasks] == [12, 8]
    assert tuple(notes_in(found.notes)) == (
        "task 'low': there are no test images of 2, 3",
        "task 'high': there are no test images of 6, 7, 8",
        "not calibrated, which needs images besides the test images: data=folder: no images for task 'low' in "
        f"{tmp_path}/images/low/train. Put images there ({', '.join(sorted(SUFFIXES))}), "
        "flat or in class folders.",
    )
    write_random_images(tmp_path / "images", tasks, "train")
    row = evaluate(digits_run, data=data).evaluation()["rows"]["merged"]
    calibrated = {"softmax_calibrated", "logits_calibrated"}
    assert row["joint_top1"].keys() == {"softmax", "logits", "classifier", *calibrated}
    assert row["temperatures"].keys() == tasks.keys()


def test_the_default_seed_is_that_of_the_run(digits_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "other"
    (moved / "merged").mkdir(parents=True)
    for name, content in file_bytes(digits_run).items():
        if name.startswith("merged/") or name == "config.yaml":
            (moved / name).write_bytes(content)
    options = yaml.safe_load((moved / "config.yaml").read_text())
    (moved / "config.yaml").write_text(yaml.safe_dump({**options, "seed": 7}))
    given = evaluate(digits_run, data="from_run", seed=7).evaluation()
    assert given["rows"] == evaluate(moved, data="from_run").evaluation()["rows"]
    assert given["provenance"]["seed"] == 7
    assert given["rows"]["merged"]["temperatures"] != rows_of(digits_run)["merged"]["temperatures"]


def test_a_loaded_model_predicts_as_the_merged_one(digits_run: Path) -> None:
    found = load_merged(digits_run)
    assert found.tasks == ("low", "high")
    assert found.labels == {"low": tuple("01234"), "high": tuple("56789")}
    images = torch.rand(5, 1, 8, 8)
    heads = load_file(digits_run / "merged/heads.safetensors")
    features = found.backbone(images)
    for name in found.tasks:
        expected = features @ heads[f"{name}.weight"].T + heads[f"{name}.bias"]
        torch.testing.assert_close(found.logits(images, name), expected)
        predicted = [found.labels[name][i] for i in expected.argmax(1).tolist()]
        assert [own.label for own in found.predict(images, name)] == predicted
    both = torch.cat([found.heads[name].joint_logits(features) for name in found.tasks], 1)
    assert [own.label for own in found.predict(images)] == [str(i) for i in both.argmax(1).tolist()]
    with pytest.raises(ConfigError) as error:
        found.logits(images, "hgh")
    assert str(error.value) == "unknown task 'hgh'. Did you mean 'high'? Available: high, low."
    assert evaluate(found, data="digits").scores == evaluate(digits_run, data="from_run").scores
    assert not any(p.requires_grad for p in found.backbone.parameters())


def test_files_are_written_atomically_outside_the_model(digits_run: Path, tmp_path: Path) -> None:
    found = evaluate(digits_run, data="from_run")
    before = file_bytes(digits_run)
    saves = {found.save: "output.file", found.save_report: "output.report", found.save_logits: "output.logits"}
    for save, key in saves.items():
        file = tmp_path / f"{key}.x"
        save(file)
        content = file.read_bytes()
        with pytest.raises(OutputError) as error:
            save(file)
        assert str(error.value) == (
            f"{key}={file} already exists. Pass output.overwrite=true to replace it, or choose another file."
        )
        save(file, overwrite=True)
        assert file.read_bytes() == content
        for place, why in (
            (
                digits_run / "merged/model.safetensors",
                " is read by this command (the evaluated model), so it is not written. Choose another file.",
            ),
            (tmp_path, " is a folder. Give the path of a file."),
            (tmp_path / "no/x", f": the folder {tmp_path}/no does not exist. Create it, or choose another file."),
        ):
            with pytest.raises(OutputError) as error:
                save(place, overwrite=True)
            assert str(error.value) == f"{key}={place}{why}"
    assert file_bytes(digits_run) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{key}.x" for key in sorted(saves.values())]
