"""What a result depends on: versions of the software, and the images of a merge."""

from __future__ import annotations

import torch

from fsmerge_cli.checkpoints.files import tensors_sha256
from fsmerge_cli.common.inputs import named
from fsmerge_cli.data.draw import Images


def versions() -> dict[str, str]:
    """Versions of the software that results depend on."""
    from importlib.metadata import version
    from platform import python_version

    packages = ("fsmerge", "torch", "timm", "numpy", "safetensors")
    return {
        "python": python_version(),
        **{name: version(name) for name in packages},
        "cuda": str(torch.version.cuda),
    }


def images_sha256(images: Images) -> str:
    """SHA-256 of the pixels and tasks of all images that a merge uses, in order."""
    return tensors_sha256({**named(images.images), "task": images.task})
