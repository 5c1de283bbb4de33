"""Files of other formats, which are refused, and their messages after the path."""

from __future__ import annotations

from tests.support.layouts.files import Prepare, put, tarred, zipped

RESAVE = "Save the weights of the PyTorch model instead: torch.save(model.state_dict(), 'weights.pt')."
AGAIN = "Download or copy it again."
UNPACK = "Unpack it and pass the folder or the file inside."
PASS = "Pass the file of the weights, or its folder."
LINK = "Download the file itself (on huggingface.co the link with /resolve/, not /blob/)."
HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346293852\n"

FORMATS: dict[str, tuple[Prepare, str]] = {
    "an empty file": (put("x.safetensors", b""), f"is empty (0 bytes). {AGAIN}"),
    "an empty file of torch": (put("x.pt", b""), f"is empty (0 bytes). {AGAIN}"),
    "zeros": (
        put("x.safetensors", bytes(5000)),
        f"is no file of weights: its first 1024 bytes are zero, as in an unfinished download. {AGAIN}",
    ),
    "a Git LFS pointer": (
        put("x.safetensors", POINTER),
        "is a Git LFS pointer, not the weights. Run `git lfs pull` in its repository.",
    ),
    "a Git LFS pointer of torch": (
        put("x.bin", POINTER),
        "is a Git LFS pointer, not the weights. Run `git lfs pull` in its repository.",
    ),
    "a web page": (put("x.safetensors", HTML), f"is a web page (HTML or XML), not the weights. {LINK}"),
    "a web page for torch": (
        put("x.pth", b"\n  " + HTML),
        f"is a web page (HTML or XML), not the weights. {LINK}",
    ),
    "an error of a bucket": (
        put("x.bin", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'),
        f"is a web page (HTML or XML), not the weights. {LINK}",
    ),
    "an error in JSON": (put("x.bin", b'{"error": "Not found"}'), f"is a text (JSON), not the weights. {PASS}"),
    "config.json": (put("config.json", b"{}"), f"is a text (JSON), not the weights. {PASS}"),
    "a text": (
        put("notes", b"my weights"),
        "is no file of weights. Pass a .safetensors file, a state dict saved by torch (.pt, .pth, .bin, .ckpt), "
        "or a folder that holds one.",
    ),
    "TorchScript": (
        put("x.pt", zipped({"x/data.pkl": b"", "x/constants.pkl": b""})),
        "is a TorchScript archive (OpenAI publishes CLIP in this format), which may run code and is not opened. "
        "Use the same weights from timm or open_clip, or, if you trust it, save its weights once: "
        "torch.save(torch.jit.load(FILE, 'cpu').state_dict(), 'weights.pt').",
    ),
    "torch.export": (
        put("x.pt2", zipped({"x/archive_format": b"pt2", "x/models/model.json": b"{}"})),
        f"is a program of torch.export (.pt2), which is not opened. {RESAVE}",
    ),
    "ONNX": (put("x.onnx", b"\x08\x09\x12\x07pytorch"), f"is an ONNX model. {RESAVE}"),
    "ONNX under another name": (put("x.bin", b"\x08\x09\x12\x07pytorch"), f"is an ONNX model. {RESAVE}"),
    "Keras, HDF5": (
        put("x.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 90),
        f"is an HDF5 file (Keras, TensorFlow). {RESAVE}",
    ),
    "Keras 3": (
        put("x.keras", zipped({"model.weights.h5": b"", "config.json": b"{}"})),
        f"is a Keras model. {RESAVE}",
    ),
    "a graph of TensorFlow": (put("x.pb", b"\x0a\x05x"), f"is a TensorFlow or ONNX graph. {RESAVE}"),
    "TensorFlow Lite": (put("x.tflite", b"\x1c\0\0\0TFL3"), f"is a TensorFlow Lite model. {RESAVE}"),
    "Flax": (put("x.msgpack", b"\x82\xa4head"), f"is a Flax file. {RESAVE}"),
    "GGUF": (put("x.gguf", b"GGUF\x03\0\0\0" + b"\1" * 40), f"is a GGUF file. {RESAVE}"),
    "an archive of NumPy": (
        put("x.npz", zipped({"a.npy": b"", "b.npy": b""})),
        f"is a NumPy archive (.npz). {RESAVE}",
    ),
    "an array of NumPy": (put("x.npy", b"\x93NUMPY\1\0"), f"is a NumPy array. {RESAVE}"),
    "a zip of a folder": (put("x.zip", zipped({"m/config.json": b"{}"})), f"is a zip archive. {UNPACK}"),
    "a tar of a folder": (put("x.tar", tarred()), f"is a tar archive. {UNPACK}"),
    "a .tar.gz of a folder": (put("x.tar.gz", b"\x1f\x8b\x08\0" + b"\0" * 30), f"is a gzip archive. {UNPACK}"),
    "a picture": (put("x.png", b"\x89PNG\r\n\x1a\n"), f"is an image. {PASS}"),
}
