"""Text, JSON and YAML files of others: a fault is one line that names the file and the reason."""

from __future__ import annotations

import ast
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fsmerge_cli.checkpoints.tasks import read_labels
from fsmerge_cli.cli import main
from fsmerge_cli.common import foreign_files
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.foreign_files import UnreadableError, read_json, read_json_object, read_text, read_yaml
from tests.support.bad_inputs import write_sources

SHORT = 10.0
"""Seconds in which every fault is found."""

DEEP = "it has more than 100 levels inside each other"
ALIASES = "its aliases (*name) stand for more than 100000 values"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
MERGED_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b}\n  <<: [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
NO_MARK = "it has zero bytes, as UTF-16 text without its mark has"
YAML: list[tuple[str, bytes | str, str]] = [
    ("a tab", "a:\n\tb: 1\n", "line 2, column 1: a tab, but YAML is indented with spaces"),
    ("a tab after spaces", "a:\n  b: 1\n  \tc: 2\n", "line 3, column 3: a tab, but YAML is indented with spaces"),
    ("a repeated key", "a: 1\nb: 2\na: 3\n", "line 3, column 1: the key 'a' is given twice"),
    ("a repeated key inside", "x:\n  a: 1\n  a: 2\n", "line 3, column 3: the key 'a' is given twice"),
    ("a repeated key in braces", "{a: 1, a: 2}", "line 1, column 8: the key 'a' is given twice"),
    ("UTF-16", "a: 1".encode("utf-16"), "it is UTF-16 text"),
    ("UTF-16 without its mark", "a: 1".encode("utf-16-le"), NO_MARK),
    ("zero bytes", bytes(9), NO_MARK),
    ("UTF-32", "a: 1".encode("utf-32"), "it is UTF-32 text"),
    ("Latin-1", "a: é".encode("latin-1"), "it is not UTF-8 text (byte 4 is 0xe9)"),
    ("a list", "- 1", "it should hold keys and values, and holds a list"),
    ("a text", "hi", "it should hold keys and values, and holds a text"),
    ("a number", "3", "it should hold keys and values, and holds a single value"),
    ("several documents", "a: 1\n---\nb: 2", "it has several documents (a line ---), and only one can be used"),
    ("an alias bomb", BOMB, ALIASES),
    ("a value that contains itself", "a: &a [*a]", ALIASES),
    ("an alias of nothing", "a: *b", "line 1, column 4: found undefined alias"),
    ("an unclosed bracket", "a: [1", "line 2, column 1: did not find expected ',' or ']'"),
    ("two colons", "a: b: c", "line 1, column 5: mapping values are not allowed in this context"),
    ("a deep file", "\n".join(" " * i + "a:" for i in range(900)), DEEP),
    ("too large a file", "a: " + "x" * 2**20, "it is larger than 1 MB, the limit for such a file"),
    ("a date of no calendar", "a: 2024-13-45", "it is not valid YAML (month must be in 1..12)"),
    (
        "a tag that calls Python",
        "a: !!python/object/apply:os.mkdir [sprung]",
        "line 1, column 4: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.mkdir'",
    ),
]
NO_NAME = "it is not valid JSON (line 1, column 2: Expecting property name enclosed in double quotes)"
JSON: list[tuple[str, bytes | str, str]] = [
    (
        "no JSON",
        "{'a': 1}",
        NO_NAME,
    ),
    ("more after it", "{}\n{}", "it is not valid JSON (line 2, column 1: Extra data)"),
    ("cut off", '{"a": [1,', "it is not valid JSON (line 1, column 10: Expecting value)"),
    ("nothing", "", "it is empty"),
    ("spaces", " \n ", "it is empty"),
    ("a repeated key", '{"b": {"c": 1, "c": 2}}', "it is not valid JSON (the key 'c' is given twice)"),
    ("a deep file", "[" * 100_000, DEEP),
    ("a deep file that Python reads", "[" * 900 + "]" * 900, DEEP),
    ("UTF-16", '{"a": 1}'.encode("utf-16"), "it is UTF-16 text"),
    ("UTF-32 without its mark", '{"a": 1}'.encode("utf-32-be"), NO_MARK),
    ("Latin-1", '{"a": "é"}'.encode("latin-1"), "it is not UTF-8 text (byte 8 is 0xe9)"),
    ("a list", "[1]", "it should hold keys and values, and holds a list"),
    ("null", "null", "it should hold keys and values, and holds null"),
]


def bad(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def reason(read: Callable[[Path], object], path: Path) -> str:
    start = time.monotonic()
    with pytest.raises(UnreadableError) as error:
        read(path)
    assert str(error.value).startswith(f"{path} cannot be read: {error.value.why}. ")
    assert time.monotonic() - start < SHORT
    return error.value.why


@pytest.mark.parametrize(("content", "why"), [case[1:] for case in YAML], ids=[case[0] for case in YAML])
def test_yaml(content: bytes | str, why: str, tmp_path: Path) -> None:
    assert reason(read_yaml, bad(tmp_path / "x.yaml", content)) == why
    assert os.listdir(tmp_path) == ["x.yaml"]


@pytest.mark.parametrize(("content", "why"), [case[1:] for case in JSON], ids=[case[0] for case in JSON])
def test_json(content: bytes | str, why: str, tmp_path: Path) -> None:
    assert reason(read_json_object, bad(tmp_path / "x.json", content)) == why


def test_integers_of_thousands_of_digits(tmp_path: Path) -> None:
    path = bad(tmp_path / "x", '{"a": ' + "9" * 5000 + "}")
    for read in (read_json, read_yaml):
        assert "Exceeds the limit (4300 digits)" in reason(read, path)


def test_what_is_allowed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert read_yaml(bad(path, "\ufeffa: 1\r\nb: [é]\r\n")) == {"a": 1, "b": ["é"]}
    assert read_yaml(bad(path, "a: &a {x: 1}\nb: *a\nc:\n  <<: *a\n  y: 2\n"))["c"] == {"x": 1, "y": 2}
    assert read_yaml(bad(path, "---\na: 1\n...\n")) == {"a": 1}
    assert read_yaml(bad(path, "")) == {}
    assert read_json(bad(path, '\ufeff{"a": [1e400, null]}')) == {"a": [float("inf"), None]}
    start = time.monotonic()
    try:  # depends on the version of the YAML library
        read_yaml(bad(path, MERGED_BOMB))
    except UnreadableError as error:
        assert ALIASES in error.why  # noqa: PT017
    assert time.monotonic() - start < SHORT


def test_only_regular_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    Path("to_pipe").symlink_to("pipe")
    Path("dangling").symlink_to("gone")
    bad(Path("file"), "x")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket")
        found = {
            name: reason(read_text, Path(name))
            for name in ("pipe", "to_pipe", "folder", "socket", "loop", "dangling", "file/x", "x" * 300)
        }
        found |= {name: reason(read_text, Path(name)) for name in ("/dev/zero", "/dev/full", "/dev/null")}
    assert found == {
        "pipe": "it is a named pipe, not a regular file",
        "to_pipe": "it is a named pipe, not a regular file",
        "folder": "it is a folder, not a regular file",
        "socket": "it is a socket, not a regular file",
        "loop": "Too many levels of symbolic links",
        "dangling": "No such file or directory",
        "file/x": "Not a directory",
        "x" * 300: "File name too long",
        **dict.fromkeys(("/dev/zero", "/dev/full", "/dev/null"), "it is a device, not a regular file"),
    }
    with pytest.raises(UnreadableError, match="embedded null byte"):
        read_text(Path("a\0b"))


def test_a_file_that_never_ends_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "sparse.txt").open("wb") as file:
        file.truncate(2**40)
    assert reason(read_text, tmp_path / "sparse.txt") == "it is larger than 64 MB, the limit for such a file"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder)
    return folder


