"""Overrides (KEY=VALUE) are checked before Hydra reads them, which answers some of them with its own errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fsmerge_cli.cli.preset_rules import check_preset
from fsmerge_cli.cli.quoting import literal
from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError, reason, unknown, unknown_key
from fsmerge_cli.common.shown import shortened

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

GROUPS = (*presets.GROUPS, *presets.SWEEPS)
MODELS = ("sources", "base")
"""Keys of the group models."""
LONGEST = 100_000
"""Most characters of one override."""
DEEPEST = 50
"""Most brackets inside each other in one override."""

HOW = "Write KEY=VALUE; quote a value with spaces or symbols: 'KEY=\"a, b\"'."
INSIDE = " Inside a list or a mapping: '[{name:a,checkpoint:\"a, b\"}]'."
PLAIN = re.compile(r"""([\w.+@/-]*=)((?:\{task\}|[^'"\[\]{},$\\\x00-\x1f])+)""")
"""KEY=TEXT where the text has nothing that Hydra gives a meaning to, such as a path with ~ or parentheses."""

FLAGS = ("--multirun", "-m", "--resolve")
VALUES = {"--cfg": ("job", "hydra", "all"), "-c": ("job", "hydra", "all"), "--config-dir": (), "-cd": ()}
"""Options of Hydra that take a value, and the values (none: any)."""


def checked(arguments: Sequence[str], command: str, own_options: Sequence[str] = ()) -> list[str]:
    """The arguments as Hydra accepts them: options first, as its parser takes no option between overrides.

    Raises ConfigError for what Hydra cannot read and for unknown options.

    own_options: of the command, already removed from the arguments; they are listed in messages.
    """
    rest, options, overrides = [*arguments], list[str](), list[str]()
    while rest:
        argument = rest.pop(0)
        name, given, value = argument.partition("=")
        if not argument.startswith("-"):
            overrides.append(checked_override(argument))
        elif name in VALUES:
            value = value if given else rest.pop(0) if rest else ""
            options += [name, _value(name, value, command)]
        elif argument in FLAGS:
            options.append(argument)
        else:
            raise ConfigError(f"fsmerge {command}: {unknown('option', name, (*own_options, *FLAGS, *VALUES))}")
    if "--resolve" in options and not {"--cfg", "-c"} & {*options}:
        raise ConfigError(f"fsmerge {command}: --resolve only applies to --cfg. Write --cfg job --resolve.")
    return [*options, *overrides]


def _value(name: str, value: str, command: str) -> str:
    """The value of an option of Hydra. Raises ConfigError."""
    if not VALUES[name]:
        return str(config_folder(value))
    if value not in VALUES[name]:
        raise ConfigError(f"fsmerge {command}: {name} takes {', '.join(VALUES[name])}, got '{shortened(value)}'.")
    return value


def config_folder(text: str) -> Path:
    """The folder of --config-dir. Raises ConfigError where there is none, UnreadableError for a file in it."""
    try:
        folder = Path(text).expanduser().resolve()
        why = "" if text and folder.is_dir() else "is not a folder"
    except (OSError, ValueError, RuntimeError) as error:
        why = f"cannot be used ({reason(error)})"
    if why:
        raise ConfigError(
            f"--config-dir: '{shortened(text)}' {why}. Pass a folder with models/*.yaml, data/*.yaml, ..."
        )
    for group in GROUPS:
        for file in sorted((folder / group).glob("**/*.yaml")):
            check_preset(file, group)  # Hydra would answer a fault with an error of its parser, or wait for a pipe
    return folder


def checked_override(argument: str) -> str:
    """KEY=VALUE as Hydra accepts it: a plain text is quoted where it needs it. Raises ConfigError."""
    if len(argument) > LONGEST or _depth(argument) > DEEPEST:
        raise ConfigError(
            f"cannot read '{shortened(argument)}': an override has at most {LONGEST} characters, and at most "
            f"{DEEPEST} brackets inside each other."
        )
    argument = literal(argument)
    override = _parsed(argument)
    if override is None:
        plain = PLAIN.fullmatch(argument)
        quoted = f'{plain[1]}"{plain[2].rstrip()}"' if plain else ""
        override = _parsed(quoted) if plain else None
        if override is None:
            inside = INSIDE if re.search(r"=\[?\{\w+:", argument) else ""
            raise ConfigError(f"cannot read '{shortened(argument)}'. {HOW}{inside}")
        argument = quoted
    for message in _mistakes(override, argument):
        raise ConfigError(message)
    group = override.key_or_group
    if group in GROUPS and argument.startswith("+") and not override.is_delete():
        argument = argument.lstrip("+")
        return f"+{argument}" if group == "models" else argument  # only models are not in the defaults list
    value = override.value()
    if group == "hydra.sweep.dir" and isinstance(value, str) and value.startswith("~"):
        return f"{group}={_in_home(value)}"
    return argument


def _in_home(text: str) -> str:
    """A folder of the home folder, as of output.dir, in quotes; it may be interpolated. Raises ConfigError."""
    from hydra.core.override_parser.types import Quote, QuotedString

    try:
        return QuotedString(text=str(Path(text).expanduser()), quote=Quote.double).with_quotes()
    except RuntimeError as error:
        raise ConfigError(f"hydra.sweep.dir={shortened(text)}: {reason(error)}. Pass another folder.") from None


def _parsed(argument: str) -> Override | None:
    """The override; None where Hydra cannot read it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser  # slow to import
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None
    except ValueError as error:  # a number of more digits than Python converts
        raise ConfigError(f"cannot read '{shortened(argument)}': {error}. Give a smaller number.") from None


def _mistakes(override: Override, argument: str) -> Iterator[str]:
    key, value = override.key_or_group, override.value()
    if override.package is not None or "@" in argument.partition("=")[0]:
        yield f"cannot read '{shortened(argument)}': a key has no @. Write GROUP=NAME or KEY=VALUE."
    elif not key:
        yield f"cannot read '{shortened(argument)}': it has no key. {HOW}"
    elif key in GROUPS and not override.is_delete() and isinstance(value, list | bool | int | float):
        yield unknown(key, str(value), presets.names(key))
    elif key in GROUPS and isinstance(value, str) and re.search(r"(^|/)\.*(/|$)", value) and "/" in value:
        yield unknown(key, value, presets.names(key))
    elif key.startswith("models.") and (name := key.split(".")[1]) not in MODELS:
        yield unknown_key("models", name, MODELS)
    elif re.match(r"models\.sources\.(?!\d+(\.|$))", key):
        place = key.split(".")[2]
        yield f"models.sources.{place}: should be the index of a source: models.sources.0.KEY=VALUE."


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        deepest = max(deepest, depth)
    return deepest
