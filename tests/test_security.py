"""The guarantees of docs/security.md."""

from __future__ import annotations

import ast
import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fsmerge_cli import merge
from fsmerge_cli.architectures.vit.family import LOADER_ARGUMENTS
from fsmerge_cli.checkpoints.embedded import content_key
from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.write import model_config
from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import ConfigError, DataError, OutputError, describe
from fsmerge_cli.common.shown import printable
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import Recipe, SourceSpec
from fsmerge_cli.runs.request import request
from tests.support.paths import REPOSITORY
from tests.support.sources import mlp_source
from tests.test_rooms import FILES, imports

pytestmark = pytest.mark.full

HOSTILE = ("../../up", "/etc/passwd", "\x1b[2J\x07", "a\nb", "| [x](javascript:1) |", "```", "CON", "\ud800", "")
WRITTEN = {
    ".fsmerge.json",
    "config.yaml",
    "evaluation.json",
    "merged",
    "merged/README.md",
    "merged/config.json",
    "merged/heads.safetensors",
    "merged/model.safetensors",
    "report.html",
}


def save(folder: Path, source: Source, head: str | None = None) -> dict[str, str]:
    """Write a checkpoint; returns its entry. Labels can be any JSON strings."""
    assert source.head is not None
    tensors, facts = head_tensors({head or source.name: source.head})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model_config(source.family, source.arch)))
    save_file(dict(source.weights), folder / "model.safetensors")
    save_file(tensors, folder / "heads.safetensors", metadata={"fsmerge": json.dumps(facts)})
    return {"name": source.name, "checkpoint": str(folder)}


def labelled(name: str, seed: int, labels: tuple[str, ...]) -> Source:
    source = mlp_source(name, [4], seed, classes=len(labels))
    assert source.head is not None
    return replace(source, head=replace(source.head, labels=labels))


