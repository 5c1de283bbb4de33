"""Write docs/examples.md: the scripts of scripts/examples with their code, so that no link leaves the docs.

    python scripts/examples_page.py       # or: make reference

tests/test_docs.py fails where the page is not what this would write.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/examples.md"

OPENING = """# Examples

<!-- Written by scripts/examples_page.py (make reference) from scripts/examples/; do not edit. -->

One script per use, from the folder `scripts/examples/` of the repository. The tests run all of them.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([OPENING, *map(section, sorted((ROOT / "scripts/examples").glob("*.py")))])


def section(path: Path) -> str:
    """One script: the first line of its docstring, then its code."""
    text = path.read_text(encoding="utf-8")
    line = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
    return f"## {path.name}\n\n{line}\n\n<!-- sketch -->\n```python\n{text}```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}: {len(page().splitlines())} lines\n")
