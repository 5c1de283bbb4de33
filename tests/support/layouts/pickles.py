"""Pickles that are refused, and their messages after the path."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.support.layouts.files import ARGS, Prepare, put, torch_file


class Trap:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.mkdir, (Path("sprung"),))  # type: ignore[return-value]


class Mine(torch.nn.Module):
    """A class of a user's own code."""


def needs(classes: str, weights: str) -> str:
    """The message for a pickle that needs these classes, with the two lines that save its weights."""
    return (
        f"contains more than weights: its pickle needs {classes}, which may run code, so it is not opened. If you "
        "trust the file, save its weights once, in Python, where these can be imported:\n"
        "    found = torch.load({path!r}, map_location='cpu', weights_only=False)\n"
        f"    torch.save({weights}, 'weights.pt')"
    )


PICKLES: dict[str, tuple[Prepare, str]] = {
    "a .pth.tar with arguments": (
        torch_file("best.pth.tar", lambda t: {"args": ARGS, "state_dict": t}),
        needs("argparse.Namespace", "found['state_dict']"),
    ),
    "torch's old format with arguments": (
        torch_file("best.pth", lambda t: {"args": ARGS, "model": t}, _use_new_zipfile_serialization=False),
        needs("argparse.Namespace", "found['model']"),
    ),
    "a path among the options": (
        torch_file("x.pt", lambda t: {"cfg": {"root": Path("x")}, "model_state_dict": t}),
        needs("pathlib.PosixPath", "found['model_state_dict']"),
    ),
    "a whole module": (
        torch_file("x.pt", lambda t: Mine()),
        needs("tests.support.layouts.pickles.Mine", "found.state_dict()"),
    ),
    "a whole module in a dict": (
        torch_file("x.pt", lambda t: {"epoch": 1, "model": torch.nn.Sequential(torch.nn.Tanh())}),
        needs(
            "torch.nn.modules.activation.Tanh, torch.nn.modules.container.Sequential",
            "found['model'].state_dict()",
        ),
    ),
    "arrays of NumPy as weights": (
        torch_file("x.pt", lambda t: {n: v.numpy() for n, v in t.items()}),
        needs(
            "numpy._core.multiarray._reconstruct, numpy.dtype, numpy.ndarray",
            "{{name: torch.as_tensor(array) for name, array in found.items()}}",
        ),
    ),
    "a number of NumPy": (
        torch_file("x.ckpt", lambda t: {"best": np.float64(3), "state_dict": t}),
        needs("numpy._core.multiarray.scalar, numpy.dtype", "found['state_dict']"),
    ),
    "a pickle that runs code": (
        put("x.pt", pickle.dumps(Trap(), 2)),
        "is not opened: its pickle calls getattr, by which it may run commands and which no weights need. Do not "
        "load it with weights_only=False; take the weights from another source.",
    ),
    "a pickle that torch did not save": (
        put("x.pkl", pickle.dumps({"a": np.ones(2)}, 5)),
        "is damaged, or a pickle of another program, which may run code. Download or copy it again, or save "
        "its weights with torch.save(state_dict, 'weights.pt').",
    ),
    "the state of an optimizer": (
        torch_file("x.pt", lambda t: {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}),
        "contains the state of a training (state, param_groups), but no weights of a model. Pass the file of the "
        "weights.",
    ),
    "an optimizer and a scheduler": (
        torch_file("x.pt", lambda t: {"epoch": 3, "optimizer": {"state": {}}, "scheduler": {"step": 3}}),
        "contains the state of a training (epoch, optimizer, scheduler), but no weights of a model. Pass the file "
        "of the weights.",
    ),
    "no tensors": (
        torch_file("x.pt", lambda t: {"epoch": 3, "note": "x"}),
        "contains no state dict (tensors by name), its keys are: epoch, note. Pass the file of the weights.",
    ),
    "a list": (
        torch_file("x.pt", lambda t: list(t.values())),
        "contains a list, no state dict (tensors by name). Save the weights with torch.save(model.state_dict(), "
        "'weights.pt').",
    ),
    "one tensor": (
        torch_file("x.pt", lambda t: torch.ones(3)),
        "contains one tensor, no state dict (tensors by name). Save the weights with "
        "torch.save(model.state_dict(), 'weights.pt').",
    ),
    "two tensors of one name": (
        torch_file("x.pt", lambda t: {**t, "fc0": {"weight": torch.ones(2)}}),
        "has two tensors called fc0.weight. Save the weights of one model.",
    ),
    "a tensor without values": (
        torch_file("x.pt", lambda t: {**t, "fc0.weight": torch.ones(2, device="meta")}),
        ": fc0.weight is without values (on the meta device). Save ordinary tensors with values.",
    ),
}
