"""models.base in a merge and in a check."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fsmerge_cli import check, load_source, merge
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import ConfigError, SourceError
from fsmerge_cli.methods import METHODS
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.checks import Entries, written
from tests.support.common_initialisation import NAMES, QUICK, moved, parent, random_vector
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

Files = tuple[Entries, str]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Two sources and what they were fine-tuned from, in folders."""
    base = parent()
    sources = [moved(base, name, random_vector(base, i, 0.05)) for i, name in enumerate("ab", 1)]
    return [written(tmp_path, source) for source in sources], str(written(tmp_path, base)["checkpoint"])


def test_a_merge_adds_the_task_vectors_to_the_base(files: Files, tmp_path: Path) -> None:
    entries, base = files
    result = merge(
        entries, base=base, method={"name": "task_arithmetic", "coefficient": 1.0}, output=tmp_path / "o"
    )
    zero = load_file(Path(base) / "model.safetensors")
    a, b = (load_file(Path(str(entry["checkpoint"])) / "model.safetensors") for entry in entries)
    stored = load_file(tmp_path / "o/merged/model.safetensors")
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, a[name] + b[name] - zero[name], rtol=1e-5, atol=1e-6)
    for task, entry in zip("ab", entries):
        again = load(SourceSpec(task, checkpoint=str(tmp_path / "o/merged"), head=task))
        own = load_source(str(entry["checkpoint"]))
        assert again.head is not None
        assert own.head is not None
        assert torch.equal(again.head.weight, own.head.weight)
    assert result.notes[1].startswith("'a' compared with models.base: relative distance 0.")
    evaluation = json.loads((tmp_path / "o/evaluation.json").read_text())
    assert evaluation["provenance"]["base"]["sha256"] == load_source(base).sha256
    config = yaml.safe_load((tmp_path / "o/config.yaml").read_text())
    assert config["models"]["base"]["checkpoint"].endswith("base")


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_every_method_of_task_vectors_writes_a_model_that_loads(name: str, files: Files, tmp_path: Path) -> None:
    images = {task: torch.rand(4, 1, 2, 2) for task in "ab"}
    result = merge(
        files[0], base=files[1], method={"name": name, **QUICK.get(name, {})}, data=images, output=tmp_path / "out"
    )
    stored = load_file(tmp_path / "out/merged/model.safetensors")
    assert all(torch.equal(stored[n], t) for n, t in result.solution.weights.items())
    evaluation = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert evaluation["certificates"]["heads"]["status"] == "holds"


@pytest.mark.full
@pytest.mark.parametrize("form", ["path", "mapping", "loaded", "spec"])
def test_the_base_has_the_forms_of_a_source(form: str, files: Files) -> None:
    entries, base = files
    given: dict[str, Any] = {
        "path": Path(base),
        "mapping": {"checkpoint": base},
        "loaded": load_source(base),
        "spec": SourceSpec("x", checkpoint=base),
    }
    expected = merge(entries, base=base, method="ties").solution.weights
    found = merge(entries, base=given[form], method="ties").solution.weights
    assert all(torch.equal(found[n], t) for n, t in expected.items())


def test_a_method_that_needs_a_base_says_what_to_pass(files: Files) -> None:
    with pytest.raises(ConfigError) as error:
        merge(files[0], method="ties")
    assert str(error.value) == (
        "method=ties merges differences from the pretrained weights that all sources share, and these are not "
        "given. Pass models.base=PATH (a folder, a file, or a timm name with a tag), or method=average."
    )


def test_a_base_that_is_not_used_is_noted_and_not_read(files: Files, tmp_path: Path) -> None:
    entries, _ = files
    (tmp_path / "empty").mkdir()
    result = merge(entries, base=tmp_path / "empty", method="average")
    assert result.notes[1] == "models.base is not used by method=average"


