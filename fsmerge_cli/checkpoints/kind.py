"""Which kind of input an entry reads, before anything is loaded, and what a module states of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fsmerge_cli.checkpoints.files import read_config, readable
from fsmerge_cli.checkpoints.text_models import is_text
from fsmerge_cli.checkpoints.weights import model_in
from fsmerge_cli.common.errors import SourceError, first_line
from fsmerge_cli.common.shown import brief, shown
from fsmerge_cli.models.source_spec import SourceSpec


def reads_text(spec: SourceSpec) -> bool:
    """Whether an entry is a text encoder, as far as can be said without reading weights; False where it cannot."""
    if spec.loaded is not None:
        return bool(spec.loaded.family.kind == "text")
    try:
        if spec.base is not None and Path(spec.base).expanduser().exists():
            spec = replace(spec, checkpoint=spec.base, base=None)
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


def state_of(module: nn.Module, where: str) -> Mapping[str, Any]:
    """The tensors of a module. Raises SourceError where it has none that can be read."""
    try:
        state: Any = module.state_dict()
    except Exception as error:  # of code of the module's own, or a class instead of a module
        raise SourceError(
            f"{where}: its state_dict() fails ({first_line(error)}). Pass a torch module."
        ) from error
    if not isinstance(state, Mapping):
        raise SourceError(
            f"{where}: its state_dict() is no mapping of tensors: {brief(state)}. Pass a torch module."
        )
    if unread := [name for name, tensor in state.items() if isinstance(tensor, Tensor) and tensor.is_meta]:
        raise SourceError(
            f"{where}: {shown(unread[0])} is on the meta device, without values. Load the weights into it first."
        )
    return state
