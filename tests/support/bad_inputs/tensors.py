"""Weights of the wrong type, value, name or shape."""

from __future__ import annotations

import torch

from tests.support.bad_inputs.case import (
    AVERAGE,
    INF,
    NAN,
    NOT_EVALUATED,
    Case,
    prefixed,
    tensors,
    two,
)

TENSORS = [
    Case(
        "integer weights",
        AVERAGE,
        2,
        (
            "source 'a': a: fc1.weight is of type int8; weights are fp32, fp16, bf16 or fp64. Quantised "
            "models cannot be merged: pass the original model."
        ),
        tensors("a/model.safetensors", lambda t: t.update({"fc1.weight": t["fc1.weight"].to(torch.int8)})),
        quick=True,
    ),
    Case(
        "boolean weights",
        AVERAGE,
        2,
        (
            "source 'a': a: fc1.bias is of type bool; weights are fp32, fp16, bf16 or fp64. Quantised models "
            "cannot be merged: pass the original model."
        ),
        tensors("a/model.safetensors", lambda t: t.update({"fc1.bias": t["fc1.bias"] > 0})),
    ),
    Case(
        "complex weights",
        AVERAGE,
        2,
        (
            "source 'a': a: fc1.bias is of type complex64; weights are fp32, fp16, bf16 or fp64. Quantised "
            "models cannot be merged: pass the original model."
        ),
        tensors("a/model.safetensors", lambda t: t.update({"fc1.bias": t["fc1.bias"].to(torch.complex64)})),
    ),
    Case(
        "a head with integer weights",
        AVERAGE,
        2,
        (
            "source 'a': a: a.bias is of type int64; weights are fp32, fp16, bf16 or fp64. Quantised models "
            "cannot be merged: pass the original model."
        ),
        tensors("a/heads.safetensors", lambda t: t.update({"a.bias": t["a.bias"].long()})),
    ),
    Case(
        "half precision is accepted",
        AVERAGE,
        0,
        NOT_EVALUATED,
        tensors("a/model.safetensors", lambda t: t.update({n: x.half() for n, x in t.items()})),
    ),
    Case(
        "NaN in the weights",
        AVERAGE,
        2,
        "source 'a': a: fc1.weight contains values that are not finite. Train or download the model again.",
        tensors("a/model.safetensors", lambda t: t["fc1.weight"].fill_(NAN)),
        installed=True,
    ),
    Case(
        "infinity in the weights",
        AVERAGE,
        2,
        "source 'b': b: fc0.bias contains values that are not finite. Train or download the model again.",
        tensors("b/model.safetensors", lambda t: t["fc0.bias"].fill_(-INF)),
    ),
    Case(
        "fp64 values outside the range of fp32",
        AVERAGE,
        2,
        "source 'a': a: fc0.bias contains values that are not finite. Train or download the model again.",
        tensors("a/model.safetensors", lambda t: t.update({"fc0.bias": t["fc0.bias"].double().fill_(1e300)})),
    ),
    Case(
        "NaN in a head",
        AVERAGE,
        2,
        "source 'a': a: a.bias contains values that are not finite. Train or download the model again.",
        tensors("a/heads.safetensors", lambda t: t["a.bias"].fill_(NAN)),
    ),
    Case(
        "a tensor is missing",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - 'a' lacks the tensors fc1.bias\n"
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
            "  - 'a' lacks the tensors fc0.weight, fc0.bias, fc1.weight and 1 more\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/model.safetensors", lambda t: t.clear()),
    ),
    Case(
        "an extra tensor",
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
        "a tensor name with terminal control characters",
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
            "source 'a': a contains 2 models, under 'student.', 'teacher.'. Choose one with "
            "models.sources.N.prefix=..."
        ),
        tensors("a/model.safetensors", prefixed("student.", "teacher.")),
        installed=True,
    ),
    Case(
        "an unknown prefix",
        f"{two('name:a,checkpoint:a,prefix:techer')} method=average",
        2,
        "source 'a': a: unknown prefix 'techer'. Did you mean 'teacher'? Available: student, teacher.",
        tensors("a/model.safetensors", prefixed("student.", "teacher.")),
    ),
    Case(
        "no EMA weights",
        f"{two('name:a,checkpoint:a,ema:true')} method=average",
        2,
        (
            "source 'a': a contains no EMA weights; models were found under '' (no prefix). Pass "
            "models.sources.N.ema=false or null."
        ),
        tensors("a/model.safetensors", prefixed("module.")),
    ),
    Case(
        "EMA weights that were not selected",
        AVERAGE,
        0,
        (
            f"{NOT_EVALUATED}\n'a': the weights under 'model.' were used, the EMA weights under 'model_ema.' "
            "were not (models.sources.N.ema=true uses them)"
        ),
        tensors("a/model.safetensors", prefixed("model.", "model_ema.")),
    ),
    Case(
        "weights of another library",
        AVERAGE,
        2,
        (
            "source 'a': a contains Hugging Face's Swin, which is not supported. Supported formats of other "
            "libraries are torchvision's VisionTransformer, Hugging Face's ViT, DeiT, DINOv2, DINOv3, CLIP and "
            "SigLIP, and the CLIP vision towers of OpenAI and open_clip. Load the model into timm, and save its "
            "state_dict."
        ),
        tensors(
            "a/model.safetensors",
            lambda t: t.update({"encoder.layers.0.blocks.0.layernorm_before.weight": torch.zeros(8)}),
        ),
    ),
    Case(
        "a module in a configuration",
        f"{two('name:a,module:timm.VisionTransformer')} method=average",
        2,
        (
            "source 'a': module has to be a torch module, passed from Python, not 'timm.VisionTransformer'. "
            "Pass a path: models.sources.N.checkpoint=..."
        ),
    ),
]


SHAPES = [
    Case(
        "a different input size for an MLP",
        f"{two('name:a,checkpoint:a,input_size:8')} method=average",
        2,
        "source 'a': a: mlp only accepts images of size [4, 4]. Remove models.sources.N.input_size.",
    ),
    Case(
        "an input size that is no multiple of the patch size",
        f"{two('name:v,checkpoint:v,input_size:10', 'name:w,checkpoint:w')} method=average",
        2,
        (
            "source 'v': v: input_size [10, 10] is not a multiple of the patch size [4, 4]. Pass a "
            "multiple: models.sources.N.input_size=..."
        ),
    ),
    Case(
        "a transposed tensor",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - 'a' has shapes that do not match its arch: fc0.weight is [16, 8], should be [8, 16] (it is "
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
            "  - 'a' has shapes that do not match its arch: fc0.weight is [0, 16], should be [8, 16]\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/model.safetensors", lambda t: t.update({"fc0.weight": torch.zeros(0, 16)})),
    ),
    Case(
        "a scalar in place of a vector",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - 'a' has shapes that do not match its arch: fc0.bias is [], should be [8]\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/model.safetensors", lambda t: t.update({"fc0.bias": torch.zeros(())})),
    ),
]
