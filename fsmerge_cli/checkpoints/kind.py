"""Which kind of input an entry reads, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fsmerge_cli.checkpoints.files import read_config, readable
from fsmerge_cli.checkpoints.text_models import is_text
from fsmerge_cli.checkpoints.weights import model_in
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.models.source_spec import SourceSpec


def reads_text(spec: SourceSpec) -> bool:
    """Whether an entry is a text encoder, as far as can be said without reading weights; False where it cannot."""
    if spec.loaded is not None:
        return bool(spec.loaded.family.kind == "text")
    try:
        config: Mapping[str, Any] = module_config(spec.module) if spec.module is not None else {}
        if spec.checkpoint is not None:
            config = read_config(model_in(readable(spec.checkpoint, "")), "")
        return is_text(spec, config)
    except (SourceError, OSError, ValueError, RuntimeError):  # which is reported where it is read
        return False


def module_config(module: nn.Module) -> dict[str, Any]:
    """The options of a module of Hugging Face, with its own class; empty for other modules.

    The class that they state may be that of the checkpoint it was started from.
    """
    stated: Any = getattr(module, "config", None)
    if not hasattr(stated, "to_dict"):
        return {}
    own = [base.__name__ for base in type(module).__mro__ if base.__module__.startswith("transformers.")]
    return {**stated.to_dict(), **({"architectures": own[:1]} if own else {})}