@pytest.mark.full
def test_a_base_of_another_architecture_or_shape_is_refused(files: Files, tmp_path: Path) -> None:
    wide = str(
        written(tmp_path, replace(mlp_source("w", [6, 7, 5], 3, input_size=(1, 2, 2)), name="wide"))["checkpoint"]
    )
    with pytest.raises(SourceError) as error:
        merge(files[0], base=wide, method="ties")
    assert str(error.value) == (
        f"models.base ({wide}) cannot be what the sources were fine-tuned from:\n"
        "  - its tensors have other shapes than those of 'a': fc1.bias is [7], not [5], "
        "fc1.weight is [7, 6], not [5, 6], fc2.weight is [5, 7], not [5, 5]\n"
        "Pass the pretrained weights of the sources, or another method (method=average needs none)."
    )
    vit = written(tmp_path, vit_source("class token", 1))["checkpoint"]
    with pytest.raises(SourceError, match="it is a vit, 'a' a mlp"):
        merge(files[0], base=str(vit), method="ties")
    with pytest.raises(SourceError, match="it is a vit, 'a' a mlp"):
        check(files[0], base=str(vit))
    assert check(files[0], "ties", files[1]).tasks == ("a", "b")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            "gone",
            "models.base=gone is no file or folder, and no timm name with weights "
            "(vit_base_patch16_224.augreg_in21k). Pass the model that all sources were fine-tuned from.",
        ),
        (3, "models.base: should be a path, a timm name with a tag, or keys and values, got 3."),
        ({"chekpoint": "x"}, "unknown key in models.base 'chekpoint'. Did you mean 'checkpoint'? Available: "),
        (".../base", "models.base is .../base: the configuration of a run is written without the folders"),
    ],
)
def test_a_base_that_cannot_be_read_is_reported_by_its_key(base: Any, message: str, files: Files) -> None:
    with pytest.raises((ConfigError, SourceError)) as error:
        merge(files[0], base=base, method="ties")
    assert str(error.value).startswith(message)


