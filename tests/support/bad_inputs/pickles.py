"""Pickled checkpoints, which could run code."""

from __future__ import annotations

import pickle

import numpy as np
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

DAMAGED = (
    "source 'a': a/model.pt is damaged, or a pickle of another program, which may run code. Download or "
    "copy it again, or save its weights with torch.save(state_dict, 'weights.pt')."
)
COMMAND = (
    "source 'a': a/model.pt is not opened: its pickle calls posix.mkdir, by which it may run commands and which "
    "no weights need. Do not load it with weights_only=False; take the weights from another source."
)


def needs(classes: str, weights: str) -> str:
    """The message for a pickle that needs these classes, with the two lines that save its weights."""
    return (
        f"source 'a': a/model.pt contains more than weights: its pickle needs {classes}, which may run code, so "
        "it is not opened. If you trust the file, save its weights once, in Python, where these can be imported:\n"
        "    found = torch.load('a/model.pt', map_location='cpu', weights_only=False)\n"
        f"    torch.save({weights}, 'weights.pt')"
    )


PICKLES = [
    Case(
        "a pickle that runs code",
        LEGACY,
        2,
        DAMAGED,
        put("a/model.pt", pickle.dumps(Trap())),
        installed=True,
    ),
    Case(
        "a state dict that runs code",
        LEGACY,
        2,
        COMMAND,
        legacy(lambda t: {**t, "fc0.bias": Trap()}),
        quick=True,
    ),
    Case(
        "a whole module, pickled",
        LEGACY,
        2,
        needs("torch.nn.modules.linear.Linear", "found.state_dict()"),
        legacy(lambda t: torch.nn.Linear(2, 2)),
    ),
    Case(
        "a legacy file cut off",
        LEGACY,
        2,
        DAMAGED,
        both(legacy(lambda t: t), cut("a/model.pt", 900)),
    ),
    Case(
        "an empty legacy file",
        LEGACY,
        2,
        "source 'a': a/model.pt is empty (0 bytes). Download or copy it again.",
        put("a/model.pt", b""),
    ),
    Case(
        "a legacy file without tensors",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt contains no state dict (tensors by name), its keys are: epoch. Pass the file "
            "of the weights."
        ),
        legacy(lambda t: {"epoch": 3}),
    ),
    Case(
        "a legacy file that is a list",
        LEGACY,
        2,
        (
            "source 'a': a/model.pt contains a list, no state dict (tensors by name). Save the weights with "
            "torch.save(model.state_dict(), 'weights.pt')."
        ),
        legacy(lambda t: list(t.values())),
    ),
    Case(
        "a legacy file with sparse tensors",
        LEGACY,
        2,
        "source 'a': a/model.pt: fc1.bias is sparse or nested. Save ordinary tensors with values.",
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
            "source 'a': a/model.npz is a NumPy archive (.npz). Save the weights of the PyTorch model instead: "
            "torch.save(model.state_dict(), 'weights.pt')."
        ),
        lambda f, p: np.savez(f / "a/model.npz", x=np.ones(2)),
    ),
    Case(
        "a folder with only a pickle is accepted",
        AVERAGE,
        0,
        NOT_EVALUATED,
        both(legacy(lambda t: t), remove("a/model.safetensors")),
    ),
]
