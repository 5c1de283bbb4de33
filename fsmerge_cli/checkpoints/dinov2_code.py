"""Vision transformers in the names and the order of tokens of the original code of DINOv2."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

DINOV2_CODE = {
    r"^blocks\.\d+\.(\d+\..*)": r"blocks.\1",
    r"^(blocks\.\d+\.mlp\.)w12\.": r"\1fc1.",
    r"^(blocks\.\d+\.mlp\.)w3\.": r"\1fc2.",
}
"""Names in the original code of DINOv2: pattern -> timm's."""


def of_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vision transformer under timm's names, also from the original code of DINOv2.

    That code stores blocks in chunks, calls the layers of its SwiGLU w12 and w3, and adds a position to the class
    token before it inserts the register tokens; in timm the class token contains this position.
    """
    found: dict[str, Tensor] = {}
    for old, tensor in tensors.items():
        own = old
        for pattern, new in DINOV2_CODE.items():
            own = re.sub(pattern, new, own)
        found[own] = tensor
    registers, positions, first = found.get("register_tokens"), found.get("pos_embed"), found.get("cls_token")
    if registers is not None and positions is not None and first is not None and positions.ndim == 3:
        del found["register_tokens"]
        found["reg_token"] = registers
        found["cls_token"] = first.float() + positions[:, :1].float()
        found["pos_embed"] = positions[:, 1:]
    return found
