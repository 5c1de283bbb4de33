"""Files that others wrote: only regular files are read, up to a size, and each fault is one `UnreadableError`.

No other place of the package opens a text, JSON or YAML file. Weights, arrays and images are opened by their
libraries, after `require_regular`: a named pipe or a device would block for ever or never end.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fsmerge_cli.common.errors import UserError, reason
from fsmerge_cli.common.shown import shortened, shown

MAX_BYTES = 64 * 2**20
"""Largest text or JSON file that is read."""
MAX_YAML_BYTES = 2**20
"""Largest YAML file that is read; its parser is a hundred times slower."""
MAX_DEPTH = 100
"""Most levels of values inside each other."""
MAX_VALUES = 100_000
"""Most values of a YAML file, counted after its aliases are replaced by what they stand for."""

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


ZEROS = 120
"""Bytes at the start of a file of which a third are zero in UTF-16 and UTF-32."""

DEEP = f"it has more than {MAX_DEPTH} levels inside each other"
PASS = "Repair the file, or pass another one."
SAVE = "Save it as UTF-8."


class UnreadableError(UserError):
    """A file that cannot be read, or is not what it should be.

    why: the reason, as part of a sentence. advice: what to do, where the place knows no better. remedy: what to do
    against this very fault ("": nothing that is special to it).
    """

    def __init__(self, path: Path, why: str, advice: str = PASS, remedy: str = "") -> None:
        self.path, self.why, self.remedy = path, why, remedy
        super().__init__(f"{shown(path)} cannot be read: {why}. {remedy or advice}")


def require_regular(path: Path) -> None:
    """Raise OSError where `path`, after links, is missing or is no regular file, with what it is as its text.

    Its first byte is read without waiting: some files of the system, such as /proc/kmsg, only look regular.
    """
    mode = stat.S_IFMT(os.stat(path).st_mode)
    if mode != stat.S_IFREG:
        code = errno.EISDIR if mode == stat.S_IFDIR else errno.EINVAL
        raise OSError(code, f"it is {KINDS.get(mode, 'no file')}, not a regular file", str(path))
    with open(path, "rb", buffering=0, opener=_without_waiting) as file:
        if file.read(1) is None:
            raise OSError(errno.EINVAL, "it is a stream of the system, not a regular file", str(path))


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """The content of a UTF-8 file, without a byte order mark. Raises UnreadableError."""
    try:
        require_regular(path)
        with open(path, "rb", opener=_without_waiting) as file:
            content = file.read(limit + 1) or b""  # None: nothing to read without waiting
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise UnreadableError(path, reason(error)) from None
    if len(content) > limit:
        raise UnreadableError(path, f"it is larger than {limit // 2**20} MB, the limit for such a file")
    for mark, name in ENCODINGS.items():
        if content.startswith(mark):
            raise UnreadableError(path, f"it is {name} text", remedy=SAVE)
    start = content[:ZEROS]
    if start and 3 * start.count(0) >= len(start):
        raise UnreadableError(path, "it has zero bytes, as UTF-16 text without its mark has", remedy=SAVE)
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} is 0x{content[error.start]:02x}"
        raise UnreadableError(path, f"it is not UTF-8 text ({where})", remedy=SAVE) from None


def lines_of(content: str) -> list[str]:
    """The lines of a file. Only line feed and carriage return end one; `splitlines` also splits at U+2028."""
    return content.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UnreadableError, also for keys that are given twice."""
    text = read_text(path)
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        why = f"it is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        raise UnreadableError(path, why if text.strip() else "it is empty") from None
    except RecursionError:
        raise UnreadableError(path, DEEP) from None
    except ValueError as error:  # a repeated key; an integer of thousands of digits
        raise UnreadableError(path, f"it is not valid JSON ({error})") from None
    _check_depth(found, path)
    return found


def read_json_object(path: Path, advice: str = PASS) -> dict[str, Any]:
    """The content of a JSON file with one object. Raises UnreadableError; advice: its last sentence."""
    with _advised(advice):
        return _mapping(read_json(path), path)


def read_yaml(path: Path, advice: str = PASS) -> dict[str, Any]:
    """The keys and values of a YAML file; {} for an empty file. Raises UnreadableError, also for repeated keys."""
    with _advised(advice):
        return _yaml(path)


@contextmanager
def _advised(advice: str) -> Iterator[None]:
    try:
        yield
    except UnreadableError as error:
        raise UnreadableError(error.path, error.why, advice, error.remedy) from None


def _yaml(path: Path) -> dict[str, Any]:
    text = read_text(path, MAX_YAML_BYTES)
    try:
        _check_events(text, path)
        found = _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        why = str(error.problem or error.context or "no YAML")
        if mark and re.match(r"\s*\t", "".join(text.split("\n")[mark.line : mark.line + 1])):
            why = "a tab, but YAML is indented with spaces"
        if "maximum nesting depth" in why:
            where, why = "", DEEP
        raise UnreadableError(path, f"{where}{shortened(why)}") from None
    except yaml.YAMLError as error:
        raise UnreadableError(path, f"it is not valid YAML ({shortened(str(error).splitlines()[0])})") from None
    except (ValueError, RecursionError, OverflowError) as error:  # a date or a number that Python cannot represent
        raise UnreadableError(path, f"it is not valid YAML ({shortened(str(error))})") from None
    _check_size(found, path)
    return _mapping({} if found is None else found, path)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A safe loader that refuses repeated keys, of which YAML's other readers silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{shortened(key.value)}' is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)  # replaces `<<: *name` by the pairs of what it stands for
        if len(node.value) > MAX_VALUES:
            why = f"its aliases (*name) stand for more than {MAX_VALUES} values"
            raise yaml.constructor.ConstructorError(None, None, why, node.start_mark)


def _check_events(text: str, path: Path) -> None:
    """Depth and number of documents, read as a stream: building the values of a deep file overflows the stack."""
    depth = documents = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if depth > MAX_DEPTH:
            raise UnreadableError(path, DEEP)
        if documents > 1:
            raise UnreadableError(path, "it has several documents (a line ---), and only one can be used")


def _check_size(found: Any, path: Path) -> None:
    """An alias stands for a whole value, so that a few lines can stand for any number of values."""
    waiting, count = [found], 0
    while waiting:
        value, count = waiting.pop(), count + 1
        if count > MAX_VALUES:
            raise UnreadableError(path, f"its aliases (*name) stand for more than {MAX_VALUES} values")
        waiting += [*value.keys(), *value.values()] if isinstance(value, dict) else ()
        waiting += value if isinstance(value, list | set | tuple) else ()


def _check_depth(found: Any, path: Path) -> None:
    level, depth = [found], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH + 1:
            raise UnreadableError(path, DEEP)
        level = [inner for value in level for inner in _inside(value)]


def _inside(value: Any) -> Sequence[Any]:
    return [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{shortened(twice)}' is given twice")
    return found


def _mapping(found: Any, path: Path) -> dict[str, Any]:
    if not isinstance(found, dict):
        held = {list: "a list", str: "a text", type(None): "null"}.get(type(found), "a single value")
        raise UnreadableError(path, f"it should hold keys and values, and holds {held}")
    return found
