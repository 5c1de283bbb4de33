"""`model.KEY=VALUE` of `predict` and `export`: what the files of a third-party model do not state."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from fsmerge_cli.cli.composing import composed
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.separation import Input
from fsmerge_cli.common.shown import shortened

HELP = """  model.KEY=VALUE what the files of a third-party model do not state, as of fsmerge evaluate:
                  model.mean, model.std, model.labels, model.arch, model.head, model.prefix, ...
"""


OTHER_KEY = re.compile(
    r"(data|hardware|method|models|output|training|checkpoint|evaluation|seed|resume|tasks)(\.\w+)*=\S*"
)
"""A key of another command, which would be read as a text or as the name of a file."""


def model_keys(arguments: Sequence[str], command: str) -> tuple[list[str], dict[str, Any]]:
    """The other arguments of `command`, and the keys of the model (empty: none is given). Raises ConfigError."""
    own = [argument for argument in arguments if re.match(r"model\.[a-z_]+=", argument)]
    rest = [argument for argument in arguments if argument not in own]
    for argument in rest:
        if OTHER_KEY.fullmatch(argument) and not os.path.lexists(argument):
            raise ConfigError(
                f"fsmerge {command}: {shortened(argument)} is a key of another command. It takes "
                f"model.KEY=VALUE only. See fsmerge {command} --help."
            )
    keys: dict[str, Any] = composed("evaluate", own, None)["model"] if own else {}
    if keys.get("labels") == "data":
        raise ConfigError(
            f"model.labels=data: fsmerge {command} reads no data set whose classes have names. Give a list "
            "(model.labels=[cat,dog]), or a file (.txt, .json)."
        )
    return rest, keys


def model_inputs(model: str, keys: dict[str, Any]) -> list[Input]:
    """Every path that is read for a model."""
    from fsmerge_cli.runs.inputs import checkpoint_inputs, label_inputs

    beside = [
        *label_inputs("model.labels", keys.get("labels")),
        *checkpoint_inputs("model.base", keys.get("base")),
    ]
    return [*checkpoint_inputs("the model", model), *beside]