PAIR = "models.sources=[{name: a, checkpoint: a}, {name: b, checkpoint: b}]"
DUPLICATE = '{"x": 1, "x": 2}'
TWICE = "it is not valid JSON (the key 'x' is given twice)"
PIPE = "it is a named pipe, not a regular file"
COMMANDS: list[tuple[str, str, list[str], str]] = [
    (
        "config.json",
        "a/config.json",
        ["check", PAIR, "method=average"],
        "source 'a': a: config.json cannot be read: {}. Repair it, or copy it again.",
    ),
    (
        "labels",
        "labels.json",
        ["check", PAIR, "method=average", "models.sources.0.labels=labels.json"],
        "source 'a': the labels in labels.json cannot be read ({}). Pass another file, or a list: "
        "models.sources.N.labels=[...]",
    ),
    (
        "an index of shards",
        "a/model.safetensors.index.json",
        ["check", PAIR, "models.sources.0.checkpoint=a/model.safetensors.index.json", "method=average"],
        "source 'a': a/model.safetensors.index.json cannot be read: {}. Download it again.",
    ),
    (
        "evaluation.json",
        "run/evaluation.json",
        ["compare", "run*"],
        "run/evaluation.json cannot be read: {}. Run the command again, or leave out this folder.",
    ),
    (
        "a record of a sweep",
        "sweep/jobs/00000.json",
        ["compare", "sweep"],
        "sweep/jobs/00000.json cannot be read: {}. Run the command again, or leave out this folder.",
    ),
    (
        "a file of --config-dir",
        "conf/models/mine.yaml",
        ["check", "+models=mine", "--config-dir", "conf"],
        "{folder}/conf/models/mine.yaml cannot be read: {}. Repair the file, or pass another one.",
    ),
]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["twice", "pipe", "UTF-16", "device"])
@pytest.mark.parametrize(("path", "command", "message"), [c[1:] for c in COMMANDS], ids=[c[0] for c in COMMANDS])
def test_every_file_that_a_command_reads(
    path: str,
    command: list[str],
    message: str,
    kind: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    kept = Path(path).read_bytes() if Path(path).exists() else b""
    Path(path).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        Path(path).symlink_to("/dev/zero")
    else:
        bad(Path(path), DUPLICATE if kind == "twice" else DUPLICATE.encode("utf-16"))
    why = {"twice": TWICE, "pipe": PIPE, "device": "it is a device, not a regular file"}.get(
        kind, "it is UTF-16 text"
    )
    if kind == "UTF-16":
        message = re.sub(r"(\{\}\)?\. ).*", r"\1Save it as UTF-8.", message)
    if path.endswith(".yaml") and kind == "twice":
        why = "line 1, column 10: the key 'x' is given twice"
    if path == "run/evaluation.json" and kind in ("pipe", "device"):
        message = (
            "run* is no finished run (a folder with evaluation.json). Give folders that `fsmerge merge` or "
            "`fsmerge finetune` wrote, a glob of them, or the folder of a sweep."
        )
    try:
        assert main(command) == 2
    finally:
        Path(path).unlink()
        if kept:
            Path(path).write_bytes(kept)
    expected = message.replace("{folder}", str(place)).replace("{}", why)
    assert capsys.readouterr().err == f"fsmerge: error: {expected}\n"


def test_labels_of_an_unknown_home_folder() -> None:
    with pytest.raises(ConfigError, match="Could not determine home directory"):
        read_labels("~nobody-of-that-name/x.txt", "source 'a'")


READERS = {"read_text", "read_bytes", "json.load", "yaml.load", "yaml.safe_load", "csv.reader", "csv.DictReader"}
READERS |= {"OmegaConf.load", "np.loadtxt", "np.genfromtxt", "np.fromfile"}
ELSEWHERE = {
    "common/presets.py": "shipped files",
    "common/hardware.py": "/proc/self/status",
    "runs/estimate.py": "/proc/self/status",
    "common/private_paths.py": "our own files in the cache, passed over where they cannot be read",
    "runs/classifier.py": "a file that the run has just written",
    "runs/export.py": "a file that the run has just written",
    "data/text/files.py": "what `foreign_files` has read",
    "reporting/html.py": "shipped templates",
    "runs/push.py": "what huggingface_hub has downloaded, and the report of a finished run",
}


@pytest.mark.full
def test_no_other_place_reads_a_text_file() -> None:
    """Whoever adds a reader uses `foreign_files`; what is opened by a library is listed in its first lines."""
    package = Path(foreign_files.__file__).parents[1]
    found = set()
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)  # else of foreign_files
            if method and {node.func.attr, ast.unparse(node.func)} & READERS:
                found.add(path.relative_to(package).as_posix())
    assert found == set(ELSEWHERE)
