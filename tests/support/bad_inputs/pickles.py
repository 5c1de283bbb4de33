"""Pickled checkpoints, which could run code."""

from __future__ import annotations

import pickle

import torch

from tests.support.bad_inputs.case import (
    AVERAGE,
    LEGACY,
    NOT_EVALUATED,
    Case,
    Trap,
    both,
    cut,
    legacy,
    put,
    remove,
    two,
)

PICKLES = [
    Case(
        "a pickle that runs code",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt is damaged, or contains more than plain weights and may run code, so it is "
            "not opened. Download it again, or if you trust it, convert it once with "
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
            "source 'a': a/model.pt is damaged, or contains more than plain weights and may run code, so it is "
            "not opened. Download it again, or if you trust it, convert it once with "
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
            "source 'a': a/model.pt is damaged, or contains more than plain weights and may run code, so it is "
            "not opened. Download it again, or if you trust it, convert it once with "
            "safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        legacy(lambda t: torch.nn.Linear(2, 2)),
    ),
    Case(
        "a legacy file cut off",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt is damaged, or contains more than plain weights and may run code, so it is "
            "not opened. Download it again, or if you trust it, convert it once with "
            "safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        both(legacy(lambda t: t), cut("a/model.pt", 900)),
    ),
    Case(
        "an empty legacy file",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt is damaged, or contains more than plain weights and may run code, so it is "
            "not opened. Download it again, or if you trust it, convert it once with "
            "safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        put("a/model.pt", b""),
    ),
    Case(
        "a legacy file without tensors",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt contains no state dict (tensors by name); if you trust it, convert it once "
            "with safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        legacy(lambda t: {"epoch": 3}),
    ),
    Case(
        "a legacy file that is a list",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt contains no state dict (tensors by name); if you trust it, convert it once "
            "with safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        legacy(lambda t: list(t.values())),
    ),
    Case(
        "a legacy file with sparse tensors",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt contains no state dict (tensors by name); if you trust it, convert it once "
            "with safetensors.torch.save_file(state_dict, 'model.safetensors')."
        ),
        legacy(lambda t: {**t, "fc1.bias": t["fc1.bias"].to_sparse()}),
    ),
    Case(
        "plain weights in a legacy file are accepted",
        LEGACY,
        0,
        NOT_EVALUATED,
        legacy(lambda t: {"state_dict": t, "epoch": 3}),
    ),
    Case(
        "NumPy arrays as weights",
        two("name:a,checkpoint:a/model.npz") + " method=average",
        2,
        (
            "source 'a': a/model.npz is not a .safetensors file. Pass one, a folder with model.safetensors, "
            "or a state dict as .pt, .pth, .bin, .ckpt."
        ),
        put("a/model.npz", b"PK"),
    ),
    Case(
        "a folder with only a pickle",
        AVERAGE,
        2,
        "source 'a': a: there is no file model.safetensors. Check the path of the checkpoint.",
        both(legacy(lambda t: t), remove("a/model.safetensors")),
    ),
]
