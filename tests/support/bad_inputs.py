"""Every bad input that we know of, and what the command says to it.

A case is prepared in an empty folder that holds two MLPs, `a` and `b` (4 x 4 grey pixels, 8 and 8 units, 3
classes), two vision transformers `v` and `w`, and images/a, images/b. In a message, `{folder}` is that folder,
`{library}` what a library says in its own words, which change from version to version, and `{x}` 300 times x.
"""

from __future__ import annotations

import json
import os
import pickle
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
from timm.models import list_models

from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.errors import unknown
from fsmerge_cli.data import DATASETS
from fsmerge_cli.data.images import digits
from fsmerge_cli.models.source import Source
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

Prepare = Callable[[Path, pytest.MonkeyPatch], object]


@dataclass(frozen=True)
class Case:
    """One row: what is typed, how it ends, what is said.

    message: all of standard error (code 2), or every `note:` on standard output (code 0). prepare: makes the input
    bad. installed: also run through the installed command.
    """

    name: str
    call: str
    code: int
    message: str
    prepare: Prepare = lambda folder, patch: None
    installed: bool = False
    quick: bool = False


def write_sources(folder: Path) -> None:
    """The good sources and images that every case starts from."""
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


# What makes an input bad


def tensors(path: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Prepare:
    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        content = {name: tensor.clone() for name, tensor in load_file(folder / path).items()}
        change(content)
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, folder / path)

    return prepare


def prefixed(*prefixes: str) -> Callable[[dict[str, torch.Tensor]], None]:
    """The same tensors once under each prefix, as trainers and wrappers save them."""

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
    """A safetensors file with this header, or one that says that it has this size."""
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
    """The system says no at this place."""

    def refuse(*args: object, **options: object) -> None:
        raise error

    return lambda folder, patch: patch.setattr(target, refuse)


