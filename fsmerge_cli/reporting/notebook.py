"""How results show themselves: one line in an interpreter, a table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from fsmerge_cli.common.shown import printable, shortened
from fsmerge_cli.reporting.measures import correlation, mean_correlation
from fsmerge_cli.reporting.summary import Table, per_cent, scores, verdict


def one_line(kind: str, evaluation: Mapping[str, Any]) -> str:
    """The kind of a result, its tasks and its accuracy."""
    tasks = shortened(", ".join(evaluation["tasks"]), 80)
    rows = evaluation["rows"]
    row = rows.get("merged") or next(iter(rows.values()), None)
    method = "" if evaluation["method"] in ("unknown", "finetune") else f"method={evaluation['method']}, "
    found = f"{kind}({method}tasks: {tasks}"
    if row is not None and row["mean_top1"] is not None:
        found += f", top-1 accuracy {per_cent(row['mean_top1'])} %"
        joint = row["joint_top1"].get("softmax")
        found += "" if joint is None else f", joint {per_cent(joint)} %"
    if row is not None and (pearson := mean_correlation(row)) is not None:
        found += f", Pearson correlation {correlation(pearson)}"
    return f"{found})"


def as_html(evaluation: Mapping[str, Any]) -> str:
    """The result in a sentence or two and the table of scores, escaped, for notebooks."""
    found = f"<p>{escape(printable(' '.join(verdict(evaluation))))}</p>" if evaluation["rows"] else ""
    table = scores(evaluation)
    return f"<div>{found}{'' if table is None else _html(table)}</div>"


def _html(table: Table) -> str:
    head = "".join(f"<th>{escape(printable(name))}</th>" for name in table.columns)
    rows = ("".join(f"<td>{escape(printable(cell))}</td>" for cell in row) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
