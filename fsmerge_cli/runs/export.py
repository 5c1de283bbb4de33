"""`fsmerge export`: a written model as one ONNX file, or as a program of torch.export."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures.family import random_pixels
from fsmerge_cli.common.errors import CertificateError, ConfigError
from fsmerge_cli.common.inputs import IDS, MASK, TYPES, NamedTensors, named
from fsmerge_cli.common.output_files import EXPORT_MARK
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.common.shown import listed
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
        return self._logits(self.backbone(pixels))

    def _logits(self, features: Tensor) -> Tensor:
        if self._joint:
            return torch.cat([head.joint_logits(features) for head in self._heads], -1)
        return self._heads[0](features)


class TextModel(JointModel):
    """The tokens of texts, each [n, length] -> logits [n, labels]."""

    def forward(  # type: ignore[override]  # the tensors of a text are several
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The logits. token_type_ids: of an encoder that has types of tokens."""
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        texts = _Whole({IDS: input_ids, MASK: attention_mask, TYPES: types})
        return self._logits(self.backbone(texts))


class _Whole(NamedTensors):
    """Texts whose padding is not cut off: a program that is exported cannot depend on values."""

    def trimmed(self) -> NamedTensors:
        """The same."""
        return self


@dataclass(frozen=True)
class Exported:
    """A module to export, its labels in the order of the logits, and its inputs by name.

    checked: batches on which the file is compared with the module; the first one is also the example of the
    exporter. dynamic: by input, the axes of any size.
    """

    module: JointModel
    labels: tuple[str, ...]
    checked: tuple[Mapping[str, Tensor], ...]
    dynamic: Mapping[str, Mapping[int, Any]]

    @property
    def example(self) -> tuple[Tensor, ...]:
        """The inputs of the first batch, in their order."""
        return tuple(self.checked[0].values())


def prepared(model: Merged, task: str | None) -> Exported:
    """The module of one task, or of all tasks (None). Raises ConfigError for an unknown task."""
    if task is None and (numbers := [name for name, head in model.heads.items() if head.regression]):
        raise ConfigError(
            f"{listed(numbers)} predicts a number, which is not compared with the labels of other tasks. Pass "
            "--task NAME for a file of one task."
        )
    own = model if task is None else model.only((task,))
    heads = list(own.heads.values())
    labels = heads[0].labels if task is not None else tuple(joint_labels(model.heads))
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if model.family.kind == "text":
        texts = TextModel(model.backbone, heads, joint=task is None).eval()
        axes[1] = torch.export.Dim("length", min=2, max=model.arch.longest)
        names = (IDS, MASK, TYPES) if model.arch.types > 1 else (IDS, MASK)
        sampled = [named(model.family.sample(model.arch, n, generator(0, "export"))) for n in (3, 2)]
        full, cut = ({name: own[name] for name in names} for own in sampled)
        checked = full, {name: tensor[:, : max(2, tensor.shape[1] // 2)] for name, tensor in cut.items()}
        return Exported(texts, labels, checked, dict.fromkeys(names, axes))
    pixels = random_pixels(model.arch, 2, generator(0, "export"))
    module = JointModel(model.backbone, heads, joint=task is None).eval()
    return Exported(module, labels, ({"pixels": pixels},), {"pixels": axes})


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
    if kind == "torch":
        program = torch.export.export(
            exported.module, exported.example, dynamic_shapes=tuple(map(dict, exported.dynamic.values()))
        )
        content = io.BytesIO()  # the name of a file that is being written has no suffix that torch accepts
        facts = {"labels.json": json.dumps(exported.labels), EXPORT_MARK: "{}"}
        torch.export.save(program, content, extra_files=facts)
        path.write_bytes(content.getvalue())
        module = torch.export.load(io.BytesIO(path.read_bytes())).module()
        found = [module(*inputs.values()) for inputs in exported.checked]
    else:
        _write_onnx(exported, path)
        if find_spec("onnxruntime") is None:
            return None
        found = _run_onnx(path, exported.checked)
    expected = [exported.module(*inputs.values()) for inputs in exported.checked]
    error = max(relative_error(own.detach(), other.detach()) for own, other in zip(found, expected))
    if not error <= TOLERANCE:
        what = f"logits of {path.name} = those of the model"
        raise CertificateError([f"exported: {what}; largest error {error:.3g}, tolerance {TOLERANCE:.3g}"])
    return error


def _write_onnx(exported: Exported, path: Path) -> None:
    import onnx

    with warnings.catch_warnings():  # the axes of several inputs have one name on purpose
        warnings.filterwarnings("ignore", "# The axis name")
        program = torch.onnx.export(
            exported.module,
            exported.example,
            input_names=list(exported.dynamic),
            output_names=["logits"],
            dynamic_shapes=tuple(map(dict, exported.dynamic.values())),
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


def _run_onnx(path: Path, batches: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [
        torch.from_numpy(session.run(["logits"], {name: own.numpy() for name, own in inputs.items()})[0])
        for inputs in batches
    ]
