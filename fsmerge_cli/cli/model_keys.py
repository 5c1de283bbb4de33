"""`model.KEY=VALUE` of `predict` and `export`: what the files of a third-party model do not state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fsmerge_cli.cli.composing import composed
from fsmerge_cli.common.separation import Input

HELP = """  model.KEY=VALUE what the files of a third-party model do not state, as of fsmerge evaluate:
                  model.mean, model.std, model.labels, model.arch, model.head, model.prefix, ...
"""


def model_keys(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The other arguments, and the keys of the model (empty: none is given). Raises ConfigError."""
    own = [argument for argument in arguments if re.match(r"model\.[a-z_]+=", argument)]
    rest = [argument for argument in arguments if argument not in own]
    keys: dict[str, Any] = composed("evaluate", own, None)["model"] if own else {}
    return rest, keys


def model_inputs(model: str, keys: dict[str, Any]) -> list[Input]:
    """Every path that is read for a model."""
    from fsmerge_cli.runs.inputs import checkpoint_inputs, label_inputs

    beside = [
        *label_inputs("model.labels", keys.get("labels")),
        *checkpoint_inputs("model.base", keys.get("base")),
    ]
    return [*checkpoint_inputs("the model", model), *beside]
