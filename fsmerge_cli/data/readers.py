"""How an item of a data set becomes what a network reads, by the kind of input of its family."""

from __future__ import annotations

from typing import Any, Protocol

from fsmerge_cli.architectures import Family
from fsmerge_cli.data.base import ToPixels, Transform


class Model(Protocol):
    """A source, or a written model."""

    @property
    def family(self) -> Family:
        """Its architecture family."""

    @property
    def arch(self) -> Any:
        """The options of the family."""

    @property
    def preprocessing(self) -> Any:
        """What happens to an item before the network."""


def reader(model: Model) -> Transform:
    """Item -> inputs of `model`. Raises DataError where its inputs cannot be read."""
    return ToPixels(model.arch.input_size, model.preprocessing)
