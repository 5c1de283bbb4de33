"""Small files that stand for much, and sizes that no tensor has: one message in seconds, which names the limit."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli.cli import main
from fsmerge_cli.common.shown import listed
from tests.support.bad_inputs import write_sources
from tests.support.bad_inputs.place import working_copy
from tests.support.time_limit import within


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    with within(10):
        yield


@pytest.fixture(scope="module")
def _valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid")
    write_sources(folder)
    (folder / "conf/models").mkdir(parents=True)
    (folder / "conf/models/a.yaml").write_text("sources: []")
    return folder


@pytest.fixture
def place(_valid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_copy(_valid, tmp_path, monkeypatch)


CHECK = "check 'models.sources=[{name: a, checkpoint: a}, {name: b, checkpoint: b}]' method=average"
VITS = "check 'models.sources=[{name: v, checkpoint: v}, {name: w, checkpoint: w}]' method=average"


def message(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(shlex.split(command)) == 2
    return capsys.readouterr().err.removeprefix("fsmerge: error: ").removesuffix("\n")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
DEEP = "it has more than 100 levels inside each other"
LARGE = "it is larger than 1 MB, the limit for such a file"
CONTENTS = {
    "an alias bomb": ("conf/models/b.yaml", BOMB, "its aliases (*name) stand for more than 100000 values"),
    "a deep YAML": ("conf/models/b.yaml", "\n".join(" " * i + "a:" for i in range(900)), DEEP),
    "deep brackets": ("conf/models/b.yaml", "a: " + "[" * 300_000, DEEP),
    "a large YAML": (
        "conf/models/b.yaml",
        "a: " + "x" * 2**20,
        "it is larger than 1 MB, the limit for such a file",
    ),
    "a deep JSON": ("a/config.json", "[" * 300_000, DEEP),
    "deep JSON objects": ("a/config.json", '{"a":' * 300_000, DEEP),
}


@pytest.mark.full
@pytest.mark.parametrize("case", CONTENTS)
def test_a_small_file_that_stands_for_much(case: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, content, why = CONTENTS[case]
    Path(path).write_text(content)
    if path.endswith(".json"):
        expected = f"source 'a': a: config.json cannot be read: {why}. Repair it, or copy it again."
        assert message(CHECK, capsys) == expected
    else:
        expected = f"{place}/{path} cannot be read: {why}. Repair the file, or pass another one."
        assert message("check +models=a --config-dir conf", capsys) == expected


DEPTH = "Change arch.args, or model_args in config.json."
CHANGE = "\nChange the entries of models.sources (checkpoint, arch, head, labels, name), or take other sources."
NINES = str([9] * 99)[:200]
BUILD = "source 'v': v: arch: timm cannot build vit_tiny_patch16_224 with"
ARGUMENTS = {
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
}
SIZES: dict[str, tuple[dict[str, Any], str]] = {
    "depth": (
        {"depth": 1_000_000},
        "source 'v': v: depth is 1000000, but there are only 30 tensors. Pass the depth of these weights, in "
        "arch.args or in model_args of config.json.",
    ),
    "depth that is no number": (
        {"depth": [9] * 10_000},
        f"source 'v': v: arch: depth should be a whole number from 1 to 128, it is {NINES}.... {DEPTH}",
    ),
    "depth 0": (
        {"depth": 0},
        f"source 'v': v: arch: depth should be a whole number from 1 to 128, it is 0. {DEPTH}",
    ),
    "embed_dim": (
        {"embed_dim": 10_000_000},
        f"{BUILD} {ARGUMENTS | {'embed_dim': 10_000_000}}: dim should be divisible by num_heads. {DEPTH}",
    ),
    "img_size": (
        {"img_size": 10**9},
        "these sources cannot be merged, for 3 reasons:\n  - input_size: 'v' has [1, 1000000000, 1000000000], 'w' "
        "has [1, 8, 8]; models.sources.N.input_size=[1000000000, 1000000000] resamples the position embeddings of "
        "the other, which is not exact\n  - positions: 'v' has 62500000000000001, 'w' has 5\n  - 'v' has shapes "
        "that do not match its arch: pos_embed is [1, 5, 12], should be [1, 62500000000000001, 12]" + CHANGE,
    ),
    "reg_tokens": (
        {"reg_tokens": 10**12},
        "these sources cannot be merged, for 4 reasons:\n  - register tokens: 'v' has 1000000000000, 'w' has 0\n  "
        "- positions: 'v' has 1000000000005, 'w' has 5\n  - 'v' lacks the tensors reg_token\n  - 'v' has shapes "
        "that do not match its arch: pos_embed is [1, 5, 12], should be [1, 1000000000005, 12]" + CHANGE,
    ),
    "text of megabytes": (
        {"drop_path_rate": "x" * 10**6},
        f"{BUILD} {str(ARGUMENTS | {'drop_path_rate': 'x' * 200})[:200]}...: {{library}}. {DEPTH}",
    ),
}


def stated(folder: str, **changes: Any) -> None:
    file = Path(folder, "config.json")
    content = json.loads(file.read_text())
    content["model_args"] |= changes
    file.write_text(json.dumps(content))


@pytest.mark.full
@pytest.mark.parametrize("case", SIZES)
def test_a_size_that_no_tensor_has(case: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, expected = SIZES[case]
    stated("v", **changes)
    found = message(VITS, capsys)
    start, _, end = expected.partition("{library}")
    assert found.startswith(start)
    assert found.endswith(end)
    assert "{library}" in expected or found == expected
    assert len(found) < 1500


def test_a_depth_of_the_entry_is_limited_without_tensors(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = "{family: vit, name: vit_tiny_patch16_224.augreg_in21k, args: {depth: 100000}}"
    found = message(
        f"check 'models.sources=[{{name: v, arch: {entry}}}, {{name: a, checkpoint: a}}]' data=none", capsys
    )
    assert found == f"source 'v': arch: depth should be a whole number from 1 to 128, it is 100000. {DEPTH}"


def test_an_mlp_of_a_million_layers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stated("a", widths=[8] * 100_000)
    assert message(CHECK, capsys) == (
        f"source 'a': a: arch.widths: should have at most 1000 items, got {str([8] * 99)[:200]}...."
    )


@pytest.mark.full
def test_a_number_of_classes_is_that_of_the_head(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = place / "a/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_classes": 10**12}))
    assert main(shlex.split(CHECK)) == 0
    assert "1000000000000" not in capsys.readouterr().out


def test_lists_in_messages_have_an_end() -> None:
    assert listed(["x"] * 102) == ", ".join(["x"] * 100) + " and 2 more"