@pytest.mark.full
def test_an_unrelated_base_is_a_warning_of_merge_and_check(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries, _ = files
    other = str(
        written(tmp_path, replace(mlp_source("o", [6, 5, 5], 9, input_size=(1, 2, 2)), name="other"))["checkpoint"]
    )
    warning = "models.base does not seem to be what 'a' was fine-tuned from (relative distance 1."
    notes = merge(entries, base=other, method="ties").notes
    assert any(note.startswith(f"warning: {warning}") for note in notes)
    sources = ",".join(f"{{name:{e['name']},checkpoint:'{e['checkpoint']}'}}" for e in entries)
    assert main(["check", f"models.sources=[{sources}]", f"models.base={other}", "method=average"]) == 0
    out = capsys.readouterr().out
    assert f"warning: {warning}" in out
    assert "note: models.base is not used by method=average" in out
    assert "recommended: method=average (" in out


@pytest.mark.full
def test_a_bare_file_takes_the_pixels_of_source_1(tmp_path: Path) -> None:
    base = vit_source("class token", 1)
    entries = []
    for i in (2, 3):
        weights = {n: t + 0.01 * i for n, t in base.weights.items()}
        entry = written(tmp_path, replace(base, name=f"s{i}", weights=weights))
        entries.append({**entry, "mean": (0.5, 0.4), "std": (0.2, 0.3)})
    config = json.loads((tmp_path / "s2/config.json").read_text())
    config.pop("pretrained_cfg")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/config.json").write_text(json.dumps(config))
    save_file({n: t.clone() for n, t in base.weights.items()}, tmp_path / "bare/model.safetensors")
    result = merge(entries, base=tmp_path / "bare", method="task_arithmetic")
    assert (
        "'base': its files do not state mean and std, so mean [0.5, 0.4] and std [0.2, 0.3] of 's2' are taken; if "
        "it was trained with other values, pass models.base.mean=[...] and models.base.std=[...]"
    ) in result.notes
    stated = merge(
        entries,
        base={"checkpoint": str(tmp_path / "bare"), "mean": (0.5, 0.4), "std": (0.2, 0.3)},
        method="task_arithmetic",
    )
    assert all(torch.equal(stated.solution.weights[n], t) for n, t in result.solution.weights.items())


@pytest.mark.full
def test_the_command_line_repeats_a_run_with_its_base(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["merge", "a", "b", "models.base=base", "method=ties", "output.dir=out"]
    assert main(typed) == 0, capsys.readouterr().err
    assert main([*typed, "resume=true"]) == 0
    assert "already finished" in capsys.readouterr().out
    assert main(["merge", "out/config.yaml", "-o", "again"]) == 0, capsys.readouterr().err
    first, second = (load_file(tmp_path / name / "merged/model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(second[n], t) for n, t in first.items())
    changed = load_file("base/model.safetensors")
    save_file({n: t + 1 for n, t in changed.items()}, "base/model.safetensors")
    capsys.readouterr()
    assert main([*typed, "resume=true"]) == 2
    assert "source 'base' has changed since the finished run in out: base" in capsys.readouterr().err
    assert main(["merge", "a", "b", "models.bse=base", "method=ties", "output.dir=x"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: unknown key in models 'bse'. Did you mean 'base'? Available: base, sources.\n"
    )


@pytest.mark.full
def test_init_writes_the_base(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "a", "b", "models.base=base", "method=ties", "-o", "mine.yaml"]) == 0
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text())["models"]["base"] == "base"
    assert main(["merge", "mine.yaml", "output.dir=out"]) == 0, capsys.readouterr().err
    assert (tmp_path / "out/merged").is_dir()


def test_the_estimate_counts_gradients(files: Files) -> None:
    from fsmerge_cli.runs import gradient_cost

    method = METHODS["ada_merging"](name="ada_merging", steps=10, batch_size=4)  # type: ignore[call-arg]
    assert gradient_cost.memory(method, 1000, 2, 50) == 4 * 1000 * 5 + 2 * 4 * 50
    assert gradient_cost.operations(method, 7.0, 2, 30) == 3 * 7 * 10 * 4 * 2
    fisher, ties = (METHODS[name](name=name) for name in ("fisher", "ties"))  # type: ignore[call-arg]
    assert gradient_cost.memory(fisher, 1000, 2, 50) == 1000 * 24 + 50
    assert gradient_cost.operations(fisher, 7.0, 2, 30) == 7 * 30 * 33
    assert (gradient_cost.memory(ties, 1000, 2, 50), gradient_cost.operations(ties, 7.0, 2, 30)) == (None, 0.0)


@pytest.mark.full
def test_check_recommends_task_vectors_where_the_base_is_given(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    entries, base = files
    sources = ",".join(f"{{name:{e['name']},checkpoint:'{e['checkpoint']}'}}" for e in entries)
    assert main(["check", f"models.sources=[{sources}]", "method=average"]) == 0
    out = capsys.readouterr().out
    assert "recommended: method=average (the sources seem to share a pretrained initialisation; with models" in out
    assert f"  {', '.join(NAMES)} do not apply: needs the pretrained weights (models.base=...)\n" in out
    assert main(["check", f"models.sources=[{sources}]", f"models.base={base}", "method=ties"]) == 0
    out = capsys.readouterr().out
    assert (
        "recommended: method=tsv (the sources share a pretrained initialisation, and models.base gives it)" in out
    )
    assert "note: 'a' compared with models.base: relative distance 0." in out


def test_a_recipe_starts_from_the_weights_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_problem: Callable[..., Any]
) -> None:
    from fsmerge_cli.checkpoints.embedded import content_key, ensure_trained

    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path))
    arch = {"family": "mlp", "input_size": [1, 8, 8], "widths": [8]}
    base: dict[str, Any] = {
        "name": "base",
        "arch": arch,
        "labels": ("0", "1", "2"),
        "recipe": {"data": "digits", "seed": 1, "steps": 30},
    }
    entry = {**base, "name": "a", "labels": ("3", "4")}
    entry["recipe"] = {"data": "digits", "seed": 2, "steps": 1, "lr": 1e-9, "weight_decay": 0.0, "start": base}
    from fsmerge_cli.checkpoints.base import base_entry
    from fsmerge_cli.common.options import build
    from fsmerge_cli.common.progress import silent

    spec = build(SourceSpec, entry, "x")
    trained, start = load(ensure_trained(spec, silent)), load(ensure_trained(base_entry(base), silent))
    for name, tensor in trained.weights.items():
        torch.testing.assert_close(tensor, start.weights[name], rtol=0, atol=1e-6)
    longer = build(
        SourceSpec, {**entry, "recipe": {**entry["recipe"], "start": {**base, "labels": ("0", "1")}}}, "x"
    )
    assert content_key(longer) != content_key(spec)
    other = {**entry["recipe"], "start": {**base, "arch": {**arch, "widths": [9]}}}
    with pytest.raises(ConfigError) as error:
        content_key(build(SourceSpec, {**entry, "recipe": other}, "x"))
    assert str(error.value) == (
        "source 'a': recipe.start: should be an entry with a recipe and with the arch of 'a'."
    )
