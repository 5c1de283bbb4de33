"""Random checkpoints: each is either loaded or refused with a message."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.errors import UserError
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.bad_inputs import write_sources
from tests.support.fuzzing import JSON, QUIETLY
from tests.support.sources import mlp_source

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_sources(folder)
    return folder


def load_and_plan(spec: SourceSpec) -> str:
    """Load a source and compile a plan with it; both either succeed or raise an error with a message."""
    try:
        source = load(spec)
        assert isinstance(source, Source)
        compile_plan([source, mlp_source("other", [8, 8], 1)])
    except UserError as error:
        message = str(error)
    else:
        return "loaded"
    assert message
    return "refused"


# Weights

DTYPES = st.sampled_from(
    "BOOL U8 I8 I16 U16 F16 BF16 I32 U32 F32 F64 I64 U64 C64 F4 F6_E2M3 F8_E5M2 F8_E4M3 F8_E8M0 X9".split()  # noqa: SIM905
)
SHAPES = st.lists(st.integers(0, 17) | st.sampled_from([2**31, 2**62, 2**63]), max_size=4)
EDITS = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 1 << 16), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 1 << 16), st.just(0)),
    st.tuples(st.just("insert"), st.integers(0, 1 << 16), st.integers(0, 255)),
)
ENTRY = st.one_of(
    st.tuples(st.just("dtype"), DTYPES | JSON),
    st.tuples(st.just("shape"), SHAPES | JSON),
    st.tuples(st.just("data_offsets"), st.lists(st.integers(0, 2000), min_size=2, max_size=2) | JSON),
    st.tuples(st.just("name"), st.text(max_size=8)),
)


def edited(content: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    data = bytearray(content)
    for kind, place, value in edits:
        at = place % (len(data) + 1)
        if kind == "cut":
            del data[at:]
        elif kind == "insert":
            data.insert(at, value)
        elif at < len(data):
            data[at] ^= value
    return bytes(data)


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def file_of(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


@pytest.mark.parametrize("name", ["model.safetensors", "heads.safetensors"])
@QUIETLY
@given(edits=st.lists(EDITS, min_size=1, max_size=4))
def test_bytes_of_a_checkpoint(good: Path, name: str, edits: list[tuple[str, int, int]]) -> None:
    original = (good / "a" / name).read_bytes()
    try:
        (good / "a" / name).write_bytes(edited(original, edits))
        load_and_plan(SourceSpec("a", checkpoint=str(good / "a")))
    finally:
        (good / "a" / name).write_bytes(original)


@pytest.mark.full
@pytest.mark.parametrize("name", ["model.safetensors", "heads.safetensors"])
@QUIETLY
@given(which=st.integers(0, 9), changes=st.lists(ENTRY, min_size=1, max_size=3), metadata=JSON)
def test_header_of_a_checkpoint(
    good: Path, name: str, which: int, changes: list[tuple[str, Any]], metadata: Any
) -> None:
    original = (good / "a" / name).read_bytes()
    header, rest = header_of(original)
    names = [key for key in header if key != "__metadata__"]
    chosen = names[which % len(names)]
    for key, value in changes:
        if key == "name":
            header[value] = header.pop(chosen)
            chosen = value
        else:
            header[chosen][key] = value
    header["__metadata__"] = {"fsmerge": json.dumps(metadata)}
    try:
        (good / "a" / name).write_bytes(file_of(header, rest))
        load_and_plan(SourceSpec("a", checkpoint=str(good / "a")))
    finally:
        (good / "a" / name).write_bytes(original)


@pytest.mark.full
@QUIETLY
@given(dtype=DTYPES, which=st.integers(0, 3))
def test_a_tensor_of_every_type(good: Path, dtype: str, which: int) -> None:
    """Shape and number of bytes are correct, so that the type itself is tested."""
    bits = {"BOOL": 8, "C64": 64, "BF16": 16, "F4": 4, "F6_E2M3": 6}.get(dtype)
    size = bits or int("".join(c for c in dtype.partition("_")[0] if c.isdigit()))
    original = (good / "a/model.safetensors").read_bytes()
    header, _ = header_of(original)
    names = [key for key in header if key != "__metadata__"]
    place, rest = 0, b""
    for number, name in enumerate(names):
        count = 1
        for length in header[name]["shape"]:
            count *= length
        own = count * (size if number == which else 32) // 8
        header[name] |= {"dtype": dtype if number == which else "F32", "data_offsets": [place, place + own]}
        place, rest = place + own, rest + bytes(own)
    try:
        (good / "a/model.safetensors").write_bytes(file_of(header, rest))
        expected = "loaded" if dtype in ("F16", "BF16", "F32", "F64") else None
        assert load_and_plan(SourceSpec("a", checkpoint=str(good / "a"))) == expected or expected is None
    finally:
        (good / "a/model.safetensors").write_bytes(original)


@pytest.mark.full
@QUIETLY
@given(edits=st.lists(EDITS, min_size=1, max_size=4))
def test_bytes_of_a_legacy_checkpoint(good: Path, edits: list[tuple[str, int, int]]) -> None:
    file = good / "a/model.pt"
    if not (good / "a/legacy").exists():
        torch.save(dict(mlp_source("a", [8, 8], 0).weights), good / "a/legacy")
    file.write_bytes(edited((good / "a/legacy").read_bytes(), edits))
    load_and_plan(SourceSpec("a", checkpoint=str(file)))


# config.json

KEYS = ["architecture", "model_args", "pretrained_cfg", "num_classes", "global_pool", "projection", "num_features"]
ARGS = ["input_size", "widths", "activation", "norm", "bias", "_target_", "checkpoint_path"]
VIT_ARGS = ["img_size", "patch_size", "embed_dim", "depth", "num_heads", "global_pool", "norm_layer", "act_layer"]
STATED = ["mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size", "fixed_input_size"]
SMALL = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 20) | st.sampled_from([2**62, 10**30, 0.5, 1e300, float("nan")])
    | st.sampled_from(["", "relu", "layernorm", "avg", "\x1b[2J", "os.system"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


@QUIETLY
@given(
    source=st.sampled_from("av"),
    top=st.dictionaries(st.sampled_from(KEYS), SMALL, max_size=2),
    args=st.dictionaries(st.sampled_from(ARGS + VIT_ARGS), SMALL, max_size=2),
    stated=st.dictionaries(st.sampled_from(STATED), SMALL, max_size=2),
)
def test_content_of_config_json(
    good: Path, source: str, top: dict[str, Any], args: dict[str, Any], stated: dict[str, Any]
) -> None:
    file = good / source / "config.json"
    original = file.read_text()
    content = json.loads(original)
    content["model_args"] |= args
    content["pretrained_cfg"] |= stated
    try:
        file.write_text(json.dumps({**content, **top}))
        load_and_plan(SourceSpec(source, checkpoint=str(good / source)))
    finally:
        file.write_text(original)


@pytest.mark.full
@QUIETLY
@given(text=st.text(alphabet=string.printable, max_size=30) | JSON.map(json.dumps))
def test_text_of_config_json(good: Path, text: str) -> None:
    file = good / "a/config.json"
    original = file.read_text()
    try:
        file.write_text(text)
        load_and_plan(SourceSpec("a", checkpoint=str(good / "a")))
    finally:
        file.write_text(original)
