"""The cache key of features: a hash of all that changes their bits."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.architectures.family import Family
from fsmerge_cli.checkpoints.files import tensors_sha256
from fsmerge_cli.common.hardware import Hardware

LIBRARIES = ("torch", "timm")

Network = tuple[Family, Any, Mapping[str, Tensor]]
"""Family, options and weights of a network."""


def feature_key(
    networks: Sequence[Network],
    inputs: str,
    code: str,
    hardware: Hardware,
    device: torch.device,
    bf16: bool = False,
) -> str:
    """The key of what `networks` return for some inputs.

    inputs: hash of their pixels. code: name of the module that runs the networks. The weights are hashed because
    `Source.sha256` is the hash of the original file; folding, permuting and merging change the weights.
    """
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability()
    modules = sorted({code, *(name for family, arch, _ in networks for name in _modules(family, arch))})
    content = {
        "weights": [tensors_sha256(weights) for _, _, weights in networks],
        "architecture": [[family.name, asdict(arch)] for family, arch, _ in networks],
        "inputs": inputs,
        "code": [hashlib.sha256(inspect.getsource(sys.modules[own]).encode()).hexdigest() for own in modules],
        "versions": [torch.__version__, version("timm")],
        "device": name,
        "numerics": [bf16, hardware.eval_batch, torch.are_deterministic_algorithms_enabled()],
        "threads": None if cuda else torch.get_num_threads(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _modules(family: Family, arch: Any) -> set[str]:
    """Names of the Python modules that the network consists of; those of LIBRARIES have a version in the key."""
    classes = {type(part).__module__ for part in family.skeleton(arch).modules()}
    own = {name for name in classes if name.split(".")[0] not in LIBRARIES}
    return {family.build.__module__, family.adapt.__module__, *own}
