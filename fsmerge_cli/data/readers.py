"""How an item of a data set becomes what a network reads, by the kind of input of its family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fsmerge_cli.architectures import Family
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.data import SHIPPED, DataConfig, auxiliary
from fsmerge_cli.data.base import ToPixels, Transform
from fsmerge_cli.data.text.augment import require_known
from fsmerge_cli.data.text.tokens import ToTokens


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


def require_same_kind(data: DataConfig, tasks: Sequence[str], model: Model) -> None:
    """Raise ConfigError where the data are not what the sources read."""
    require_kind(data, tasks, model.family.kind)


def require_kind(data: DataConfig, tasks: Sequence[str], kind: str) -> None:
    """The same, for sources that read images or texts."""
    own = {data.of(task).name: data.of(task).kind for task in tasks}
    if other := auxiliary(data):
        own[other[0].name] = other[0].kind
    for name, found in own.items():
        if found not in ("any", kind):
            sets = ", ".join(sorted(n for n, c in SHIPPED.items() if c.kind in ("any", kind)))
            short = " (--images stands for it)" if name == "folder" else ""
            how = "data=NAME" if name != "folder" else "data=text data.root=PATH, for example"
            raise ConfigError(
                f"data={name}{short} holds {found}s, and these sources read {kind}s. Pass one of {sets}: {how}"
            )
    if kind == "text":
        require_known(data.augment, "data.augment")


def reader(model: Model) -> Transform:
    """Item -> inputs of `model`. Raises DataError where its inputs cannot be read."""
    arch, how = model.arch, model.preprocessing
    if model.family.kind == "text":
        longest = min(arch.longest, how.longest)
        return ToTokens(how.state, longest, arch.types, arch.pooling == "tokens", how.side)
    return ToPixels(arch.input_size, how)
