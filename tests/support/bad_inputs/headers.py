"""Files that are damaged or are not checkpoints."""

from __future__ import annotations

import json

from tests.support.bad_inputs.case import (
    AVERAGE,
    Case,
    cut,
    described,
    header,
    put,
)

HEADERS = [
    Case(
        "empty weights file",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors is empty (0 bytes). Download or copy it again.",
        put("a/model.safetensors", b""),
    ),
    Case(
        "header cut off in its length",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        cut("a/model.safetensors", 5),
        quick=True,
    ),
    Case(
        "header cut off",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        cut("a/model.safetensors", 60),
        installed=True,
    ),
    Case(
        "tensors cut off",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        lambda f, p: cut("a/model.safetensors", len((f / "a/model.safetensors").read_bytes()) - 4)(f, p),
    ),
    Case(
        "header of exabytes",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        header(b"{}", size=2**60),
        installed=True,
    ),
    Case(
        "header above the limit of 100 MB",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        header(b"{}", size=2**27),
    ),
    Case(
        "header is not JSON",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        header(b"not json"),
    ),
    Case(
        "header is a list",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        header(b"[]"),
    ),
    Case(
        "header is not text",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        header(b'{"\xff\xfe": 1}'),
    ),
    Case(
        "header nested a thousand deep",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        header(b'{"a":' * 1000 + b"1" + b"}" * 1000),
    ),
    Case(
        "unknown dtype",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        described({"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}, bytes(4)),
    ),
    Case(
        "negative shape",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        described({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, bytes(4)),
    ),
    Case(
        "shape that overflows",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        described({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}, bytes(4)),
    ),
    Case(
        "shape and bytes disagree",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        described({"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}, bytes(4)),
    ),
    Case(
        "offsets outside the file",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        described({"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, bytes(4)),
    ),
    Case(
        "offsets backwards",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        described({"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}, bytes(4)),
    ),
    Case(
        "tensors that share bytes",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.",
        header(
            json.dumps({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in ("x", "y")}).encode(),
            rest=bytes(4),
        ),
    ),
    Case(
        "a web page instead of weights",
        AVERAGE,
        2,
        (
            "source 'a': a: model.safetensors is a web page (HTML or XML), not the weights. Download the file "
            "itself (on huggingface.co the link with /resolve/, not /blob/)."
        ),
        put("a/model.safetensors", "<!doctype html><title>404</title>" * 9),
    ),
    Case(
        "a pointer of git-lfs instead of weights",
        AVERAGE,
        2,
        (
            "source 'a': a: model.safetensors is a Git LFS pointer, not the weights. Run `git lfs pull` in its "
            "repository."
        ),
        put("a/model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
    ),
    Case(
        "heads cut off",
        AVERAGE,
        2,
        "source 'a': a: heads.safetensors cannot be read: {library}. Copy or download the file again.",
        cut("a/heads.safetensors", 60),
    ),
]
