"""docs/methods.md is the page that the registry and the rows give."""

from __future__ import annotations

from fsmerge_cli.common import presets
from scripts.methods import PAGE, page


def test_the_page_is_up_to_date_and_has_every_method() -> None:
    text = PAGE.read_text()
    assert text == page(), "run: make reference"
    for name in presets.shipped("method"):
        assert f"| [`{name}`](#{name}) |" in text
        assert f"\n## {name}\n" in text
    assert "arXiv 2306.01708](https://arxiv.org/abs/2306.01708)" in text
