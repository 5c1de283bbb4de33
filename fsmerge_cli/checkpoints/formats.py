"""What a file is, by its first bytes: the suffix of a checkpoint says little."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from fsmerge_cli.common.errors import SourceError, reason
from fsmerge_cli.common.foreign_files import require_regular

Kind = Literal["safetensors", "pickle"]

HEAD = 1024
"""Bytes from which a file is recognised."""

RESAVE = "Save the weights of the PyTorch model instead: torch.save(model.state_dict(), 'weights.pt')."
AGAIN = "Download or copy it again."
PASS = "Pass the file of the weights, or its folder."
LINK = "Download the file itself (on huggingface.co the link with /resolve/, not /blob/)."
UNPACK = "Unpack it and pass the folder or the file inside."

MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights", "Run `git lfs pull` in its repository."),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow)", RESAVE),
    (b"GGUF", "a GGUF file", RESAVE),
    (b"ggml", "a GGML file", RESAVE),
    (b"\x93NUMPY", "a NumPy array", RESAVE),
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"BZh", "a bzip2 archive", UNPACK),
    (b"\xfd7zXZ", "an xz archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!", "a rar archive", UNPACK),
    (b"\x89PNG", "an image", PASS),
    (b"\xff\xd8\xff", "an image", PASS),
    (b"%PDF", "a PDF", PASS),
)
"""First bytes -> what it is, and the remedy."""

SUFFIXES: dict[str, tuple[str, str]] = {
    ".onnx": ("an ONNX model", RESAVE),
    ".pb": ("a TensorFlow or ONNX graph", RESAVE),
    ".tflite": ("a TensorFlow Lite model", RESAVE),
    ".msgpack": ("a Flax file", RESAVE),
    ".pdparams": ("a PaddlePaddle file", RESAVE),
    ".mlmodel": ("a Core ML model", RESAVE),
    ".engine": ("a TensorRT engine", RESAVE),
    ".distcp": (
        "a part of a distributed checkpoint of PyTorch",
        "Convert its folder once: "
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pt",
    ),
}
"""Formats without first bytes of their own: suffix -> what it is, and the remedy."""

READ = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Usual suffixes of files that are read; the content decides."""


def kind_of(path: Path, where: str) -> Kind:
    """How a file of weights is read. Raises SourceError, with the remedy, for a file of another kind."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            head = file.read(HEAD)
        size = path.stat().st_size
    except FileNotFoundError:
        raise SourceError(f"{where}: there is no file {path.name}. Check the path of the checkpoint.") from None
    except OSError as error:
        advice = "Check its permissions" if isinstance(error, PermissionError) else "Pass another checkpoint"
        raise SourceError(f"{where} cannot be read: {reason(error)}. {advice}.") from None
    if _safetensors(head):
        return "safetensors"
    if found := _other(path, head, size):
        title, remedy = found
        raise SourceError(f"{where} is {title}. {remedy}")
    if _pickle(head):
        return "pickle"
    if (suffix := path.suffix.lower()) in READ:  # damaged: its reader says how
        return "safetensors" if suffix == ".safetensors" else "pickle"
    raise SourceError(
        f"{where} is no file of weights. Pass a .safetensors file, a state dict saved by torch "
        f"({', '.join(READ[1:])}), or a folder that holds one."
    )


def foreign(path: Path) -> tuple[str, str] | None:
    """What a file is and the remedy, if it is an archive or a model of another kind; None for anything else."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    found = None if _safetensors(head) else _other(path, head, len(head))
    return found if found is not None and found[1] not in (AGAIN, PASS, LINK) else None


def _other(path: Path, head: bytes, size: int) -> tuple[str, str] | None:
    """Title and remedy of a file that is recognised and not read."""
    if not size:
        return "empty (0 bytes)", AGAIN
    if not head.strip(b"\0"):
        return f"no file of weights: its first {len(head)} bytes are zero, as in an unfinished download", AGAIN
    for magic, title, remedy in MAGIC:
        if head.startswith(magic):
            return title, remedy
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<error", b"<head", b"<script", b"<!--")):
        return "a web page (HTML or XML), not the weights", LINK
    if head[257:262] == b"ustar":
        return "a tar archive", UNPACK
    if head[4:8] == b"TFL3":
        return SUFFIXES[".tflite"]
    if head.startswith(b"\x08") and head[1:2] <= b"\x14" and head[2:3] == b"\x12":
        return SUFFIXES[".onnx"]
    if path.suffix.lower() == ".distcp":
        return SUFFIXES[".distcp"]
    if head.startswith(b"PK\x03\x04") and (listed := _archived(path)) is not None:
        return _zip(listed)
    if text.startswith((b"{", b"[")):
        return "a text (JSON), not the weights", PASS
    return None if _pickle(head) else SUFFIXES.get(path.suffix.lower())


def _zip(names: list[str]) -> tuple[str, str] | None:
    """Title and remedy of a zip archive; None for one that torch has saved."""
    if any(n.endswith("/constants.pkl") for n in names):
        return (
            "a TorchScript archive (OpenAI publishes CLIP in this format), which may run code and is not opened",
            "Use the same weights from timm or open_clip, or, if you trust it, save its weights once: "
            "torch.save(torch.jit.load(FILE, 'cpu').state_dict(), 'weights.pt').",
        )
    if any(n.rpartition("/")[2] == "data.pkl" for n in names):
        return None
    if any(n.rpartition("/")[2] == "archive_format" for n in names):
        return "a program of torch.export (.pt2), which is not opened", RESAVE
    if any(n.endswith(".weights.h5") for n in names):
        return "a Keras model", RESAVE
    if names and all(n.endswith(".npy") for n in names):
        return "a NumPy archive (.npz)", RESAVE
    return "a zip archive", UNPACK


def _archived(path: Path) -> list[str] | None:
    """The names in a zip archive; None if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None


def _safetensors(head: bytes) -> bool:
    """A header's length in 8 bytes, below 100 MB, then a JSON object."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _pickle(head: bytes) -> bool:
    """A zip archive of torch, or a bare pickle of protocol 2 to 5."""
    return head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