def test_names_and_labels_of_a_checkpoint_reach_no_path(tmp_path: Path) -> None:
    entries = [
        save(tmp_path / "in" / name, labelled(name, seed, HOSTILE), head="../../../up")
        for seed, name in enumerate("ab")
    ]
    before = set(tmp_path.rglob("*"))
    merge(entries, method="average", output=tmp_path / "out")
    made = set(tmp_path.rglob("*")) - before - {tmp_path / "out"}
    assert {path.relative_to(tmp_path / "out").as_posix() for path in made} == WRITTEN
    with safe_open(tmp_path / "out/merged/heads.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"a.weight", "a.bias", "b.weight", "b.bias"}
        assert tuple(json.loads(file.metadata()["fsmerge"])["labels"]["a"]) == HOSTILE  # unchanged


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "/etc", "..", ".x", "", " a", "a\n", "\x1b[2J", "\x00", "n" * 81]
)
def test_a_task_name_cannot_be_a_path(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        request([{"name": name, "checkpoint": "x"}], "average", None, "cpu", 0, False)
    assert str(error.value).startswith(
        f"the task name {name!r} cannot be used: it becomes part of file and tensor names. Pass "
    )


@pytest.mark.parametrize("name", ["birds", "Vögel 2", 'say "hi"', "a|b", "<b>", "名前", "n" * 80])
def test_other_task_names_are_accepted(name: str) -> None:
    (spec,) = request([{"name": name, "checkpoint": "x"}], "average", None, "cpu", 0, False).sources
    assert spec.name == name


def test_a_task_name_does_not_leave_the_cache_folder() -> None:
    arch = {"family": "mlp", "input_size": (1, 8, 8), "widths": (6,)}
    for name, found in {"birds": "birds", "a b:*?<|>": "a_b_", "名前": "名前"}.items():
        key = content_key(SourceSpec(name, arch=arch, labels=("0",), recipe=Recipe("digits", seed=1)))
        assert re.fullmatch(rf"mlp-{found}-[0-9a-f]{{16}}", key)


def test_names_are_escaped_in_the_model_card(tmp_path: Path) -> None:
    names = ['x"]; import os  # y', "a|b ``` <b>[y](z)"]
    entries = [save(tmp_path / str(seed), mlp_source(name, [4], seed)) for seed, name in enumerate(names)]
    command = "fsmerge merge\n```\n# Not a heading\x1b[2J"
    merge(entries, method="average", output=tmp_path / "out", command=command)
    card = (tmp_path / "out/merged/README.md").read_text()
    (snippet,) = re.findall(r"^(`{3,})python\n(.*?)\n\1$", card, flags=re.M | re.S)
    modules = {n.name for i in ast.walk(ast.parse(snippet[1])) if isinstance(i, ast.Import) for n in i.names}
    assert modules == {"torch"}
    assert f"heads[{json.dumps(names[0] + '.weight')}]" in snippet[1]
    assert "````sh\nfsmerge merge\n```\n# Not a heading\\x1b[2J\n````" in card
    prose = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", card, flags=re.M | re.S)
    assert r"a\|b \`\`\` \<b\>\[y\]\(z\)" in prose
    assert "<b>" not in prose
    assert "[y](z)" not in prose


@pytest.mark.parametrize("text", ["\x1b[2J", "\x07", "\x9b31m", "\u202e", "\r", "\x7f", "\ud800"])
def test_control_characters_in_an_error_are_escaped(text: str) -> None:
    message, code = describe(DataError(f"before {text} after\nnext"))
    assert code == 2
    assert text not in message
    assert message == f"fsmerge: error: before {printable(text)} after\nnext\n"
    assert message.isascii()


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def test_the_package_neither_unpickles_nor_evaluates_code() -> None:
    loads = [call for path in FILES for call in calls(path) if ast.unparse(call.func) == "torch.load"]
    assert len(loads) == 1
    assert {k.arg: ast.unparse(k.value) for k in loads[0].keywords}["weights_only"] == "True"
    names = {ast.unparse(call.func) for path in FILES for call in calls(path)}
    assert not names & {
        "eval",
        "exec",
        "yaml.load",
        "os.system",
        "hydra.utils.instantiate",
    }
    arrays = [
        call for path in FILES for call in calls(path) if ast.unparse(call.func) in ("np.load", "numpy.load")
    ]
    assert all({k.arg: ast.unparse(k.value) for k in call.keywords}["allow_pickle"] == "False" for call in arrays)
    roots = {name.partition(".")[0] for path in FILES for name in imports(path)}
    assert not roots & {"pickle", "marshal", "shelve", "dill", "joblib", "subprocess", "cloudpickle"}


def test_no_argument_of_timms_loader_comes_from_a_checkpoint() -> None:
    from timm.models import create_model

    named = {name for name, p in inspect.signature(create_model).parameters.items() if p.kind is not p.VAR_KEYWORD}
    assert named <= LOADER_ARGUMENTS
    assert "checkpoint_path" in named


def test_a_config_folder_of_the_user_cannot_name_a_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/models").mkdir(parents=True)
    (tmp_path / "mine/models/pair.yaml").write_text(
        "sources:\n  - {name: a, checkpoint: a}\n  - {name: b, arch: {_target_: os.mkdir, path: executed}}\n"
    )
    assert main(["merge", "+models=pair", "method=average", "--config-dir", "mine"]) == 2
    assert capsys.readouterr().err == (
        "fsmerge: error: models.sources.1.arch._target_='os.mkdir': a configuration cannot call Python code. "
        "Remove the key and choose by name (`fsmerge list` shows the names).\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_only_the_hydra_node_names_a_class_in_the_shipped_configs() -> None:
    targets = [
        line.strip()
        for path in sorted((REPOSITORY / "configs").rglob("*.yaml"))
        for line in path.read_text().splitlines()
        if "_target_" in line
    ]
    assert targets == ["_target_: fsmerge_cli.cli.sweep.SweepSummary"]


def test_a_source_is_never_overwritten_by_the_result(tmp_path: Path) -> None:
    entries = [save(tmp_path / name, mlp_source(name, [4], seed)) for seed, name in enumerate("ab")]
    merge(entries, method="average", output=tmp_path / "out")
    again = [{"name": "a", "checkpoint": str(tmp_path / "out/merged"), "head": "a"}, entries[1]]
    kept = (tmp_path / "out/merged/model.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r"which output\.overwrite=true would replace"):
        merge(again, method="average", output=tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/merged/model.safetensors").read_bytes() == kept


def test_every_guarantee_refers_to_an_existing_test() -> None:
    page = (REPOSITORY / "docs/security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) >= 8
    for file, function in named:
        text = (REPOSITORY / file).read_text()
        assert not function or f"def {function}(" in text, f"{file}::{function}"


def test_weights_are_loaded_on_the_cpu(tmp_path: Path) -> None:
    """A legacy file is loaded without a GPU."""
    source = mlp_source("a", [4], 1)
    torch.save(dict(source.weights), tmp_path / "model.pt")
    arch = {"family": "mlp", "input_size": (1, 4, 4), "widths": (4,)}
    from fsmerge_cli.checkpoints.load import load

    found = load(SourceSpec("a", arch=arch, checkpoint=str(tmp_path / "model.pt")))
    assert {tensor.device.type for tensor in found.weights.values()} == {"cpu"}
