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
]


SHAPES = [
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
]
