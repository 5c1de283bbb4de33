"""The code blocks of README and docs: their language, marker and commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
UNRUN = {"needs: hub", "needs: gpu", "needs: cluster", "needs: files", "long"}
MARKERS = {*UNRUN, "slow", "sketch", ""}
LANGUAGES = {"sh", "python", "yaml", "json", "text", ""}


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, line, language, marker and text."""

    page: Path
    line: int
    language: str
    marker: str
    text: str


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    lines = page.read_text().splitlines()
    found, start, language, marker = [], None, "", ""
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start, language = number, line[3:].strip()
            before = next((text for text in reversed(lines[:number]) if text.strip()), "")
            mark = re.fullmatch(r"<!-- (.*) -->", before.strip())
            marker = mark[1] if mark and not mark[1].endswith(("begin", "end")) else ""
        else:
            found.append(Block(page, start + 1, language, marker, "\n".join(lines[start + 1 : number])))
            start = None
    assert start is None, f"{page.name}: a code block without an end"
    return found


def is_file(block: Block) -> bool:
    """Whether a block is a YAML file: its first line is a comment with its path."""
    return block.language == "yaml" and re.match(r"# [\w/.-]+\.yaml$", block.text.splitlines()[0]) is not None


def write(block: Block) -> None:
    """Write a YAML block to the path in its first line."""
    path = Path(block.text.splitlines()[0].removeprefix("# "))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text + "\n")


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of a shell block, with variables NAME="..." substituted."""
    variables: dict[str, str] = {}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if assignment := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[assignment[1]] = assignment[2]
            continue
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        if words := shlex.split(line, comments=True):
            yield words


BLOCKS = {page: blocks(page) for page in PAGES}


def name_of(page: Path) -> str:
    """The path of a page in the repository."""
    return page.relative_to(REPOSITORY).as_posix()


def recipe(target: str) -> list[str] | None:
    """The command lines of a target of the Makefile; None if there is no such target."""
    text = (REPOSITORY / "Makefile").read_text()
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)*)", text, re.M)
    return None if found is None else [line.strip() for line in found[1].splitlines()]
