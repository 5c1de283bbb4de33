"""The case of a bad input and the functions that prepare one.

A case is prepared in an empty folder that holds two MLPs, `a` and `b` (4 x 4 grey pixels, 8 and 8 units, 3
classes), two vision transformers `v` and `w`, and images/a, images/b. In a message, `{folder}` is that folder,
`{library}` the message of a library, which differs between versions, and `{x}` 300 times the letter x.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file

from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.data import DATASETS
from fsmerge_cli.data.images import digits
from fsmerge_cli.models.source import Source
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

Prepare = Callable[[Path, pytest.MonkeyPatch], object]


@dataclass(frozen=True)
class Case:
    """One case: the command line, its exit code and its message.

    message: all of standard error (code 2), or every `note:` on standard output (code 0). prepare: makes the
    input bad. installed: also run with the installed command. quick: run in `make quick` too.
    """

    name: str
    call: str
    code: int
    message: str
    prepare: Prepare = lambda folder, patch: None
    installed: bool = False
    quick: bool = False


def write_sources(folder: Path) -> None:
    """The valid sources and images that every case starts from."""
    for seed, name in enumerate(("a", "b")):
        save(folder / name, mlp_source(name, [8, 8], seed))
        (folder / "images" / name).mkdir(parents=True)
        for n in range(3):
            Image.new("L", (4, 4), 40 * n + seed).save(folder / f"images/{name}/{n}.png")
    for seed, name in enumerate(("v", "w")):
        save(folder / name, replace(vit_source("class token", seed, in_chans=1), name=name))


def save(folder: Path, source: Source) -> None:
    assert source.head is not None
    stored = head_tensors({source.name: source.head})
    write_model(folder, model_config(source.family, source.arch), source.weights, *stored)


# Functions that make an input bad


def tensors(path: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        content = {name: tensor.clone() for name, tensor in load_file(folder / path).items()}
        change(content)
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, folder / path)

    return prepare


def prefixed(*prefixes: str) -> Callable[[dict[str, torch.Tensor]], None]:
    """The same tensors once under each prefix, as training frameworks and wrappers save them."""

    def change(content: dict[str, torch.Tensor]) -> None:
        own = {f"{prefix}{name}": tensor.clone() for prefix in prefixes for name, tensor in content.items()}
        content.clear()
        content.update(own)

    return change


def put(path: str, content: bytes | str) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def config(source: str, **changes: Any) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        file = folder / source / "config.json"
        content = json.loads(file.read_text())
        for key, value in changes.items():
            place = content
            *path, last = key.split("__")
            for part in path:
                place = place[part]
            place[last] = value
        file.write_text(json.dumps(content))

    return prepare


def cut(path: str, size: int) -> Prepare:
    return lambda folder, patch: (folder / path).write_bytes((folder / path).read_bytes()[:size])


def remove(path: str) -> Prepare:
    return lambda folder, patch: (folder / path).unlink()


def make(path: str) -> Prepare:
    return lambda folder, patch: (folder / path).mkdir(parents=True)


def both(*steps: Prepare) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        for step in steps:
            step(folder, patch)

    return prepare


def header(content: bytes, size: int | None = None, rest: bytes = b"") -> Prepare:
    """A safetensors file with this header; size: the stated header size, where it is wrong."""
    length = len(content) if size is None else size
    return put("a/model.safetensors", length.to_bytes(8, "little") + content + rest)


def described(entry: dict[str, Any], rest: bytes = b"") -> Prepare:
    return header(json.dumps({"fc0.weight": entry}).encode(), rest=rest)


def legacy(content: Callable[[dict[str, torch.Tensor]], object]) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        torch.save(content(load_file(folder / "a/model.safetensors")), folder / "a/model.pt")

    return prepare


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return (os.mkdir, ("sprung",))


def fails(target: str, error: BaseException) -> Prepare:
    """The function `target` raises `error`."""

    def refuse(*args: object, **options: object) -> None:
        raise error

    return lambda folder, patch: patch.setattr(target, refuse)


def folder_fails(error: OSError) -> Prepare:
    """The temporary folder of the output cannot be created."""
    real = Path.mkdir

    def mkdir(path: Path, *args: Any, **options: Any) -> None:
        if path.suffix == ".tmp":
            raise error
        real(path, *args, **options)

    return lambda folder, patch: patch.setattr(Path, "mkdir", mkdir)


def written_fails(name: str, error: OSError) -> Prepare:
    """Writing a file called `name` fails, as on a full disk."""
    real = Path.write_text

    def write(path: Path, *args: Any, **options: Any) -> int:
        if path.name == name:
            raise error
        return real(path, *args, **options)

    return lambda folder, patch: patch.setattr(Path, "write_text", write)


def missing(module: str) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        digits._load.cache_clear()
        patch.setitem(sys.modules, module, None)

    return prepare


def locked(folder: Path, patch: pytest.MonkeyPatch) -> None:
    lock = FileLock(folder / ".out.lock")
    lock.acquire()
    patch.setattr(Case, "held", lock, raising=False)  # released at the end of the case


def head_of(classes: int, width: int = 8) -> Prepare:
    return tensors("a/heads.safetensors", lambda t: t.update({"a.weight": torch.zeros(classes, width)}))


def images(make_one: Callable[[Path], object], names: tuple[str, ...] = ("a/0.png",)) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        for name in names:
            make_one(folder / "images" / name)

    return prepare


def only(task: str, count: int) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        for path in sorted((folder / "images" / task).iterdir())[count:]:
            path.unlink()

    return prepare


def animated(path: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (10, 90, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def bomb(path: Path) -> None:
    """A PNG of a few bytes whose header states 30000 x 30000 pixels."""
    Image.new("L", (4, 4)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = (30000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    path.write_bytes(bytes(content))


def sixteen(path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(path)


# The command lines


def two(first: str = "name:a,checkpoint:a", second: str = "name:b,checkpoint:b") -> str:
    return f"merge 'models.sources=[{{{first}}},{{{second}}}]' output.dir=out"


AVERAGE = f"{two()} method=average"
VITS = f"{two('name:v,checkpoint:v', 'name:w,checkpoint:w')} method=average"
KD = f"{two()} method=kd method.steps=1 data=folder data.root=images data.images_per_task=3 hardware.threads=1"
PAIR = "merge +models=digits_mlp_pair output.dir=out"
FILE = f"{two('name:a,checkpoint:a/model.safetensors')} method=average"
LEGACY = f"{two('name:a,checkpoint:a/model.pt')} method=average"
DATA = ", ".join(sorted(DATASETS))
NOT_EVALUATED = "no data: nothing was evaluated"
FULL = OSError(28, "No space left on device")
READ_ONLY = OSError(30, "Read-only file system")
DENIED = PermissionError(13, "Permission denied")
NAN, INF = float("nan"), float("inf")
