"""`fsmerge compare --group-by`: runs that differ in one key, as their mean and standard deviation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsmerge_cli.common.errors import ConfigError, unknown
from fsmerge_cli.reporting.plots import Point
from fsmerge_cli.runs.compare import RunEntry, best_first, flat, labels, short_name

UNRELATED = ("hardware.", "output.", "checkpoint.")
"""Options that change no result, so that runs of one group may differ in them."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in the value of one key. label: what distinguishes the group from the others."""

    label: str
    runs: Mapping[str, RunEntry]

    def spread(self, metric: str) -> tuple[float | None, float | None]:
        """Mean and sample standard deviation (None for one run) of a metric; None where a run lacks it."""
        return _spread([run.metrics.get(metric) for run in self.runs.values()])


def _spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def grouped(runs: Sequence[RunEntry], key: str, metric: str) -> list[Group]:
    """The groups, best mean of `metric` first. Raises ConfigError for an unknown key and for repeated runs.

    Runs of different sources, by the SHA-256 of their weights, are different groups: a path may have been written
    anew between two runs.
    """
    options = [dict(flat(run.evaluation["config"])) for run in runs]
    known = dict.fromkeys(name for own in options for name in own)
    if key not in known:
        raise ConfigError(f"--group-by: {unknown('key', key, known)}")
    found: dict[str, dict[str, RunEntry]] = {}
    for run, own in zip(runs, options):
        value = str(own.pop(key, None))
        rest = {name: entry for name, entry in own.items() if not name.startswith(UNRELATED)}
        sources = None if key.startswith("models.") else _sources(run)
        same = json.dumps([run.evaluation["tasks"], sources, rest], sort_keys=True, default=str)
        group = found.setdefault(same, {})
        if value in group:
            raise ConfigError(
                f"--group-by {key}: {group[value].folder} and {run.folder} have the same options and "
                f"{key}={value}, so they would be counted twice. Leave out one of them."
            )
        group[value] = run
    first = [next(iter(group.values())) for group in found.values()]
    names = labels(first, but=key)
    groups = [Group(name, group) for name, group in zip(names, found.values())]
    return best_first(groups, metric, lambda group: group.spread(metric)[0])


def _sources(run: RunEntry) -> list[Any]:
    """SHA-256 of every source of a run."""
    return [own.get("sha256") for own in run.evaluation.get("provenance", {}).get("sources", [])]


def group_rows(groups: Sequence[Group], key: str) -> list[dict[str, object]]:
    """A row per group: METRIC (the mean) and METRIC_std, number of runs, and difference to the first group.

    The difference is that of runs with the same value of the key, of the same sources; None where there are none.
    """
    rows = []
    for group in groups:
        row: dict[str, object] = {"run": group.label, "runs": len(group.runs), key: ",".join(sorted(group.runs))}
        for metric in next(iter(group.runs.values())).metrics:
            row[metric], row[f"{metric}_std"] = group.spread(metric)
        gaps = _gaps(group, groups[0]) if group is not groups[0] else []
        row["difference"], row["difference_std"] = _spread(gaps) if gaps else (None, None)
        rows.append({**row, "folders": " ".join(str(run.folder) for run in group.runs.values())})
    return rows


def _gaps(group: Group, first: Group) -> list[float | None]:
    found: list[float | None] = []
    for value, run in group.runs.items():
        other = first.runs.get(value)
        if other is not None and (other.evaluation["tasks"], _sources(other)) == (
            run.evaluation["tasks"],
            _sources(run),
        ):
            own, theirs = run.metrics.get("mean"), other.metrics.get("mean")
            found.append(None if own is None or theirs is None else own - theirs)
    return found


def group_points(groups: Sequence[Group], metric: str) -> list[Point]:
    """The points of a plot: mean seconds and mean accuracy, with the standard deviations as error bars."""
    found = []
    for group in groups:
        (value, error), (seconds, more) = group.spread(metric), group.spread("seconds")
        if value is not None and seconds:
            method = str(next(iter(group.runs.values())).evaluation["method"])
            ends = (None, None) if error is None else (value - error, value + error)
            sides = (None, None) if more is None else (max(seconds - more, seconds / 100), seconds + more)
            found.append(Point(short_name(group.label, method), method, seconds, value, *ends, *sides))
    return found
