"""`fsmerge completion`: scripts that let a shell complete commands, options, groups and keys."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from fsmerge_cli.common import presets
from fsmerge_cli.common.errors import ConfigError, unknown

HELP = """usage: fsmerge completion bash|zsh|fish

Prints a script with which the shell completes commands, options, groups (method=...) and keys.
Everything else completes as a file name.

  bash   eval "$(fsmerge completion bash)"                    in ~/.bashrc
  zsh    eval "$(fsmerge completion zsh)"                     in ~/.zshrc, behind compinit
  fish   fsmerge completion fish > ~/.config/fish/completions/fsmerge.fish

example:
  fsmerge completion bash
"""

BASH = """\
# Completion of fsmerge for bash.
_fsmerge() {{
  local line=${{COMP_LINE:0:COMP_POINT}} current command words= word
  current=${{line##*[[:space:]]}}
  command=${{COMP_WORDS[1]}}
  if [[ $COMP_CWORD -eq 1 && $line != *[[:space:]]*[[:space:]]* ]]; then
    words={commands}
  else
    case $command in
{cases}
    esac
  fi
  local before=
  # Where bash breaks words at =, a reply is only what stands behind it.
  if [[ $current == *=* && $COMP_WORDBREAKS == *=* ]]; then before=${{current%"${{current##*=}}"}}; fi
  COMPREPLY=()
  for word in $words; do
    if [[ $word == "$current"* ]]; then COMPREPLY+=("${{word#"$before"}}"); fi
  done
  if [[ ${{#COMPREPLY[@]}} -eq 0 ]]; then
    while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "${{current##*=}}")
    compopt -o filenames 2> /dev/null
  elif [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *= ]]; then
    compopt -o nospace 2> /dev/null
  fi
}}
complete -F _fsmerge fsmerge
"""

ZSH = """\
#compdef fsmerge
# Completion of fsmerge for zsh.
_fsmerge() {{
  local -a candidates
  if (( CURRENT == 2 )); then
    candidates=({commands})
  else
    case $words[2] in
{cases}
    esac
  fi
  compadd -Q -S '' -a candidates || _files -P "${{(M)PREFIX##*=}}"
}}
compdef _fsmerge fsmerge
"""


def run(arguments: list[str]) -> int:
    """Print the script of one shell."""
    if len(arguments) != 1:
        raise ConfigError("fsmerge completion takes one shell: bash, zsh or fish. See fsmerge completion --help.")
    writers = {"bash": bash, "zsh": zsh, "fish": fish}
    if arguments[0] not in writers:
        raise ConfigError(unknown("shell", arguments[0], writers))
    sys.stdout.write(writers[arguments[0]](candidates()))
    return 0


def candidates() -> dict[str, list[str]]:
    """By command, the words that may follow it: options and keys of its help, groups with their names."""
    from fsmerge_cli.cli import COMMANDS

    found = {}
    for command in COMMANDS:
        text = import_module(f"fsmerge_cli.cli.{command}_command").HELP
        words = re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
        words += [
            f"{key}="
            for key in re.findall(r"^ +\+?([a-z_]+(?:\.[a-z_]+)+|seed|resume|tasks)=", text, re.MULTILINE)
        ]
        words += [f"{key}=" for key in presets.command_keys(command)]
        groups = [name for name in (*presets.GROUPS, *presets.SWEEPS) if re.search(rf"\b{name}=NAME", text)]
        for group in groups:
            plus = "+" if group == "models" else ""
            words += [f"{plus}{group}={name}" for name in presets.names(group)]
            words += [] if group in ("models", *presets.SWEEPS) else _keys(group)
        if command == "list":
            words += [*presets.GROUPS, *presets.SWEEPS]
        words += ["bash", "zsh", "fish"] if command == "completion" else []
        whole = {f"{group}=" for group in groups}  # completed with a name
        found[command] = [word for word in dict.fromkeys(words) if word not in whole]
    return found


def _keys(group: str) -> list[str]:
    """The keys of all options of a group, as `group.key=`."""
    names = dict.fromkeys(key for name in presets.names(group) for key in presets.load(group, name))
    return [f"{group}.{key}=" for key in names if key != "name"]


def bash(found: Mapping[str, Sequence[str]]) -> str:
    """The script for bash."""
    return BASH.format(commands=shlex.quote(" ".join(found)), cases=_cases(found, "words={}"))


def zsh(found: Mapping[str, Sequence[str]]) -> str:
    """The script for zsh."""
    cases = "\n".join(f"      {name}) candidates=({_quoted(words)}) ;;" for name, words in found.items())
    return ZSH.format(commands=_quoted(found), cases=cases)


def fish(found: Mapping[str, Sequence[str]]) -> str:
    """The script for fish."""
    from fsmerge_cli.cli import COMMANDS

    lines = ["# Completion of fsmerge for fish."]
    for name, text in COMMANDS.items():
        lines.append(f"complete -c fsmerge -n __fish_use_subcommand -f -a {name} -d {shlex.quote(text)}")
    for name, words in found.items():
        if words:
            own = shlex.quote(" ".join(words))
            lines.append(f"complete -c fsmerge -n '__fish_seen_subcommand_from {name}' -a {own}")
    return "\n".join(lines) + "\n"


def _cases(found: Mapping[str, Sequence[str]], form: str) -> str:
    return "\n".join(
        f"      {name}) {form.format(shlex.quote(' '.join(words)))} ;;" for name, words in found.items()
    )


def _quoted(words: Sequence[str] | Mapping[str, object]) -> str:
    return " ".join(map(shlex.quote, words))
