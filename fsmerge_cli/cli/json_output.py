"""JSON on standard output."""

from __future__ import annotations

import json
import sys

from fsmerge_cli.common.shown import json_text


def write_json(value: object) -> None:
    """Write `value` as JSON: letters as they are where standard output has all of them, else as escapes."""
    text = json_text(value)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), indent=2) + "\n"
    sys.stdout.write(text)
