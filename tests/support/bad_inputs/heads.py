"""Heads and labels that do not fit."""

from __future__ import annotations

import torch

from tests.support.bad_inputs.case import (
    AVERAGE,
    NOT_EVALUATED,
    Case,
    head_of,
    legacy,
    put,
    tensors,
    two,
)

HEADS = [
    Case(
        "labels for a folder of two heads",
        f"{two('name:a,checkpoint:a,labels:[x]')} method=average",
        2,
        (
            "source 'a': labels are given, but a has 2 heads with their own labels: a, z. Remove "
            "models.sources.0.labels, or choose one head with models.sources.0.head=NAME"
        ),
        tensors("a/heads.safetensors", lambda t: t.update({"z.weight": torch.zeros(3, 8)})),
    ),
    Case(
        "a head whose name is not a valid task name",
        AVERAGE,
        2,
        (
            "the task name '../z' cannot be used: it becomes part of file and tensor names. Pass "
            "models.sources.N.name=... of "
            "1 to 80 printable characters, without / and \\, not starting with a dot, "
            "without spaces at either end."
        ),
        tensors("a/heads.safetensors", lambda t: t.update({"../z.weight": torch.zeros(3, 8)})),
    ),
    Case(
        "a missing file of labels",
        f"{two('name:a,checkpoint:a,labels:names.txt')} method=average",
        2,
        (
            "source 'a': the labels in names.txt cannot be read (No such file or directory). Pass another file, "
            "or a list: models.sources.N.labels=[...]"
        ),
    ),
    Case(
        "a file of labels with other content",
        f"{two('name:a,checkpoint:a,labels:names.json')} method=average",
        2,
        (
            "source 'a': names.json should contain label names, one per line (.txt) or as a list (.json), none of "
            "them empty."
        ),
        put("names.json", "[1, 2, 3]"),
    ),
    Case(
        "labels of a missing data set",
        f"{two('name:a,checkpoint:a,labels:data')} method=average",
        2,
        (
            "source 'a': labels=data uses the names of class folders, but no data set is given. Pass data=folder "
            "with class folders, or a list: models.sources.N.labels=[...]"
        ),
    ),
    Case(
        "an unknown data type",
        f"{AVERAGE} output.dtype=float8",
        2,
        "unknown output.dtype 'float8'. Did you mean 'float32'? Available: bfloat16, float16, float32.",
    ),
    Case(
        "values beyond the range of float16",
        f"{AVERAGE} output.dtype=float16",
        2,
        (
            "output.dtype=float16 cannot represent fc1.bias, whose largest absolute value is 1e+06. Use "
            "output.dtype=bfloat16 or float32."
        ),
        tensors("a/model.safetensors", lambda t: t["fc1.bias"].fill_(2e6)),
    ),
]


HEADS_OF_CHECKPOINTS = [
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
        "an unknown head",
        two("name:a,checkpoint:a,head:other") + " method=average",
        2,
        "source 'a': a: unknown head 'other'. Available: a.",
    ),
    Case(
        "two heads and none is chosen: each is a task",
        AVERAGE,
        0,
        f"{NOT_EVALUATED}\n'z' and 'a' are tasks of one model: its weights are counted once per task",
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
            "  - 'a' lacks the tensors fc1.bias\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        tensors("a/model.safetensors", lambda t: t.pop("fc1.bias")),
    ),
]
