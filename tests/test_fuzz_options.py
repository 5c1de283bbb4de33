"""Random options and command lines: each is either accepted or refused with a message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import UserError
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.data import DATASETS
from fsmerge_cli.methods import METHODS
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.request import request
from tests.support.bad_inputs import write_sources
from tests.support.fuzzing import NUMBERS, QUIETLY

pytestmark = pytest.mark.full

MORE = settings(QUIETLY, max_examples=1500)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_sources(folder)
    return folder


def keys(*classes: Any) -> list[str]:
    return sorted({field.name for cls in classes for field in fields(cls)})


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.sampled_from(
        ["", "auto", "all", "own", "full", "low_rank", "cpu", "cuda:7", "60s", "../x", "\0", "\x1b[2J"]
    ),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["_target_", "family", "name", "x"]) | st.integers(0, 3), inner, max_size=2
        )
    ),
    max_leaves=4,
)


def accept_or_refuse(build: Callable[[], object]) -> str:
    try:
        build()
    except UserError as error:
        message = str(error)
    else:
        return "accepted"
    assert message
    return "refused"


@pytest.mark.full
@MORE
@given(
    method=st.fixed_dictionaries({"name": st.sampled_from(sorted(METHODS)) | SCALARS})
    .flatmap(lambda base: st.dictionaries(st.sampled_from(keys(*METHODS.values())), VALUES, max_size=2)
    .map(lambda more: {**more, **base}))
)  # fmt: skip
def test_options_of_a_method(method: dict[str, Any]) -> None:
    accept_or_refuse(lambda: request([], method, {"name": "digits"}, "cpu", 0, False))


@pytest.mark.full
@MORE
@given(
    data=st.dictionaries(st.sampled_from(keys(*DATASETS.values())), VALUES, max_size=3),
    hardware=st.dictionaries(st.sampled_from(keys(Hardware)), VALUES, max_size=3),
    seed=SCALARS,
    overwrite=SCALARS,
    every=VALUES,
)
def test_options_of_data_and_hardware(
    data: dict[str, Any], hardware: dict[str, Any], seed: Any, overwrite: Any, every: Any
) -> None:
    accept_or_refuse(lambda: request([], "average", data, hardware, seed, overwrite, False, every))
    accept_or_refuse(lambda: request([], "average", {"name": "folder", **data}, hardware, 0, False))
    accept_or_refuse(lambda: request([], "average", None, "cpu", seed, overwrite, False, every))


@pytest.mark.full
@MORE
@given(entry=st.dictionaries(st.sampled_from(keys(SourceSpec)), VALUES, max_size=4), named=st.booleans())
def test_options_of_a_source(entry: dict[str, Any], named: bool) -> None:
    accept_or_refuse(
        lambda: request([{"name": "a", **entry} if named else entry], "average", None, "cpu", 0, False)
    )


TEXTS = st.text(st.sampled_from("abc019.,:=~@${}[]()'\"\\ -+_%#&|/\n\x00é"), max_size=12)
PLACES = st.sampled_from(
    ["seed", "method.width", "+method.x", "hardware.threads", "data", "output", "output.dir", "models.sources"]
)


@pytest.mark.full
@settings(QUIETLY, max_examples=60)
@given(place=PLACES, value=TEXTS)
def test_the_command_line(
    good: Path, place: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One key of one call; its source does not exist, so that no accepted call runs."""
    monkeypatch.chdir(good)
    before = sorted(path.name for path in good.iterdir())
    call = ["merge", "models.sources=[{name: a, checkpoint: gone}]", "method=average", f"{place}={value}"]
    assert main(call) == 2
    err = capsys.readouterr().err
    assert "fsmerge: error: " in err
    assert "Traceback" not in err
    assert sorted(path.name for path in good.iterdir()) == before
