"""Texts that must not control a terminal, be taken for markup, or look like our own output."""

from __future__ import annotations

FORGED = "fsmerge: error: forged"
HOSTILE = {
    "escape sequence": "\x1b[31mred\x1b[2J",
    "window title": "\x1b]0;title\x07",
    "eight-bit escape": "\x9b31m",
    "line break": f"cat\n{FORGED}",
    "carriage return": f"cat\r{FORGED}",
    "line separator": f"cat\u2028{FORGED}",
    "next line": f"cat\x85{FORGED}",
    "direction": "\u202egpj.exe\u2066",
    "invisible": "ca\u200bt\ufeff",
    "tag characters": "cat\U000e0041",
    "backspaces": "cat\b\b\bdog\x7f",
    "tab": "\tcat\v\f",
    "lone surrogate": "cat\udcff",
}
MARKUP = {
    "rich": "[red]cat[/red] [link=file:///etc]x[/link] [/]",
    "emoji": ":smile: :warning:",
    "html": "<img src=x onerror=alert(1)>",
    "markdown": "[x](http://evil.example) **b** `c` | $y$ www.evil.example https://evil.example a@evil.example",
    "template": "{{ 7 * 7 }} {% raw %} %s {0}",
    "formula": "$\\frac{1}{$ a_b^c $",
}
FORMULAS = ("=1+1", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1+1", "=cmd|' /C calc'!A0")
EVERY = {**HOSTILE, **MARKUP}


def safe(text: str) -> bool:
    """Whether nothing in a text controls a terminal, and no line of it is one that a name pretends to be."""
    plain = all(c.isprintable() or c == "\n" for c in text)
    return plain and not any(line.startswith(FORGED) for line in text.splitlines())
