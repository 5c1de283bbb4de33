"""`fsmerge export`: a written model as one ONNX file, or as a program of torch.export."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures.family import random_pixels
from fsmerge_cli.common.errors import CertificateError, ConfigError
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.evaluation.certificates import relative_error
from fsmerge_cli.models.head import Head, joint_labels
from fsmerge_cli.runs.merged import Merged

TOLERANCE = 1e-4
"""Largest error of the exported logits, relative to their root mean square."""

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
"""Suffix of a file by its format."""

PACKAGES = {"onnx": ("onnx", "onnxscript"), "torch": ()}


class JointModel(nn.Module):
    """Pixels in 0..1 [n, C, H, W] -> logits [n, labels] of one head, or of all heads as they are compared."""

    def __init__(self, backbone: nn.Module, heads: Sequence[Head], joint: bool) -> None:
        super().__init__()
        self.backbone, self._joint, self._heads = backbone, joint, list(heads)
        for place, head in enumerate(heads):  # registered, so that they are parts of the exported program
            for name in ("weight", "bias", "projector"):
                self.register_buffer(f"head_{place}_{name}", getattr(head, name))

    def forward(self, pixels: Tensor) -> Tensor:
        """The logits."""
        features = self.backbone(pixels)
        if self._joint:
            return torch.cat([head.joint_logits(features) for head in self._heads], 1)
        return self._heads[0](features)


@dataclass(frozen=True)
class Exported:
    """A module to export, its labels in the order of the logits, and an input."""

    module: JointModel
    labels: tuple[str, ...]
    pixels: Tensor


def prepared(model: Merged, task: str | None) -> Exported:
    """The module of one task, or of all tasks (None). Raises ConfigError for an unknown task."""
    if model.family.kind == "text":
        raise ConfigError(
            "fsmerge export writes networks of images. A merged text encoder lies in tasks/NAME in the layout of "
            "transformers, which optimum exports: optimum-cli export onnx --model RUN/tasks/NAME OUTPUT"
        )
    own = model if task is None else model.only((task,))
    heads = list(own.heads.values())
    labels = heads[0].labels if task is not None else tuple(joint_labels(model.heads))
    pixels = random_pixels(model.arch, 2, generator(0, "export"))
    return Exported(JointModel(model.backbone, heads, joint=task is None).eval(), labels, pixels)


def require_packages(kind: str) -> None:
    """Raise ConfigError where a package that the format needs is missing."""
    if missing := [name for name in PACKAGES[kind] if find_spec(name) is None]:
        raise ConfigError(
            f"--format {kind} needs the packages {' and '.join(missing)}, not installed. Install: pip install "
            f"{' '.join(missing)}"
        )


def write(exported: Exported, kind: str, path: Path) -> float | None:
    """Write the file, and read it back; the largest relative error of its logits (None: nothing can run it here).

    Raises CertificateError where they differ from those of the model.
    """
    batch = torch.export.Dim("batch")
    expected = exported.module(exported.pixels)
    if kind == "torch":
        program = torch.export.export(exported.module, (exported.pixels,), dynamic_shapes=({0: batch},))
        content = io.BytesIO()  # the name of a file that is being written has no suffix that torch accepts
        torch.export.save(program, content, extra_files={"labels.json": json.dumps(exported.labels)})
        path.write_bytes(content.getvalue())
        found: Tensor | None = torch.export.load(io.BytesIO(path.read_bytes())).module()(exported.pixels)
    else:
        _write_onnx(exported, path, batch)
        found = _run_onnx(path, exported.pixels)
    if found is None:
        return None
    error = relative_error(found.detach(), expected.detach())
    if not error <= TOLERANCE:
        what = f"logits of {path.name} = those of the model"
        raise CertificateError([f"exported: {what}; largest error {error:.3g}, tolerance {TOLERANCE:.3g}"])
    return error


def _write_onnx(exported: Exported, path: Path, batch: Any) -> None:
    import onnx

    program = torch.onnx.export(
        exported.module,
        (exported.pixels,),
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise CertificateError(["exported: torch.onnx.export returned nothing"])
    content = program.model_proto
    entry = content.metadata_props.add()
    entry.key, entry.value = "labels", json.dumps(exported.labels, ensure_ascii=False)
    onnx.checker.check_model(content)
    onnx.save(content, str(path))


def _run_onnx(path: Path, pixels: Tensor) -> Tensor | None:
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])