def folder_fails(error: OSError) -> Prepare:
    """The unfinished folder of the output cannot be made."""
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
    patch.setattr(Case, "held", lock, raising=False)  # lets go when the case is over


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
    """A PNG of a few bytes that says it is 30000 x 30000 pixels."""
    Image.new("L", (4, 4)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = (30000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    path.write_bytes(bytes(content))


def sixteen(path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(path)


# The calls


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

HEADERS = [
    Case(
        "empty weights file",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        put("a/model.safetensors", b""),
    ),
    Case(
        "header cut off in its length",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        cut("a/model.safetensors", 5),
        quick=True,
    ),
    Case(
        "header cut off",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        cut("a/model.safetensors", 60),
        installed=True,
    ),
    Case(
        "tensors cut off",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        lambda f, p: cut("a/model.safetensors", len((f / "a/model.safetensors").read_bytes()) - 4)(f, p),
    ),
    Case(
        "header of exabytes",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        header(b"{}", size=2**60),
        installed=True,
    ),
    Case(
        "header above the limit of 100 MB",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        header(b"{}", size=2**27),
    ),
    Case(
        "header is no JSON",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        header(b"not json"),
    ),
    Case(
        "header is a list",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        header(b"[]"),
    ),
    Case(
        "header is no text",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        header(b'{"\xff\xfe": 1}'),
    ),
    Case(
        "header nested a thousand deep",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        header(b'{"a":' * 1000 + b"1" + b"}" * 1000),
    ),
    Case(
        "unknown dtype",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        described({"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}, bytes(4)),
    ),
    Case(
        "negative shape",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        described({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, bytes(4)),
    ),
    Case(
        "shape that overflows",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        described({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}, bytes(4)),
    ),
    Case(
        "shape and bytes disagree",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        described({"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}, bytes(4)),
    ),
    Case(
        "offsets outside the file",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        described({"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, bytes(4)),
    ),
    Case(
        "offsets backwards",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        described({"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}, bytes(4)),
    ),
    Case(
        "tensors that share bytes",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        header(
            json.dumps({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in ("x", "y")}).encode(),
            rest=bytes(4),
        ),
    ),
    Case(
        "a web page instead of weights",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        put("a/model.safetensors", "<!doctype html><title>404</title>" * 9),
    ),
    Case(
        "a pointer of git-lfs instead of weights",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        put("a/model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
    ),
    Case(
        "heads cut off",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.",
        cut("a/heads.safetensors", 60),
    ),
]

TENSORS = [
    Case(
        "whole numbers as weights",
        AVERAGE,
        2,
        (
            "source 'a': a: fc1.weight is of type int8; weights are fp32, fp16, bf16 or fp64. Quantised "
            "models cannot be merged: pass the model that it was made from."
        ),
        tensors("a/model.safetensors", lambda t: t.update({"fc1.weight": t["fc1.weight"].to(torch.int8)})),
        quick=True,
    ),
    Case(
        "truth values as weights",
        AVERAGE,
        2,
        (
            "source 'a': a: fc1.bias is of type bool; weights are fp32, fp16, bf16 or fp64. Quantised models "
            "cannot be merged: pass the model that it was made from."
        ),
        tensors("a/model.safetensors", lambda t: t.update({"fc1.bias": t["fc1.bias"] > 0})),
    ),
    Case(
        "complex weights",
        AVERAGE,
        2,
        (
            "source 'a': a: fc1.bias is of type complex64; weights are fp32, fp16, bf16 or fp64. Quantised "
            "models cannot be merged: pass the model that it was made from."
        ),
        tensors("a/model.safetensors", lambda t: t.update({"fc1.bias": t["fc1.bias"].to(torch.complex64)})),
    ),
    Case(
        "a head of whole numbers",
        AVERAGE,
        2,
        (
            "source 'a': a: a.bias is of type int64; weights are fp32, fp16, bf16 or fp64. Quantised models "
            "cannot be merged: pass the model that it was made from."
        ),
        tensors("a/heads.safetensors", lambda t: t.update({"a.bias": t["a.bias"].long()})),
    ),
    Case(
        "half precision is fine",
        AVERAGE,
        0,
        NOT_EVALUATED,
        tensors("a/model.safetensors", lambda t: t.update({n: x.half() for n, x in t.items()})),
    ),
    Case(
        "NaN in the weights",
        AVERAGE,
        2,
        "source 'a': a: fc1.weight holds values that are not finite. Train or download the model again.",
        tensors("a/model.safetensors", lambda t: t["fc1.weight"].fill_(NAN)),
        installed=True,
    ),
    Case(
        "infinity in the weights",
        AVERAGE,
        2,
        "source 'b': b: fc0.bias holds values that are not finite. Train or download the model again.",
        tensors("b/model.safetensors", lambda t: t["fc0.bias"].fill_(-INF)),
    ),
    Case(
        "fp64 beyond fp32",
        AVERAGE,
        2,
        "source 'a': a: fc0.bias holds values that are not finite. Train or download the model again.",
        tensors("a/model.safetensors", lambda t: t.update({"fc0.bias": t["fc0.bias"].double().fill_(1e300)})),
    ),
    Case(
        "NaN in a head",
        AVERAGE,
        2,
        "source 'a': a: a.bias holds values that are not finite. Train or download the model again.",
        tensors("a/heads.safetensors", lambda t: t["a.bias"].fill_(NAN)),
    ),
    Case(
        "a tensor is missing",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - 'a' misses the tensors fc1.bias\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/model.safetensors", lambda t: t.pop("fc1.bias")),
    ),
    Case(
        "all tensors are missing",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - 'a' misses the tensors fc0.weight, fc0.bias, fc1.weight and 1 more\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/model.safetensors", lambda t: t.clear()),
    ),
    Case(
        "a tensor too many",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - 'a' has unknown tensors extra\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/model.safetensors", lambda t: t.update(extra=torch.zeros(2))),
    ),
    Case(
        "a name that would clear the terminal",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - 'a' has unknown tensors \\x1b[2J\\x07\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/model.safetensors", lambda t: t.update({"\x1b[2J\x07": torch.zeros(2)})),
    ),
    Case(
        "two models in one file",
        AVERAGE,
        2,
        (
            "source 'a': a holds 2 models, under 'student.', 'teacher.'. Say which one to take: "
            "models.sources.N.prefix=..."
        ),
        tensors("a/model.safetensors", prefixed("student.", "teacher.")),
        installed=True,
    ),
    Case(
        "a prefix that is not there",
        f"{two('name:a,checkpoint:a,prefix:techer')} method=average",
        2,
        "source 'a': a: unknown prefix 'techer'. Did you mean 'teacher'? Available: student, teacher.",
        tensors("a/model.safetensors", prefixed("student.", "teacher.")),
    ),
    Case(
        "no averaged weights",
        f"{two('name:a,checkpoint:a,ema:true')} method=average",
        2,
        (
            "source 'a': a holds no EMA weights; models were found under 'module.'. Pass "
            "models.sources.N.ema=false or null."
        ),
        tensors("a/model.safetensors", prefixed("module.")),
    ),
    Case(
        "averaged weights that were not asked for",
        AVERAGE,
        0,
        (
            f"{NOT_EVALUATED}\n'a': the weights under 'model.' were taken, the EMA weights under 'model_ema.' "
            "were not (models.sources.N.ema=true takes them)"
        ),
        tensors("a/model.safetensors", prefixed("model.", "model_ema.")),
    ),
    Case(
        "weights of another library",
        AVERAGE,
        2,
        (
            "source 'a': a holds Hugging Face's DeiT, which cannot be read. Of other libraries fsmerge reads "
            "torchvision's VisionTransformer, Hugging Face's ViTModel and ViTForImageClassification, and CLIP "
            "vision towers of OpenAI and open_clip. Load the model into timm, and save its state_dict."
        ),
        tensors(
            "a/model.safetensors", lambda t: t.update({"embeddings.distillation_token": torch.zeros(1, 1, 8)})
        ),
    ),
    Case(
        "a module in a configuration",
        f"{two('name:a,module:timm.VisionTransformer')} method=average",
        2,
        (
            "source 'a': module is for Python, where it takes a torch module, not 'timm.VisionTransformer'. Pass "
            "a path: models.sources.N.checkpoint=..."
        ),
    ),
    Case(
        "labels for a folder of two heads",
        f"{two('name:a,checkpoint:a,labels:[x]')} method=average",
        2,
        (
            "source 'a': labels are given, but a has 2 heads with labels of their own: a, z. Take "
            "models.sources.0.labels away, or choose one with models.sources.0.head=NAME"
        ),
        tensors("a/heads.safetensors", lambda t: t.update({"z.weight": torch.zeros(3, 8)})),
    ),
    Case(
        "a head that cannot name a task",
        AVERAGE,
        2,
        (
            "the task name '../z' cannot be used: it names a folder and a head. Pass models.sources.N.name=... of "
            "1 to 80 printable characters, without / and \\, no dot first, no space at an end."
        ),
        tensors("a/heads.safetensors", lambda t: t.update({"../z.weight": torch.zeros(3, 8)})),
    ),
    Case(
        "a file of labels that is not there",
        f"{two('name:a,checkpoint:a,labels:names.txt')} method=average",
        2,
        (
            "source 'a': the labels in names.txt cannot be read (No such file or directory). Pass another file, "
            "or a list: models.sources.N.labels=[...]"
        ),
    ),
    Case(
        "a file of labels that holds something else",
        f"{two('name:a,checkpoint:a,labels:names.json')} method=average",
        2,
        (
            "source 'a': names.json should hold label names, one per line (.txt) or as a list (.json), none of "
            "them empty."
        ),
        put("names.json", "[1, 2, 3]"),
    ),
    Case(
        "labels of a data set that is not there",
        f"{two('name:a,checkpoint:a,labels:data')} method=average",
        2,
        (
            "source 'a': labels=data takes the names of class folders, and there is no data set. Pass data=folder "
            "with class folders, or a list: models.sources.N.labels=[...]"
        ),
    ),
    Case(
        "a type of numbers that is none",
        f"{AVERAGE} output.dtype=float8",
        2,
        "unknown output.dtype 'float8'. Did you mean 'float32'? Available: bfloat16, float16, float32.",
    ),
    Case(
        "numbers that float16 does not have",
        f"{AVERAGE} output.dtype=float16",
        2,
        (
            "output.dtype=float16 cannot hold fc1.bias, whose largest number is 1e+06. Take output.dtype=bfloat16 "
            "or float32."
        ),
        tensors("a/model.safetensors", lambda t: t["fc1.bias"].fill_(2e6)),
    ),
    Case(
        "another input size for an MLP",
        f"{two('name:a,checkpoint:a,input_size:8')} method=average",
        2,
        "source 'a': a: mlp reads images of [4, 4] alone. Take models.sources.N.input_size away.",
    ),
    Case(
        "an input size between two patches",
        f"{two('name:v,checkpoint:v,input_size:10', 'name:w,checkpoint:w')} method=average",
        2,
        (
            "source 'v': v: input_size [10, 10] is no multiple of the patch size [4, 4]. Pass "
            "models.sources.N.input_size that is."
        ),
    ),
    Case(
        "a transposed tensor",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - 'a' has other shapes than its arch says: fc0.weight is [16, 8], should be [8, 16] (it is "
            "transposed)\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/model.safetensors", lambda t: t.update({"fc0.weight": t["fc0.weight"].T})),
        installed=True,
        quick=True,
    ),
    Case(
        "a tensor of zero size",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - 'a' has other shapes than its arch says: fc0.weight is [0, 16], should be [8, 16]\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/model.safetensors", lambda t: t.update({"fc0.weight": torch.zeros(0, 16)})),
    ),
    Case(
        "a scalar where a vector is meant",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - 'a' has other shapes than its arch says: fc0.bias is [], should be [8]\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/model.safetensors", lambda t: t.update({"fc0.bias": torch.zeros(())})),
    ),
    Case(
        "a head without classes",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - the head of 'a' has no classes\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors(
            "a/heads.safetensors", lambda t: t.update({"a.weight": torch.zeros(0, 8), "a.bias": torch.zeros(0)})
        ),
    ),
    Case(
        "a head of another width",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - the head of 'a' is [3, 5], should be [classes, 8]\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        head_of(3, 5),
    ),
    Case(
        "a head that is a vector",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - the head of 'a' is [8], should be [classes, 8]\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/heads.safetensors", lambda t: t.update({"a.weight": torch.zeros(8)})),
    ),
    Case(
        "a head's bias of another length",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - the head of 'a' has 3 classes and a bias [7]\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/heads.safetensors", lambda t: t.update({"a.bias": torch.zeros(7)})),
    ),
    Case(
        "labels that do not match the head",
        two("name:a,checkpoint:a,labels:[x,y]") + " method=average",
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - the head of 'a' has 3 classes, but 2 labels are given\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
    ),
    Case(
        "a head that is not there",
        two("name:a,checkpoint:a,head:other") + " method=average",
        2,
        "source 'a': a: unknown head 'other'. Available: a.",
    ),
    Case(
        "two heads and none is chosen: each is a task",
        AVERAGE,
        0,
        f"{NOT_EVALUATED}\n'z' and 'a' are tasks of one model: its weights count for each",
        tensors("a/heads.safetensors", lambda t: t.update({"z.weight": torch.zeros(3, 8)})),
    ),
    Case(
        "tied tensors, each written",
        AVERAGE,
        0,
        NOT_EVALUATED,
        tensors("a/model.safetensors", lambda t: t.update({"fc1.bias": t["fc0.bias"].clone()})),
    ),
    Case(
        "tied tensors in a legacy file",
        two("name:a,checkpoint:a/model.pt") + " method=average",
        0,
        NOT_EVALUATED,
        legacy(lambda t: {**t, "fc1.bias": t["fc0.bias"]}),
    ),
    Case(
        "tied tensors, one written",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - 'a' misses the tensors fc1.bias\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/model.safetensors", lambda t: t.pop("fc1.bias")),
    ),
]

PICKLES = [
    Case(
        "a pickle that runs code",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt is damaged, or not a pickle of plain weights, which may run code and is "
            "not opened. Download it again, or convert it once, where you trust it, with "
            "safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        put("a/model.pt", pickle.dumps(Trap())),
        installed=True,
    ),
    Case(
        "a state dict that runs code",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt is damaged, or not a pickle of plain weights, which may run code and is "
            "not opened. Download it again, or convert it once, where you trust it, with "
            "safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        legacy(lambda t: {**t, "fc0.bias": Trap()}),
        quick=True,
    ),
    Case(
        "a whole module, pickled",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt is damaged, or not a pickle of plain weights, which may run code and is "
            "not opened. Download it again, or convert it once, where you trust it, with "
            "safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        legacy(lambda t: torch.nn.Linear(2, 2)),
    ),
    Case(
        "a legacy file cut off",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt is damaged, or not a pickle of plain weights, which may run code and is "
            "not opened. Download it again, or convert it once, where you trust it, with "
            "safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        both(legacy(lambda t: t), cut("a/model.pt", 900)),
    ),
    Case(
        "an empty legacy file",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt is damaged, or not a pickle of plain weights, which may run code and is "
            "not opened. Download it again, or convert it once, where you trust it, with "
            "safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        put("a/model.pt", b""),
    ),
    Case(
        "a legacy file without tensors",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt holds no state dict (tensors by name); convert it once, where you trust "
            "it, with safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        legacy(lambda t: {"epoch": 3}),
    ),
    Case(
        "a legacy file that is a list",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt holds no state dict (tensors by name); convert it once, where you trust "
            "it, with safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        legacy(lambda t: list(t.values())),
    ),
    Case(
        "a legacy file with sparse tensors",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt holds no state dict (tensors by name); convert it once, where you trust "
            "it, with safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        legacy(lambda t: {**t, "fc1.bias": t["fc1.bias"].to_sparse()}),
    ),
    Case(
        "plain weights in a legacy file are fine",
        LEGACY,
        0,
        NOT_EVALUATED,
        legacy(lambda t: {"state_dict": t, "epoch": 3}),
    ),
    Case(
        "weights of numpy",
        two("name:a,checkpoint:a/model.npz") + " method=average",
        2,
        (
            "source 'a': a/model.npz is not a .safetensors file. Pass one, a folder with model.safetensors, "
            "or a state dict as .pt, .pth, .bin, .ckpt."
        ),
        put("a/model.npz", b"PK"),
    ),
    Case(
        "a folder with a pickle alone",
        AVERAGE,
        2,
        "source 'a': a: there is no file model.safetensors. Check the path of the checkpoint.",
        both(legacy(lambda t: t), remove("a/model.safetensors")),
    ),
]

ARCHITECTURES = [
    Case(
        "another depth",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - depth: 'a' has 2, 'b' has 3\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "b", mlp_source("b", [8, 8, 8], 1)),
    ),
    Case(
        "another activation",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - activation: 'a' has relu, 'b' has gelu\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "b", mlp_source("b", [8, 8], 1, activation="gelu")),
    ),
    Case(
        "another norm",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - norm: 'a' has none, 'b' has batch\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "b", mlp_source("b", [8, 8], 1, norm="batch")),
    ),
    Case(
        "another image size",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - input_size: 'a' has [1, 4, 4], 'b' has [1, 5, 5]\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "b", mlp_source("b", [8, 8], 1, input_size=(1, 5, 5))),
    ),
    Case(
        "another family",
        two(second="name:w,checkpoint:w") + " method=average",
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - 'a' is a mlp, 'w' a vit\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
    ),
    Case(
        "another width where the method takes none",
        two() + " method=slerp data=folder data.root=images",
        2,
        (
            "method=slerp needs sources of one width and one number of heads, the merged model's. Take "
            "method=fs_merge or method=kd, which do not."
        ),
        lambda f, p: save(f / "b", mlp_source("b", [6, 6], 1)),
    ),
    Case(
        "another patch size",
        VITS,
        2,
        (
            "these sources cannot be merged, for 2 reasons:\n"
            "  - patch size: 'v' has [4, 4], 'w' has [2, 2]\n"
            "  - positions: 'v' has 5, 'w' has 17\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "w", replace(vit_source("class token", 1, in_chans=1, patch_size=2), name="w")),
    ),
    Case(
        "another image size of a transformer",
        VITS,
        2,
        (
            "these sources cannot be merged, for 2 reasons:\n"
            "  - input_size: 'v' has [1, 8, 8], 'w' has [1, 16, 16]; models.sources.N.input_size=[8, 8] resamples "
            "the other's positions, which is not exact\n"
            "  - positions: 'v' has 5, 'w' has 17\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "w", replace(vit_source("class token", 1, in_chans=1, img_size=16), name="w")),
    ),
    Case(
        "another depth of a transformer",
        VITS,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - depth: 'v' has 2, 'w' has 3\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "w", replace(vit_source("class token", 1, in_chans=1, depth=3), name="w")),
    ),
    Case(
        "another activation of a transformer",
        VITS,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - activation: 'v' has GELU(approximate='none'), 'w' has ReLU()\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "w", replace(vit_source("class token", 1, in_chans=1, act_layer="relu"), name="w")),
    ),
    Case(
        "no architecture",
        AVERAGE,
        2,
        (
            "source 'a': a says no architecture. Put a config.json beside the weights or pass "
            "models.sources.N.arch=..., a timm name (vit_base_patch16_224) or {family: ..., ...} (mlp, vit)."
        ),
        remove("a/config.json"),
    ),
    Case(
        "an unknown architecture",
        AVERAGE,
        2,
        "source 'a': a: arch: " + unknown("timm architecture", "mlq", list_models("vit_*")),
        config("a", architecture="mlq"),
        installed=True,
    ),
    Case(
        "a convolutional network",
        AVERAGE,
        2,
        (
            "source 'a': a: arch: resnet18 is a model of timm.models.resnet, not a plain VisionTransformer "
            "of timm, and cannot be merged. Take a vit_* model, or write a specification for it."
        ),
        config("a", architecture="resnet18", model_args={}),
    ),
    Case(
        "arch and config.json disagree",
        two("name:v,checkpoint:v,arch:vit_small_patch16_224", "name:w,checkpoint:w") + " method=average",
        2,
        (
            "source 'v': v is a vit_tiny_patch16_224, as its config.json says, but models.sources.N.arch "
            "asks for vit_small_patch16_224. Pass models.sources.N.arch=null to take the checkpoint's."
        ),
    ),
    Case(
        "an unknown family",
        two("name:a,checkpoint:a,arch:{family:cnn}") + " method=average",
        2,
        "source 'a': a: unknown arch.family 'cnn'. Available: mlp, vit.",
    ),
    Case(
        "widths that no tensor has",
        AVERAGE,
        2,
        (
            "source 'a': a: arch: input_size [1, 4, 4] and widths [4611686018427387904, 4611686018427387904] "
            "are too large for a tensor. Pass those that the weights have."
        ),
        config("a", model_args__widths=[2**62, 2**62]),
    ),
    Case(
        "widths of the wrong type",
        AVERAGE,
        2,
        "source 'a': a: arch.widths: should be a valid tuple, got 'wide'.",
        config("a", model_args__widths="wide"),
    ),
    Case(
        "an option that timm does not know",
        VITS,
        2,
        (
            "source 'v': v: arch: timm cannot build vit_tiny_patch16_224 with {'img_size': 8, 'patch_size': "
            "4, 'in_chans': 1, 'embed_dim': 12, 'depth': 2, 'num_heads': 3, 'colour': 'red'}: {library}. "
            "Change arch.args, or model_args in config.json."
        ),
        config("v", model_args__colour="red"),
    ),
    Case(
        "a checkpoint path inside config.json",
        VITS,
        2,
        (
            "source 'v': v: arch: checkpoint_path is no option of an architecture. Weights come from "
            "models.sources.N.checkpoint alone; take the key out of the arguments."
        ),
        config("v", model_args__checkpoint_path="evil.pt"),
    ),
    Case(
        "an embedding that its heads do not divide",
        VITS,
        2,
        (
            "source 'v': v: arch: timm cannot build vit_tiny_patch16_224 with {'img_size': 8, 'patch_size': "
            "4, 'in_chans': 1, 'embed_dim': 12, 'depth': 2, 'num_heads': 5}: {library}. Change arch.args, or "
            "model_args in config.json."
        ),
        config("v", model_args__num_heads=5),
    ),
    Case(
        "config.json is no JSON",
        AVERAGE,
        2,
        "source 'a': a: config.json is not valid JSON ({library}).",
        put("a/config.json", "{'architecture': 'mlp'}"),
        installed=True,
    ),
    Case(
        "config.json is a list",
        AVERAGE,
        2,
        "source 'a': a: config.json should hold an object, it holds list.",
        put("a/config.json", "[]"),
    ),
    Case(
        "config.json is no text",
        AVERAGE,
        2,
        "source 'a': a: config.json is not valid JSON ({library}).",
        put("a/config.json", b"\xff\xfe"),
    ),
    Case(
        "config.json nested without end",
        AVERAGE,
        2,
        "source 'a': a: config.json is not valid JSON ({library}).",
        put("a/config.json", "[" * 100_000),
    ),
    Case(
        "config.json with a number of 5000 digits",
        AVERAGE,
        2,
        "source 'a': a: config.json is not valid JSON ({library}).",
        put("a/config.json", '{"architecture": ' + "9" * 5000 + "}"),
    ),
    Case(
        "model_args is a list",
        AVERAGE,
        2,
        "source 'a': a: model_args in config.json should be an object, it is [1].",
        config("a", model_args=[1]),
    ),
    Case(
        "a mean that is not finite",
        AVERAGE,
        2,
        "source 'a': a: mean in config.json should be a list of numbers, it is [nan].",
        config("a", pretrained_cfg__mean=[NAN]),
    ),
    Case(
        "a mean of many digits",
        AVERAGE,
        2,
        (
            "source 'a': a: mean in config.json should be a list of numbers, it is "
            "[10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
            "000."
        ),
        config("a", pretrained_cfg__mean=[10**400]),
    ),
    Case(
        "a deviation of zero",
        AVERAGE,
        2,
        "source 'a': a: mean [0.0] and std [0.0] need 1 value each, std none of them 0.",
        config("a", pretrained_cfg__std=[0.0]),
    ),
    Case(
        "three means for one channel",
        AVERAGE,
        2,
        "source 'a': a: mean [0.1, 0.2, 0.3] and std [1.0] need 1 value each, std none of them 0.",
        config("a", pretrained_cfg__mean=[0.1, 0.2, 0.3]),
    ),
    Case(
        "an unknown interpolation",
        AVERAGE,
        2,
        (
            "source 'a': a: interpolation in config.json: unknown value 'cubist'. Did you mean 'bicubic'? "
            "Available: bicubic, bilinear, box, hamming, lanczos, nearest."
        ),
        config("a", pretrained_cfg__interpolation="cubist", pretrained_cfg__crop_pct=None),
    ),
    Case(
        "a crop of nothing",
        AVERAGE,
        2,
        "source 'a': a: crop_pct in config.json should be from 0.1 to 1, it is 1e-09.",
        config("a", pretrained_cfg__crop_pct=1e-9),
    ),
]

PATHS = [
    Case(
        "a checkpoint that does not exist",
        two("name:a,checkpoint:gone") + " method=average",
        2,
        "source 'a': gone does not exist. Check models.sources.N.checkpoint.",
        installed=True,
    ),
    Case(
        "a folder where a file is meant",
        AVERAGE,
        2,
        "source 'a': a: there is no file model.safetensors. Check the path of the checkpoint.",
        both(remove("a/model.safetensors"), make("a/model.safetensors")),
    ),
    Case(
        "a file where a folder is meant",
        two("name:a,checkpoint:a/config.json") + " method=average",
        2,
        (
            "source 'a': a/config.json is not a .safetensors file. Pass one, a folder with "
            "model.safetensors, or a state dict as .pt, .pth, .bin, .ckpt."
        ),
    ),
    Case(
        "an empty folder",
        two("name:a,checkpoint:empty") + " method=average",
        2,
        "source 'a': empty: there is no file model.safetensors. Check the path of the checkpoint.",
        make("empty"),
    ),
    Case(
        "a link that leads nowhere",
        two("name:a,checkpoint:link.safetensors") + " method=average",
        2,
        "source 'a': link.safetensors does not exist. Check models.sources.N.checkpoint.",
        lambda f, p: (f / "link.safetensors").symlink_to("gone"),
    ),
    Case(
        "weights that may not be read",
        AVERAGE,
        2,
        "source 'a': a cannot be read: {library}. Copy or download the file again.\n"
        "source 'b': b cannot be read: {library}. Copy or download the file again.",
        fails("fsmerge_cli.checkpoints.files.safe_open", DENIED),
    ),
    Case(
        "a path that is too long",
        two(f"name:a,checkpoint:{'x' * 5000}") + " method=average",
        2,
        (
            "source 'a': the path "
            "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
            "xxxxxxxxx' cannot be used (File name too long). Pass another checkpoint."
        ),
    ),
    Case(
        "a home folder of nobody",
        two('name:a,checkpoint:"~nobody-of-that-name/m"') + " method=average",
        2,
        (
            "source 'a': the path '~nobody-of-that-name/m' cannot be used (Could not determine home "
            "directory). Pass another checkpoint."
        ),
    ),
    Case(
        "a path with a zero byte",
        two('name:a,checkpoint:"a\x00b"') + " method=average",
        2,
        "source 'a': a\\x00b does not exist. Check models.sources.N.checkpoint.",
    ),
    Case(
        "an output that is a file",
        two() + " method=average output.dir=a/config.json",
        2,
        "{folder}/a/config.json is a file, not a folder. Choose another output.dir=...",
    ),
    Case(
        "an output below a file",
        two() + " method=average output.dir=a/config.json/out",
        2,
        (
            "cannot make the folder {folder}/a/config.json/out: a part of the path is a file. Choose another "
            "output.dir=..."
        ),
    ),
    Case(
        "an output that is a source",
        two() + " method=average output.dir=a",
        2,
        ("{folder}/a holds other files (no evaluation.json), so it is left alone. Choose another output.dir=..."),
    ),
    Case(
        "an output that holds a source and would be replaced",
        two("name:a,checkpoint:out/a").replace("output.dir=out", "")
        + " method=average output.dir=out output.overwrite=true",
        2,
        (
            "source 'a' lies in {folder}/out, which output.overwrite=true would replace. Choose another "
            "output.dir=..."
        ),
        lambda f, p: (
            (f / "out").mkdir(),
            (f / "a").rename(f / "out/a"),
            (f / "out/evaluation.json").write_text("{}"),
        ),
    ),
    Case(
        "an output of nobody's",
        two() + " method=average 'output.dir=\"~nobody-of-that-name/m\"'",
        2,
        ("cannot write ~nobody-of-that-name/m: Could not determine home directory. Choose another output.dir=..."),
    ),
    Case(
        "an output with a name too long",
        two() + f" method=average output.dir={'x' * 300}",
        2,
        "cannot write {folder}/{x}: File name too long. Choose another output.dir=...",
    ),
    Case(
        "an output that may not be written",
        AVERAGE,
        2,
        "cannot write /locked: permission denied. Choose another output.dir=...",
        folder_fails(PermissionError(13, "Permission denied", "/locked")),
    ),
    Case(
        "a read-only disk",
        AVERAGE,
        2,
        "cannot write {folder}/out: Read-only file system. Choose another output.dir=...",
        folder_fails(READ_ONLY),
    ),
    Case(
        "a disk that is full at the weights",
        AVERAGE,
        2,
        "cannot write {folder}/out: No space left on device. Choose another output.dir=...",
        fails("fsmerge_cli.common.atomic.save_file", FULL),
        quick=True,
    ),
    Case(
        "a disk that is full at the card",
        AVERAGE,
        2,
        "cannot write {folder}/out: No space left on device. Choose another output.dir=...",
        written_fails("README.md", FULL),
    ),
    Case(
        "a disk that is full at the report",
        AVERAGE,
        2,
        "cannot write {folder}/out: No space left on device. Choose another output.dir=...",
        written_fails("report.html", FULL),
    ),
    Case(
        "a disk that is full at the end",
        AVERAGE,
        2,
        "cannot write {folder}/out: No space left on device. Choose another output.dir=...",
        written_fails("evaluation.json", FULL),
    ),
    Case(
        "two runs into one folder",
        AVERAGE,
        2,
        "another run is writing {folder}/out. Wait for it, or choose another output.dir=...",
        locked,
    ),
    Case(
        "a folder that is finished",
        AVERAGE,
        2,
        (
            "{folder}/out holds a finished run. Pass output.overwrite=true to replace it, or choose another "
            "output.dir=..."
        ),
        put("out/evaluation.json", "{}"),
    ),
    Case(
        "a folder of somebody else",
        AVERAGE,
        2,
        (
            "{folder}/out holds other files (no evaluation.json), so it is left alone. Choose another "
            "output.dir=..."
        ),
        put("out/thesis.tex", ""),
    ),
    Case(
        "an unknown config folder",
        AVERAGE + " --config-dir gone",
        2,
        (
            "--config-dir: Additional config directory '{folder}/gone' not found. Pass a folder with "
            "models/*.yaml, method/*.yaml, ..."
        ),
    ),
]

OPTIONS = [
    Case(
        "no models",
        "merge method=average",
        2,
        (
            "no models given. Say which with +models=NAME; there are:\n"
            "models\n"
            "  +models=clip_vit_b_pair     Two CLIP image towers of ViT-B/16 (LAION-2B, DataComp-XL) with "
            "their projections, from timm's hub\n"
            "  +models=digits_mlp_pair     Two 64-wide MLPs, other seeds, on digits 0-4 and 5-9 "
            "(scikit-learn's scans); trained on first use in seconds\n"
            "  +models=digits_mlp_trio     Three MLPs of different widths, with BatchNorm, on digits 0-2, "
            "3-5 and 6-9; trained on first use in seconds\n"
            "  +models=glyphs_vit_pair     Two 4-block, 96-wide ViTs, other seeds, on drawn digits and "
            "capitals; trained on first use in minutes\n"
            "  +models=glyphs_vit_quad     Four 4-block, 96-wide ViTs, other seeds, on drawn digits, "
            "capitals, Greek and Cyrillic; trained on first use\n"
            "  +models=vit_b_pair          Two public pretrainings of ViT-B/16 with ImageNet heads, from "
            "timm's hub (or checkpoints of your own)\n"
            "  +models=vit_l_pair          Two public pretrainings of ViT-L/16, one with an ImageNet head, "
            "one headless, from timm's hub"
        ),
    ),
    Case(
        "an unknown command",
        "marge",
        2,
        "unknown command 'marge'. Did you mean 'merge'? "
        "Available: check, compare, evaluate, finetune, list, merge, schema. See fsmerge --help.",
        installed=True,
    ),
    Case(
        "unknown models",
        "merge +models=digits",
        2,
        (
            "unknown models 'digits'. Did you mean 'digits_mlp_trio'? Available: clip_vit_b_pair, "
            "digits_mlp_pair, digits_mlp_trio, glyphs_vit_pair, glyphs_vit_quad, vit_b_pair, vit_l_pair."
        ),
    ),
    Case(
        "an unknown method",
        two() + " method=averag",
        2,
        (
            "unknown method 'averag'. Did you mean 'average'? Available: activation_matching, average, "
            "fs_merge, fs_merge_paper, kd, regmean, regmean_pp, slerp, zipit."
        ),
        installed=True,
    ),
    Case(
        "an unknown key",
        AVERAGE + " method.step=3",
        2,
        "unknown key in method 'step'. Available: heads, name, task_weights, width.",
    ),
    Case(
        "an unknown key of a source",
        two("name:a,chekpoint:a") + " method=average",
        2,
        (
            "unknown key in models.sources.0 'chekpoint'. Did you mean 'checkpoint'? Available: arch, "
            "checkpoint, ema, head, input_size, labels, mean, module, name, normalize, prefix, recipe, std."
        ),
    ),
    Case(
        "a key without a value",
        AVERAGE + " seed",
        2,
        "cannot read 'seed'. Write KEY=VALUE; quote a value with spaces or symbols: 'KEY=\"a, b\"'.",
    ),
    Case("a seed that is no number", AVERAGE + " seed=one", 2, "seed: should be a valid integer, got 'one'."),
    Case("a seed below zero", AVERAGE + " seed=-1", 2, "seed: should be greater than or equal to 0, got -1."),
    Case("a seed of many digits is fine", AVERAGE + f" seed={10**40}", 0, NOT_EVALUATED),
    Case(
        "steps of the wrong type", KD + " method.steps=3.5", 2, "method.steps: should be a valid integer, got 3.5."
    ),
    Case("no steps", KD + " method.steps=0", 2, "method.steps: should be greater than or equal to 1, got 0."),
    Case(
        "a learning rate that is not finite",
        KD + " method.lr=inf",
        2,
        "method.lr: should be a finite number, got inf.",
    ),
    Case("a share above one", KD + " data.validation=1.5", 2, "data.validation: should be less than 1, got 1.5."),
    Case(
        "an interval without a unit",
        AVERAGE + " checkpoint.every=5h",
        2,
        ("checkpoint.every='5h': give a number of steps (200), or seconds or minutes with their unit (60s, 5m)."),
    ),
    Case(
        "more workers than a machine has",
        AVERAGE + " hardware.workers=100000",
        2,
        "hardware.workers: should be less than or equal to 256, got 100000.",
    ),
    Case(
        "an unknown device",
        AVERAGE + " hardware.device=tpu",
        2,
        "hardware.device='tpu': give auto, cpu, cuda or cuda:N.",
    ),
    Case(
        "CUDA where there is none",
        AVERAGE + " hardware=gpu",
        2,
        (
            "hardware.device=cuda: no CUDA device is visible. Pass hardware=cpu, or install a torch build "
            "with CUDA and check `nvidia-smi`."
        ),
        lambda f, p: p.setattr(torch.cuda, "is_available", lambda: False),
    ),
    Case(
        "a rank above the width",
        KD.replace("method=kd", "method=fs_merge") + " method.maps=low_rank method.rank=9",
        2,
        ("method.rank=9 is above the width of the merged model (8). Take a rank below it, or method.maps=full."),
    ),
    Case(
        "a width that heads do not divide",
        VITS + " method.width=13",
        2,
        "method.width=13 cannot be divided into 3 heads. Pass method.heads=... that divides it.",
    ),
    Case(
        "attention heads of an MLP",
        AVERAGE + " method.heads=2",
        2,
        "method.heads: an MLP has no attention heads. Leave method.heads at null.",
    ),
    Case(
        "a method that needs images, and none",
        two() + " method=kd",
        2,
        (
            f"method=kd needs unlabelled images and no data set is given. Pass data=NAME ({DATA}; data.root=PATH "
            "for your own folder), or method=average."
        ),
    ),
    Case(
        "no images asked for",
        KD + " data.images_per_task=0",
        2,
        (
            "this method needs unlabelled images. Pass data=... with data.images_per_task of 1 or more, "
            "data.auxiliary={name: generated} for images of no task, or method=average, which needs none."
        ),
    ),
    Case(
        "an interpolation that leads nowhere",
        AVERAGE + " 'seed=${nothing}'",
        2,
        ("seed: Interpolation key 'nothing' not found. Name a key that is there in ${...}, or give a value."),
    ),
    Case(
        "a class to be called, in the method",
        AVERAGE + " +method._target_=os.system",
        2,
        (
            "method._target_='os.system': a configuration of fsmerge names no Python to be called. Choose by "
            "name (`fsmerge list` shows the names) and take the key away."
        ),
        quick=True,
    ),
    Case(
        "a class to be called, in the data",
        KD + " +data._target_=os.system",
        2,
        (
            "data._target_='os.system': a configuration of fsmerge names no Python to be called. Choose by "
            "name (`fsmerge list` shows the names) and take the key away."
        ),
    ),
    Case(
        "a class to be called, in the hardware",
        AVERAGE + " +hardware._target_=os.system",
        2,
        (
            "hardware._target_='os.system': a configuration of fsmerge names no Python to be called. Choose "
            "by name (`fsmerge list` shows the names) and take the key away."
        ),
    ),
    Case(
        "a class to be called, in the output",
        AVERAGE + " +output._target_=os.system",
        2,
        (
            "output._target_='os.system': a configuration of fsmerge names no Python to be called. Choose by "
            "name (`fsmerge list` shows the names) and take the key away."
        ),
    ),
    Case(
        "a class to be called, at the top",
        AVERAGE + " +_target_=os.system",
        2,
        (
            "unknown key '_target_'. Available: checkpoint, data, evaluation, hardware, method, models, output, "
            "resume, seed."
        ),
    ),
    Case(
        "a class to be called, in an architecture",
        two(
            "name:v,checkpoint:v,arch:{family:vit,name:vit_tiny_patch16_224,args:{norm_layer:{_target_:os.system}}}"
        )
        + " method=average",
        2,
        (
            "models.sources.0.arch.args.norm_layer._target_='os.system': a configuration of fsmerge names no "
            "Python to be called. Choose by name (`fsmerge list` shows the names) and take the key away."
        ),
    ),
    Case(
        "a class to be called, in a recipe",
        two("name:a,recipe:{_target_:os.system,data:digits,seed:0}") + " method=average",
        2,
        (
            "models.sources.0.recipe._target_='os.system': a configuration of fsmerge names no Python to be "
            "called. Choose by name (`fsmerge list` shows the names) and take the key away."
        ),
    ),
    Case(
        "a class to be called, in config.json",
        AVERAGE,
        2,
        (
            "source 'a': a: arch._target_='os.system': a configuration of fsmerge names no Python to be "
            "called. Choose by name (`fsmerge list` shows the names) and take the key away."
        ),
        config("a", model_args___target_="os.system"),
    ),
    Case(
        "a key that is a number",
        AVERAGE + " '+method.x={1:2,a:3}'",
        2,
        "method.x.1: the key 1 is not a text. Quote it, or take it away.",
    ),
    Case(
        "one source only",
        "merge 'models.sources=[{name:a,checkpoint:a}]' method=average output.dir=out",
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - a merge needs at least two sources, got 1. Add one to models.sources\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
    ),
    Case(
        "no source at all",
        "merge 'models.sources=[]' method=average output.dir=out",
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - a merge needs at least two sources, got 0. Add one to models.sources\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
    ),
    Case(
        "the same source twice",
        two(second="name:b,checkpoint:a") + " method=average",
        0,
        ("no data: nothing was evaluated\n'b' has the same weights as 'a'; check models.sources.N.checkpoint"),
    ),
    Case(
        "the same task name twice",
        two(second="name:a,checkpoint:b") + " method=average",
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - the task name 'a' is used 2 times; give each source a name of its own\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
    ),
    Case(
        "a task called like a row",
        two(second="name:merged,checkpoint:b") + " method=average",
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - the task name 'merged' is a row of the score table; give the source another name\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
    ),
    Case(
        "a task without a name",
        two(second="checkpoint:b") + " method=average",
        2,
        "models.sources.1.name is missing.",
    ),
    Case(
        "a task of an empty name",
        two(second="name:'',checkpoint:b").replace("''", '""') + " method=average",
        2,
        (
            "the task name '' cannot be used: it names a folder and a head. Pass models.sources.N.name=... "
            "of 1 to 80 printable characters, without / and \\, no dot first, no space at an end."
        ),
    ),
    Case(
        "a task that climbs out of its folder",
        two(second="name:../../b,checkpoint:b") + " method=average",
        2,
        (
            "the task name '../../b' cannot be used: it names a folder and a head. Pass "
            "models.sources.N.name=... of 1 to 80 printable characters, without / and \\, no dot first, "
            "no space at an end."
        ),
        quick=True,
    ),
    Case(
        "a task that would clear the terminal",
        two(second='name:"\x1b[2J",checkpoint:b') + " method=average",
        2,
        (
            "the task name '\\x1b[2J' cannot be used: it names a folder and a head. Pass "
            "models.sources.N.name=... of 1 to 80 printable characters, without / and \\, no dot first, "
            "no space at an end."
        ),
    ),
    Case(
        "a task with a name too long",
        two(second=f"name:{'n' * 300},checkpoint:b") + " method=average",
        2,
        (
            "the task name "
            "'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"
            "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn' cannot be used: it names a "
            "folder and a head. Pass models.sources.N.name=... of 1 to 80 printable characters, without / "
            "and \\, no dot first, no space at an end."
        ),
    ),
    Case(
        "labels of a recipe that is not there",
        two("name:a,checkpoint:a,labels:low") + " method=average",
        2,
        (
            "source 'a': labels=low names a label set, but only a source with a recipe has some. Give a "
            "list, a file (.txt, .json) or `data`: models.sources.N.labels=[...]"
        ),
    ),
    Case(
        "scikit-learn is not installed",
        PAIR + " data=digits",
        2,
        "data=digits needs scikit-learn: pip install 'fsmerge[embedded]'",
        missing("sklearn.datasets"),
    ),
    Case(
        "a cluster's hardware without a cluster",
        AVERAGE + " hardware=slurm",
        2,
        (
            "hardware.distributed=true: this process was started alone. Start N of them with\n"
            "  torchrun --nproc-per-node=N -m fsmerge_cli merge ... hardware=multi_gpu\n"
            "or let a cluster start them: fsmerge merge --multirun ... hardware=slurm"
        ),
    ),
    Case(
        "the hub cannot be reached",
        "merge +models=vit_b_pair method=average output.dir=out",
        2,
        (
            "source 'augreg': the hub cannot be reached for the weights 'vit_base_patch16_224.augreg_in1k' "
            "(no route to the hub). Pass a local checkpoint instead: models.sources.N.checkpoint=PATH"
        ),
        fails("huggingface_hub.HfApi.model_info", ConnectionError("no route to the hub")),
    ),
]

IMAGES = [
    Case(
        "no folder of images",
        KD + " data.root=nowhere",
        2,
        "data.root=nowhere: there is no such folder.",
        installed=True,
    ),
    Case(
        "no root",
        KD + " data.root=null",
        2,
        "data=folder needs data.root=PATH, a folder with one folder per task in it.",
    ),
    Case(
        "a root of nobody's",
        KD + " 'data.root=\"~nobody-of-that-name\"'",
        2,
        (
            "data.root='~nobody-of-that-name' cannot be used (Could not determine home directory). Pass "
            "another path."
        ),
    ),
    Case(
        "no folder for a task",
        KD,
        2,
        "data=folder: no folder for task 'a' in images. Found: A, b. Name one folder after each task.",
        lambda f, p: (f / "images/a").rename(f / "images/A"),
    ),
    Case(
        "an empty folder of images",
        KD,
        2,
        (
            "data=folder: no images for task 'a' in images/a. Put images there (.bmp, .gif, .jpeg, .jpg, "
            ".pgm, .png, .ppm, .tif, .tiff, .webp), flat or in class folders."
        ),
        only("a", 0),
        quick=True,
    ),
    Case(
        "class folders that are no labels",
        KD,
        2,
        (
            "data=folder: the class folders cat in images/a are not labels of task 'a' (a-0, a-1, a-2). "
            "Rename the folders, pass models.sources.N.labels=[...] (labels=data: the folders' names, sorted), or "
            "data.class_folders=none (test: only those in test/ are classes) to use images without labels."
        ),
        both(make("images/a/cat"), images(lambda path: Image.new("L", (4, 4)).save(path), ("a/cat/0.png",))),
    ),
    Case(
        "an image that is text",
        KD,
        2,
        "the image images/a/1.png cannot be read ({library}). Repair it or take it away.",
        put("images/a/1.png", "not an image"),
    ),
    Case(
        "an image of no bytes",
        KD,
        2,
        "the image images/a/1.png cannot be read ({library}). Repair it or take it away.",
        put("images/a/1.png", b""),
    ),
    Case(
        "three images that cannot be read, skipped",
        KD + " data.bad_files=skip data.images_per_task=all",
        0,
        (
            "task 'a': 2 images skipped, unreadable: images/a/1.png, images/a/2.png\n"
            "task 'b': 1 image skipped, unreadable: images/b/0.png\n"
            "the data set has no test images: nothing was evaluated"
        ),
        both(put("images/a/1.png", ""), both(put("images/a/2.png", "x"), put("images/b/0.png", b""))),
    ),
    Case(
        "three images that cannot be read, refused",
        KD,
        2,
        (
            "3 images cannot be read:\n"
            "  - the image images/a/1.png cannot be read ({library}). Repair it or take it away.\n"
            "  - the image images/a/2.png cannot be read ({library}). Repair it or take it away.\n"
            "  - the image images/b/0.png cannot be read ({library}). Repair it or take it away."
        ),
        both(put("images/a/1.png", ""), both(put("images/a/2.png", "x"), put("images/b/0.png", b""))),
    ),
    Case(
        "a task without a data set of its own",
        KD.replace("data=folder data.root", "data=per_task data.tasks.a.name=folder data.tasks.a.root"),
        2,
        (
            "data=per_task: no data set for task 'b' in data.tasks. There are: a. Pass "
            "data.tasks.b={name: folder, root: PATH}"
        ),
        installed=True,
    ),
    Case(
        "a wrong key of one task's data set",
        KD.replace("data=folder data.root=images", "data=per_task 'data.tasks.a={name: folder, rot: images}'"),
        2,
        (
            "unknown key in data.tasks.a 'rot'. Did you mean 'root'? Available: augment, bad_files, "
            "class_folders, images_per_task, name, root, test_share, unrelated, validation, views."
        ),
    ),
    Case(
        "tensors of floats that are no pixels",
        KD.replace("data=folder data.root=images", "data=tensors data.train={task}.npy"),
        2,
        (
            "a.npy: images should be bytes (uint8) or numbers from 0 to 1, and reach from -1 to -1. Save the "
            "pixels as they were before any normalisation (divided by 255)."
        ),
        lambda f, p: np.save(f / "a.npy", -np.ones((4, 4, 4), np.float32)),
    ),
    Case(
        "tensors behind a pickle that runs code",
        KD.replace("data=folder data.root=images", "data=tensors data.train={task}.pt"),
        2,
        "a.pt cannot be read ({library}). Pass another data.train=PATH, data.test=PATH.",
        lambda f, p: (f / "a.pt").write_bytes(pickle.dumps({"images": Trap()})),
    ),
    Case(
        "a data set that torchvision does not have here",
        KD.replace("data=folder data.root=images", "data=torchvision data.dataset=MNIST data.root=images"),
        2,
        (
            "data=torchvision: MNIST(root='images', train=False, download=False) cannot be opened ({library}). "
            "Pass another data.root=PATH or data.args={...}, or data.download=true."
        ),
    ),
    Case(
        "a folder of the datasets library with nothing in it",
        KD.replace("data=folder data.root=images", "data=hf data.path=a"),
        2,
        "data=hf: a cannot be loaded ({library}). Pass another data.path=PATH.",
    ),
    Case(
        "unrelated images of a kind that is not there",
        KD + " data.auxiliary.name=generatd",
        2,
        f"unknown data.auxiliary 'generatd'. Did you mean 'generated'? Available: {DATA}.",
    ),
    Case(
        "no image of any task, and nothing to be evaluated on",
        KD.replace("data=folder data.root=images data.images_per_task=3", "data=none data.images_per_task=4"),
        0,
        "4 images belong to no task: generated\nthe data set has no test images: nothing was evaluated",
    ),
    Case(
        "a word that says nothing about bad files",
        KD + " data.bad_files=ignore",
        2,
        "data.bad_files: should be 'refuse' or 'skip', got 'ignore'.",
    ),
    Case(
        "an image cut off",
        KD,
        2,
        "the image images/a/1.png cannot be read ({library}). Repair it or take it away.",
        cut("images/a/1.png", 40),
    ),
    Case(
        "an image that claims 900 million pixels",
        KD,
        2,
        "the image images/a/0.png cannot be read ({library}). Repair it or take it away.",
        images(bomb),
    ),
    Case(
        "a broken chunk in an image",
        KD,
        2,
        "the image images/a/0.png cannot be read ({library}). Repair it or take it away.",
        images(lambda path: path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDAX"))),
    ),
    Case(
        "a text file that is called an image folder",
        KD + " data.root=a/config.json",
        2,
        "data.root=a/config.json: there is no such folder.",
    ),
    Case(
        "colour where the sources read grey",
        KD,
        0,
        "the data set has no test images: nothing was evaluated",
        images(lambda path: Image.new("RGB", (4, 4), (9, 200, 30)).save(path)),
    ),
    Case(
        "a CMYK image",
        KD,
        0,
        "the data set has no test images: nothing was evaluated",
        images(lambda path: Image.new("CMYK", (4, 4), (9, 200, 30, 5)).save(path), ("a/3.jpg",)),
    ),
    Case("a 16-bit image", KD, 0, "the data set has no test images: nothing was evaluated", images(sixteen)),
    Case(
        "an animated image",
        KD,
        0,
        "the data set has no test images: nothing was evaluated",
        images(animated, ("a/3.gif",)),
    ),
    Case(
        "a transparent palette image",
        KD,
        0,
        "the data set has no test images: nothing was evaluated",
        images(lambda path: Image.new("P", (4, 4)).save(path, transparency=b"\x00\x80")),
    ),
    Case(
        "an image of one pixel",
        KD,
        0,
        "the data set has no test images: nothing was evaluated",
        images(lambda path: Image.new("L", (1, 1), 7).save(path)),
    ),
    Case(
        "one image per task",
        KD,
        0,
        (
            "task 'a' has 1 images, fewer than images_per_task=3; all of them are used\n"
            "task 'b' has 1 images, fewer than images_per_task=3; all of them are used\n"
            "the data set has no test images: nothing was evaluated"
        ),
        both(only("a", 1), only("b", 1)),
    ),
    Case(
        "fewer images than the batch",
        KD + " method.batch_size=64",
        0,
        "the data set has no test images: nothing was evaluated",
    ),
    Case(
        "fewer images than asked for",
        KD + " data.images_per_task=50",
        0,
        (
            "task 'a' has 3 images, fewer than images_per_task=50; all of them are used\n"
            "task 'b' has 3 images, fewer than images_per_task=50; all of them are used\n"
            "the data set has no test images: nothing was evaluated"
        ),
    ),
]

CASES = [*HEADERS, *TENSORS, *PICKLES, *ARCHITECTURES, *PATHS, *OPTIONS, *IMAGES]
