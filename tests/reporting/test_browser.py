"""The report page in a real browser (`make test-browser`): layout, contrast, requests and printing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsmerge_cli import merge
from fsmerge_cli.reporting.html import page
from tests.support.chromium import Page, chromium, program
from tests.support.pages import CASES

pytestmark = pytest.mark.browser

VIEWS = {
    "light": {},
    "dark": {"dark": True},
    "narrow": {"width": 360},
    "narrow dark": {"width": 360, "dark": True},
}
# Visible texts with a contrast below 4.5 : 1 (WCAG 2.2, AA).
LOW_CONTRAST = """
(() => {
  const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const under = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba(getComputedStyle(document.body).backgroundColor);
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join("");
    if (!own || element.closest(".aside, svg") || !element.getClientRects().length) continue;
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(under(element))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) found.push(`${own.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
})()
"""
# Short labels that wrap onto several lines.
WRAPPED = """
[...document.querySelectorAll(".pictures dt, .bar .value, .small thead bdi, .up, .across")].filter(e => {
  const range = document.createRange();
  range.selectNodeContents(e);
  return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1;
}).map(e => e.textContent)
"""
# Titles of columns with a word on two lines, and legends or axes that are cut or broken inside a word.
BROKEN = """
(() => {
  const found = [];
  for (const element of document.querySelectorAll(".plain thead bdi, .legend span, .ramp, .under, .scale span")) {
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    for (let node; node = walker.nextNode();) {
      for (const word of node.data.matchAll(/\\S+/g)) {
        const range = document.createRange();
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        const boxes = [...range.getClientRects()];
        const outside = !element.closest(".scroll") && boxes.some(b => b.left < 0 || b.right > innerWidth);
        const lines = new Set(boxes.map(b => Math.round(b.top))).size;
        if (word[0].length < 16 && (lines > 1 || outside)) found.push(word[0]);
      }
    }
  }
  return found;
})()
"""
# Areas of a light colour in dark mode, images aside.
SLABS = """
[...document.querySelectorAll("body, body *:not(img)")].filter(e => {
  const colour = getComputedStyle(e).backgroundColor.match(/[\\d.]+/g).map(Number);
  const box = e.getBoundingClientRect();
  return colour[3] !== 0 && Math.min(...colour.slice(0, 3)) > 140 && box.width * box.height > 2000;
}).map(e => e.className || e.tagName)
"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    if program() is None:
        pytest.fail("no Chromium found. Debian and Ubuntu: apt install chromium; then make test-browser again.")
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as shown:
        yield shown


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", CASES)
def test_a_page_logs_nothing_fits_its_window_and_has_enough_contrast(
    browser: Page, name: str, view: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(*CASES[name]), encoding="utf-8")
    browser.open(path, **VIEWS[view])  # type: ignore[arg-type]
    browser.screenshot(tmp_path / "page.png")
    assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == ("dark" in view)
    assert browser.evaluate(OVERFLOW) == 0
    assert browser.evaluate(LOW_CONTRAST) == []
    assert browser.evaluate(WRAPPED) == []
    assert browser.evaluate(BROKEN) == []
    assert "dark" not in view or browser.evaluate(SLABS) == []
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.console == []
    assert browser.requests == [path.absolute().as_uri()]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_page_prints_in_light_colours_with_all_options(
    browser: Page, name: str, dark: bool, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(*CASES[name]), encoding="utf-8")
    browser.open(path, width=700, dark=dark)  # about the width of A4 at 96 dots per inch
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert browser.evaluate("document.querySelector('.config pre').checkVisibility()")
        assert browser.evaluate(OVERFLOW) == 0
        browser.screenshot(tmp_path / "print.png")
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
    assert browser.console == []


def test_the_page_of_a_run(browser: Page, tmp_path: Path) -> None:
    merge("digits_mlp_pair", method={"name": "fs_merge", "steps": 30}, output=tmp_path / "out")
    browser.open(tmp_path / "out/report.html")
    browser.screenshot(tmp_path / "page.png")
    assert browser.evaluate("document.querySelectorAll('.bar').length") == 14
    assert browser.evaluate("document.images.length") == 12
    assert browser.evaluate(LOW_CONTRAST) == []
    assert browser.console == []
    assert len(browser.requests) == 1


def test_defects_are_detected(browser: Page, tmp_path: Path) -> None:
    text = page(*CASES["plain"])
    bad = '<script>console.log(1)</script><p style="color:#999;background:#fff;width:3000px">faint</p>'
    bad += '<p class="legend"><span style="width:3em">unbreakable</span></p>'
    bad += '<div class="pictures"><dt style="width:1em">bro ken</dt></div>'
    (tmp_path / "bad.html").write_text(text.replace("</main>", f"{bad}</main>"))
    browser.open(tmp_path / "bad.html")
    assert "violates the following Content Security Policy" in "".join(browser.console)
    assert browser.evaluate(LOW_CONTRAST) == ["faint: 2.85"]
    assert browser.evaluate(WRAPPED) == ["bro ken"]
    assert browser.evaluate(BROKEN) == ["unbreakable"]
    assert browser.evaluate(SLABS) != []
    assert browser.evaluate(OVERFLOW) > 0
    (tmp_path / "request.html").write_text("<!doctype html><img src=http://127.0.0.1:9/x>")
    browser.open(tmp_path / "request.html")
    assert browser.requests[1:] == ["http://127.0.0.1:9/x"]
    assert "ERR_" in "".join(browser.console)
