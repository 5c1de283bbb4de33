"""Quality without labels: how often a model and the source of a task agree, as words and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fsmerge_cli.common.wording import worded

Values = Mapping[str, Any]

TEN = 10
"""Nearest images of a model among which the source's nearest one is looked for (`evaluation.neighbours`)."""


def agreement(evaluation: Values, name: str = "merged") -> float | None:
    """Share of the images on which a row and the source predict the same label, mean over tasks; None without."""
    if name == "merged":
        counts = [(own["images"], own["same_as_source"]) for own in evaluation["predictions"].values()]
    else:
        counts = list(_counts(evaluation["rows"].get(name, {})).values())
    return sum(same / images for images, same in counts) / len(counts) if counts else None


def cosine(evaluation: Values, name: str = "merged") -> float | None:
    """Mean cosine of a row's features to those of the sources, mean over tasks; None without."""
    found = [*evaluation["rows"].get(name, {}).get("feature_cosine", {}).values()]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def nearest(evaluation: Values, name: str = "merged") -> float | None:
    """Share of the images whose nearest one by the source is among a row's ten nearest, mean over tasks."""
    row = evaluation["rows"].get(name, {})
    return _mean([task_nearest(row, task) for task in row.get("neighbours", {})])


def task_nearest(row: Values, task: str) -> float | None:
    """The share of one task in a row of evaluation.json."""
    own = row.get("neighbours", {}).get(task)
    return own["among"] / own["images"] if own else None


def task_agreement(row: Values, task: str) -> float | None:
    """The share of one task in a row of evaluation.json."""
    images, same = _counts(row).get(task, (0, 0))
    return same / images if images else None


def _counts(row: Values) -> dict[str, tuple[int, int]]:
    return {task: (own["images"], own["same"]) for task, own in row.get("agreement", {}).items()}


def own_word(evaluation: Values, text: str) -> str:
    """`text` with the word for the inputs of this run."""
    return worded(text, evaluation.get("inputs", "image"))


def counted_word(evaluation: Values, text: str) -> str:
    """`text` with the word for what the test counts of this run count: inputs, or the words of texts.

    >>> counted_word({"inputs": "text", "counted": "word"}, "54 test images")
    '54 test words'
    """
    return worded(text, evaluation.get("counted") or evaluation.get("inputs", "image"))


def images_in_words(evaluation: Values) -> str:
    """Which images measured the merge, as the end of `on ...`.

    >>> one = {"images": 20, "kind": "held_back", "of": "task"}
    >>> images_in_words({"measured_on": {"a": one, "b": one}})
    '40 images held back from the merge'
    >>> images_in_words({"measured_on": {"a": one, "b": one}, "inputs": "text"})
    '40 texts held back from the merge'
    >>> images_in_words({"measured_on": {"a": one, "b": one}, "inputs": "text", "counted": "word"})
    'the words of 40 texts held back from the merge'
    """
    of = "the words of " if evaluation.get("counted") == "word" else ""
    return of + own_word(evaluation, _images_in_words(evaluation))


def _images_in_words(evaluation: Values) -> str:
    found = evaluation.get("measured_on", {}).values()
    kinds = {own["kind"] for own in found}
    if kinds <= {"test"}:
        return "the test images"
    count = sum(own["images"] for own in found if own["of"] == "task")
    count += max((own["images"] for own in found if own["of"] != "task"), default=0)
    what = "auxiliary images" if {own["of"] for own in found} == {"auxiliary"} else "images"
    if kinds == {"held_back"}:
        return f"{count:,} {what} held back from the merge"
    if kinds == {"merge"}:
        return f"{count:,} {what} that the merge used (optimistic)"
    return f"{count:,} {what} (for some tasks not test images, see the notes)"


def sentences(evaluation: Values, model: str) -> list[str]:
    """The result of a run without labels; empty where nothing was compared."""
    found = [*_of_images(evaluation, model), *_of_tokens(evaluation), *of_probes(evaluation)]
    return [own_word(evaluation, sentence) for sentence in found]


