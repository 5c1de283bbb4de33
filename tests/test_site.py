"""The documentation as a site: it builds without a warning, and every page is in its navigation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import REPOSITORY

LONGEST = 900
"""Words of the README."""


def pages_of(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for child in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from pages_of(child)


def test_every_page_is_in_the_navigation_once() -> None:
    nav = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]
    there = {path.relative_to(REPOSITORY / "docs").as_posix() for path in (REPOSITORY / "docs").rglob("*.md")}
    assert sorted(pages_of(nav)) == sorted(there)


@pytest.mark.full
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING -" not in done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        assert "fonts.googleapis" not in page.read_text(), page.name
    assert (tmp_path / "site/glossary.html").is_file()


def test_the_readme_can_be_read_in_five_minutes() -> None:
    assert len((REPOSITORY / "README.md").read_text().split()) <= LONGEST


def test_the_glossary_is_linked_where_readers_begin() -> None:
    for name in (
        "README.md",
        "docs/first-merge.md",
        "docs/choose-a-method.md",
        "docs/faq.md",
        "docs/how-it-works.md",
    ):
        assert "glossary.md" in (REPOSITORY / name).read_text(), name
