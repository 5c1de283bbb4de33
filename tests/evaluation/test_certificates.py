"""A written model that differs from the merged model is not saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fsmerge_cli import merge
from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import CertificateError
from fsmerge_cli.data.draw import Images
from fsmerge_cli.evaluation.certificates import IMAGES, Certifier, EvaluatedBatch, probe, relative_error
from fsmerge_cli.methods import Problem
from fsmerge_cli.models.source import Source
from fsmerge_cli.runs import result
from fsmerge_cli.runs.result import MergeResult
from fsmerge_cli.supernet.fold import fold_head
from tests.support.sources import folding, mlp_source
from tests.support.vits import vit_source


def written(folder: Path, source: Source) -> dict[str, str]:
    """Write the source as a checkpoint; returns its entry in `models.sources`."""
    heads = head_tensors({source.name: source.head} if source.head else {})
    write_model(folder / source.name, model_config(source.family, source.arch), source.weights, *heads)
    return {"name": source.name, "checkpoint": str(folder / source.name)}


@pytest.fixture(params=["mlp", "vit"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> list[dict[str, str]]:
    if request.param == "mlp":
        sources = [mlp_source("a", [8, 6], 1), mlp_source("b", [8, 6], 2)]
    else:
        sources = [vit_source("class token", seed) for seed in (1, 2)]
    return [written(tmp_path / "sources", source) for source in sources]


def refused(made: MergeResult, folder: Path) -> tuple[str, ...]:
    """Names of the certificates that do not hold."""
    with pytest.raises(CertificateError) as error:
        made.save(folder)
    assert not folder.exists()
    kept = folder.with_name(f"{folder.name}.failed")
    assert (kept / "merged/model.safetensors").is_file()
    assert str(error.value).endswith(
        f"The written files are kept in {kept} for inspection. Run the command again, and report the bug if it "
        "recurs."
    )
    return tuple(line.partition(":")[0] for line in error.value.broken)


def test_all_certificates_and_their_errors_are_in_the_evaluation(
    pair: list[dict[str, str]], tmp_path: Path
) -> None:
    merge(pair, method="average", output=tmp_path / "out")
    found = json.loads((tmp_path / "out/evaluation.json").read_text())["certificates"]
    classifier = found.pop("classifier", {"status": "holds", "error": 0, "tolerance": 1})  # only of a ViT
    assert classifier["status"] == "holds"
    assert classifier["error"] < classifier["tolerance"] / 50
    assert {name: c["status"] for name, c in found.items()} == {
        "reloaded": "holds",
        "unfolded": "holds",
        "heads": "holds",
        "evaluated": "not applicable",
        "permuted": "not applicable",
    }
    assert found["reloaded"]["error"] == found["reloaded"]["tolerance"] == 0
    assert 0 < found["unfolded"]["error"] < found["unfolded"]["tolerance"] / 50
    assert 0 <= found["heads"]["error"] < found["heads"]["tolerance"] / 50
    assert not (tmp_path / "out.failed").exists()


def test_a_changed_map_is_detected(pair: list[dict[str, str]], tmp_path: Path) -> None:
    made = merge(pair, method="average")
    maps = made.solution.maps
    assert maps is not None
    stack = next(p for name, p in maps.named_parameters() if "unit:" not in name)
    stack.data[0, 0] += 0.1
    assert refused(made, tmp_path / "out") == ("unfolded",)


def test_a_changed_projector_is_detected(pair: list[dict[str, str]], tmp_path: Path) -> None:
    made = merge(pair, method="average")
    maps = made.solution.maps
    assert maps is not None
    U = maps.read(made.plan.features, 1).tensors()["diagonal"]
    U.mul_(3.0)  # a view of the map itself
    assert refused(made, tmp_path / "out") == ("unfolded",)


def test_every_stage_of_a_sequential_merge_is_compared_with_its_maps(
    make_problem: Callable[..., Problem], tmp_path: Path
) -> None:
    sources = [mlp_source(f"s{i}", [8, 6], i) for i in range(3)]
    problem = make_problem(sources, per_task=12)
    solution = folding(steps=4, sequential=True).fit(problem)
    assert len(solution.stages) == 2
    pixels = problem.images.images[:4]
    heads = {s.name: fold_head(s.head, U) for s, U in zip(sources, solution.projectors) if s.head}
    config = model_config(problem.plan.family, problem.plan.arch)
    write_model(tmp_path, config, solution.weights, *head_tensors(heads))
    certifier = Certifier(problem.plan, sources, solution, heads, pixels)
    found = certifier.certify(tmp_path)["unfolded"]
    assert found["status"] == "holds"
    assert 0 < found["error"] < found["tolerance"] / 50
    for stage in solution.stages:
        tensor = next(t for n, t in stage.weights.items() if n.endswith("weight"))
        before = tensor.clone()
        tensor.mul_(2.0)
        with pytest.raises(CertificateError):
            certifier.certify(tmp_path)
        tensor.copy_(before)


def test_other_labels_in_the_files_are_detected(
    pair: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = merge(pair, method="average")

    def relabelled(
        folder: Path, config: object, weights: object, heads: object, facts: dict[str, object], *more: object
    ) -> None:
        labels = {name: list(reversed(own)) for name, own in facts["labels"].items()}  # type: ignore[attr-defined]
        changed = {**facts, "labels": labels}
        write_model(folder, config, weights, heads, changed, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(result, "write_model", relabelled)
    assert refused(made, tmp_path / "out") == ("reloaded",)


def test_a_changed_head_is_detected(pair: list[dict[str, str]], tmp_path: Path) -> None:
    made = merge(pair, method="average")
    next(iter(made.heads.values())).weight[0] += 0.1  # one unit may be zero on all images
    assert refused(made, tmp_path / "out") == ("heads",)


@pytest.mark.full
@pytest.mark.parametrize("file", ["model.safetensors", "heads.safetensors"])
def test_one_changed_byte_of_a_file_is_detected(
    pair: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    def corrupted(folder: Path, *rest: object) -> None:
        write_model(folder, *rest)  # type: ignore[arg-type]
        content = bytearray((folder / file).read_bytes())
        content[-5] ^= 1
        (folder / file).write_bytes(content)

    made = merge(pair, method="average")
    monkeypatch.setattr(result, "write_model", corrupted)
    assert "reloaded" in refused(made, tmp_path / "out")


@pytest.mark.full
def test_logits_of_another_model_are_detected(pair: list[dict[str, str]], tmp_path: Path) -> None:
    made = merge(pair, method="average")
    pixels = made.certifier.pixels
    features = made.backbone()(pixels)
    logits = [head(features).detach() for head in made.heads.values()]
    replace(made, certifier=replace(made.certifier, evaluated=EvaluatedBatch(pixels, logits))).save(
        tmp_path / "correct"
    )
    logits[1][3, 0] += 0.1
    wrong = replace(made, certifier=replace(made.certifier, evaluated=EvaluatedBatch(pixels, logits)))
    assert refused(wrong, tmp_path / "wrong") == ("evaluated",)


@pytest.mark.full
def test_a_permutation_across_attention_heads_is_detected(
    make_problem: Callable[..., object], pair: list[dict[str, str]], tmp_path: Path
) -> None:
    made = merge(pair, method="average")
    spaces = made.plan.spaces
    orders = {name: torch.arange(space.merged).roll(1) for name, space in spaces.items() if not space.heads}
    for broken in (False, True):
        if broken:
            orders |= {name: torch.arange(space.merged).roll(1) for name, space in spaces.items()}
        own = replace(made.solution, permutations=(orders, orders))
        changed = replace(made, solution=own, certifier=replace(made.certifier, solution=own))
        if broken and any(space.heads for space in spaces.values()):
            assert refused(changed, tmp_path / "broken") == ("permuted",)
        else:
            changed.save(tmp_path / f"whole{broken}")


@pytest.mark.full
def test_the_command_reports_the_failed_certificate_and_exits_with_1(
    pair: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def corrupted(folder: Path, config: object, weights: dict[str, torch.Tensor], *rest: object) -> None:
        name = next(iter(weights))
        write_model(folder, config, {**weights, name: weights[name] + 0.1}, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(result, "write_model", corrupted)
    models = tmp_path / "configs/models"
    models.mkdir(parents=True)
    (models / "two.yaml").write_text(f"# two\nsources: {json.dumps(pair)}\n")
    out = tmp_path / "out"
    arguments = ["merge", f"--config-dir={tmp_path / 'configs'}", "+models=two", "data=null", "method=average"]
    assert main([*arguments, f"output.dir={out}", "hardware=cpu"]) == 1
    error = capsys.readouterr().err
    assert "fsmerge: error: the written model differs from the merged model, so it is not saved:\n" in error
    assert "  - reloaded: tensors, architecture and labels read back from the files = those in memory; " in error
    assert "largest error 0.1" in error
    assert "Traceback" not in error
    assert not out.exists()


def test_the_images_are_split_evenly_among_the_tasks() -> None:
    rows = torch.arange(30)
    images = Images(rows.float().reshape(30, 1, 1, 1), rows % 3, rows, rows[:0])
    picked = probe(images, None, 0)  # type: ignore[arg-type]
    assert len(picked) == IMAGES
    assert torch.bincount(picked.flatten().long() % 3).tolist() == [6, 6, 4]


def test_a_non_finite_value_is_an_infinite_error() -> None:
    exact = torch.ones(3)
    assert relative_error(torch.tensor([1.0, torch.nan, 1.0]), exact) == torch.inf
    assert relative_error(torch.tensor([1.0, 1.5, 1.0]), exact) == 0.5