def _of_tokens(evaluation: Values) -> list[str]:
    """A sentence on the patch tokens of sources without heads; empty without them."""
    found = evaluation.get("tokens", {}).values()
    if not found:
        return []
    over = " (mean over its sources)" if len(found) > 1 else ""
    share, alike = (sum(own[name] for own in found) / len(found) for name in ("explained", "cosine"))
    return [
        f"Its patch tokens, through a linear map, explain {100 * share:.1f} % of the variance of those of the "
        f"source and have a cosine of {alike:.3f} to them{over}."
    ]


def of_probes(evaluation: Values) -> list[str]:
    """A sentence on linear probes of sources without heads; empty without them."""
    rows = evaluation["rows"]
    found = rows.get("merged", {}).get("probes", {})
    if not found:
        return []
    over = " (mean over tasks)" if len(found) > 1 else ""
    mine, own = _mean([value["top1"] for value in found.values()]), probe_of_sources(evaluation)
    beside = f", on the sources' own features {100 * own:.1f} %" if own is not None else ""
    return [
        f"On its estimate of a source's features a linear probe tells the classes of {100 * (mine or 0):.1f} %"
        f"{over} of the images{beside}."
    ]


def probe_of_sources(evaluation: Values) -> float | None:
    """Top-1 of the probes on the sources' own features, mean over tasks; None where they were not run."""
    rows = evaluation["rows"]
    return _mean([rows.get(task, {}).get("probes", {}).get(task, {}).get("top1") for task in evaluation["tasks"]])


def _of_images(evaluation: Values, model: str) -> list[str]:
    same, other = agreement(evaluation), agreement(evaluation, "average")
    over = " (mean over tasks)" if len(evaluation["tasks"]) > 1 else ""
    where = images_in_words(evaluation)
    if same is not None:
        beside = f"; for the plain average it is {100 * other:.1f} %" if other is not None else ""
        return [
            f"{model} and its source predict the same label on {100 * same:.1f} %{over} of {where}{beside}.",
            "The images have no labels, so the accuracy is not known.",
        ]
    alike, other = nearest(evaluation), nearest(evaluation, "average")
    if alike is not None:
        images = [own["images"] for own in evaluation["rows"]["merged"]["neighbours"].values()]
        chance = sum(min(1.0, TEN / (count - 1)) for count in images) / len(images)
        beside = f"; the plain average does on {100 * other:.1f} %" if other is not None else ""
        image = counted_word(evaluation, "image")
        return [
            f"{model} finds the {image} that is nearest by a source's features among its {TEN} nearest on "
            f"{100 * alike:.1f} %{over} of {where}{beside}, by chance {100 * chance:.1f} %.",
            "There are no classifier heads, so there are no predictions to compare.",
        ]
    alike, other = cosine(evaluation), cosine(evaluation, "average")
    if alike is None:
        return []
    beside = f"; those of the plain average {other:.3f}" if other is not None else ""
    return [
        f"{model}'s features have a cosine of {alike:.3f}{over} to those of its sources on {where}{beside}.",
        "There are no classifier heads, so there are no predictions to compare.",
    ]


def values_by_row(evaluation: Values, rows: Mapping[str, Values]) -> tuple[str, dict[str, list[float | None]]]:
    """The name of the measure, and by row its values of the tasks and their mean; empty where nothing is known.

    The measure is the agreement; where no task has a classifier head that of nearest images, and the cosine where
    there are few images.
    """
    tasks: Sequence[str] = evaluation["tasks"]
    names = [name for name in rows if name not in tasks and name != "ensemble"]
    if any(_counts(rows[name]) for name in names):
        measure = "same label as the source, %"
        found = {name: [task_agreement(rows[name], task) for task in tasks] for name in names}
    elif any(rows[name].get("neighbours") for name in names):
        measure = counted_word(evaluation, f"nearest image of the source among {TEN}, %")
        found = {name: [task_nearest(rows[name], task) for task in tasks] for name in names}
    elif any(value is not None for name in names for value in rows[name]["feature_cosine"].values()):
        measure = "cosine to the source's features"
        found = {name: [rows[name]["feature_cosine"].get(task) for task in tasks] for name in names}
    else:
        return "", {}
    return measure, {name: [*values, _mean(values)] for name, values in found.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
