"""No guess changes a score without a note; a source that is implausibly bad is a warning above the scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.stated import Stated
from fsmerge_cli.evaluation.plausibility import CAUSES, implausible
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.runs.evaluate import Reevaluation, evaluate
from tests.evaluation.test_certificates import written
from tests.support.exact import write_classes, write_classifier
from tests.support.vits import vit_source

NUMBERS = [str(number) for number in range(12)]
TEXT = sorted(NUMBERS)
PADDED = [f"{number:02d}" for number in range(12)]
TWELVE = list("abcdefghijkl")
AS_TEXT = [int(name) for name in TEXT]
CPU = {"device": "cpu", "threads": 1}

ROWS_OF_NUMBERS = (
    "task 'm': its head has no class names, so the class named '11' is taken as row 11 of the head. If it was "
    "trained with the names sorted as text (0, 1, 10, 11, 2, ...), as torchvision's ImageFolder does, pass "
    "model.labels=data"
)
FOLDERS = (
    "the rows of its head are taken to be the classes of the data set in their order (0: '0', 1: '1', 2: '10', "
    "...). If it was trained with them sorted as numbers, pass model.labels=data_numeric"
)
FOLDERS_AS_NUMBERS = (
    "the rows of its head are taken to be the classes of the data set in their order (0: '0', 1: '1', 2: '2', "
    "...). If it was trained with them sorted as text, as torchvision's ImageFolder does, pass model.labels=data"
)
ORDER = "with its classes in another order it would be right on 100.0 %"


@dataclass(frozen=True)
class Order:
    """A head whose row i stands for class order[i], class folders, labels given; accuracy, notes and warning."""

    name: str
    order: Sequence[int]
    folders: Sequence[str]
    labels: Any
    top1: float
    notes: tuple[str, ...]
    warning: str | None = None
    stored: Sequence[str] | None = None
    count: int = 6


def spelled(*pairs: str) -> str:
    few = ", ".join(pairs[:5]) + (", ..." if len(pairs) > 5 else "")
    return f"task 'm': {len(pairs)} of its labels are matched to class names that are spelled differently: {few}"


def is_right(share: str, count: int, what: str) -> str:
    return f"'m' is right on {share} of {count} test images {what}"


SIXTH = is_right("16.7 %", 72, "(9.8 % to 26.9 %). W" + ORDER[1:])
ORDERS = [
    Order("numbers, rows by number", range(12), NUMBERS, None, 1.0, (ROWS_OF_NUMBERS,)),
    Order(
        "numbers, rows as ImageFolder",
        AS_TEXT,
        NUMBERS,
        None,
        1 / 6,
        (ROWS_OF_NUMBERS,),
        f"{SIXTH}: it was trained with its classes sorted as text (model.labels=data).",
    ),
    Order("numbers, labels=data, rows as ImageFolder", AS_TEXT, NUMBERS, "data", 1.0, (FOLDERS,)),
    Order(
        "numbers, labels=data, rows by number",
        range(12),
        NUMBERS,
        "data",
        1 / 6,
        (FOLDERS,),
        f"{SIXTH}: it was trained with its classes sorted as numbers (model.labels=data_numeric).",
    ),
    Order("numbers, labels=data_numeric", range(12), NUMBERS, "data_numeric", 1.0, (FOLDERS_AS_NUMBERS,)),
    Order(
        "zero-padded",
        range(12),
        PADDED,
        None,
        1.0,
        (spelled(*(f"'{a}' is '{b}'" for a, b in zip(NUMBERS[:10], PADDED))),),
    ),
    Order("ten numbers, whose orders agree", range(10), NUMBERS[:10], None, 1.0, ()),
    Order("mixed padding", [0, 1, 2], ["0", "01", "2"], None, 1.0, (spelled("'1' is '01'"),)),
    Order("names in another order", [2, 0, 1], ["x", "y", "z"], ["z", "x", "y"], 1.0, ()),
    Order(
        "names in another order than those of the file",
        [2, 0, 1],
        ["x", "y", "z"],
        ["x", "y", "z"],
        0.0,
        (
            "its files list the same names in another order than the given labels, which are used: row 0 is 'x', "
            "in its files 'z'",
        ),
        is_right("0.0 %", 18, "(0.0 % to 17.6 %), which is not above chance (33.3 %). W")
        + ORDER[1:]
        + ": its labels are shifted by one.",
        ["z", "x", "y"],
    ),
    Order(
        "more names in the file than rows",
        range(3),
        ["0", "1", "2"],
        None,
        1.0,
        ("its files list 4 class names, but its head has 3 rows, so they are not used",),
        None,
        ["w", "x", "y", "z"],
    ),
    Order(
        "case, underscores and spaces",
        range(3),
        ["Snow leopard", "red  panda", "OWL"],
        ["snow_leopard", "Red Panda", "owl"],
        1.0,
        (spelled("'owl' is 'OWL'", "'snow_leopard' is 'Snow leopard'", "'Red Panda' is 'red  panda'"),),
    ),
    Order(
        "labels shifted by one",
        [*range(1, 12), 0],
        NUMBERS,
        None,
        0.0,
        (ROWS_OF_NUMBERS,),
        is_right("0.0 %", 72, "(0.0 % to 5.1 %), which is not above chance (8.3 %). W")
        + ORDER[1:]
        + ": its labels are shifted by one.",
    ),
    Order(
        "two classes swapped",
        [1, 0, *range(2, 12)],
        TWELVE,
        TWELVE,
        5 / 6,
        (),
        is_right("83.3 %", 144, "(76.4 % to 88.5 %). W") + ORDER[1:] + ": check model.labels.",
        count=12,
    ),
]


def evaluated(case: Order, folder: Path) -> Reevaluation:
    write_classes(folder / "images/m", case.folders, count=case.count)
    checkpoint = write_classifier(folder / "m", [*case.order], labels=case.stored)
    reading = {"task": "m", "labels": case.labels}
    data = {"name": "folder", "root": str(folder / "images")}
    return evaluate(checkpoint, data=data, reading=reading, hardware=CPU)


@pytest.mark.full
@pytest.mark.parametrize("case", ORDERS, ids=lambda case: case.name)
def test_a_guessed_order_is_a_note_and_a_wrong_one_a_warning(case: Order, tmp_path: Path) -> None:
    found = evaluated(case, tmp_path)
    assert found.scores["merged"].tasks["m"].top1 == pytest.approx(case.top1)
    warnings = [] if case.warning is None else [f"warning: {case.warning}"]
    assert [*found.notes] == [*warnings, *case.notes]


def predictions(right: Sequence[int], of: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions of which right[k] of `of` images of class k are right, the others being of class 0 or 1."""
    label = torch.arange(len(right)).repeat_interleave(of)
    wrong = (label == 0).long()
    place = torch.arange(of).repeat(len(right))
    return torch.where(place < torch.tensor(right)[label], label, wrong), label


PLAUSIBLE: dict[str, tuple[Sequence[int], int, Stated | None, str | None]] = {
    "right": ([10, 10, 10], 10, None, None),
    "far from perfect": ([7, 6, 7], 10, None, None),
    "few images, all right": ([1, 1], 1, None, None),
    "one class": ([0], 10, None, None),
    "constant": (
        [10, 0, 0, 0, 0],
        10,
        None,
        "20.0 % of 50 test images (11.2 % to 33.0 %), which is not above chance (20.0 %)",
    ),
    "at chance": (
        [6, 4],
        10,
        None,
        "50.0 % of 20 test images (29.9 % to 70.1 %), which is not above chance (50.0 %)",
    ),
    "as stated": ([9, 9, 9], 10, Stated(0.92, "f.json"), None),
    "at chance, as stated": ([6, 4], 10, Stated(0.52, "f.json"), None),
    "below the stated, but within the interval": ([3, 3], 4, Stated(0.9, "f.json"), None),
    "far below the stated": (
        [70, 72, 68],
        100,
        Stated(0.95, "f.json"),
        "70.0 % of 300 test images (64.6 % to 74.9 %), far below the 95.0 % in f.json",
    ),
}


@pytest.mark.parametrize("name", PLAUSIBLE)
def test_an_accuracy_is_compared_with_chance_or_with_the_stated_one(name: str) -> None:
    right, of, stated, expected = PLAUSIBLE[name]
    labels = tuple("abcdefgh"[: len(right)])
    found = implausible("m", *predictions(right, of), labels, stated)
    assert found == (None if expected is None else f"warning: 'm' is right on {expected}. {CAUSES}")


@pytest.mark.parametrize(
    ("stated", "guessed"),
    [
        ({}, [("mean", 0), ("std", 1)]),
        ({"mean": [0.5]}, [("std", 1)]),
        ({"std": [0.5]}, [("mean", 0)]),
        ({"mean": [0.5], "std": [0.5]}, []),
    ],
)
@pytest.mark.parametrize("layout", ["pretrained_cfg", "the top of config.json"])
def test_a_mean_and_std_that_nothing_states_are_a_note(
    layout: str, stated: dict[str, Any], guessed: list[tuple[str, int]], tmp_path: Path
) -> None:
    source = vit_source("class token", 1)
    save_file({n: t.contiguous() for n, t in source.weights.items()}, tmp_path / "model.safetensors")
    config = {"architecture": source.arch.name, "model_args": dict(source.arch.args)}
    stated = {**stated, "crop_pct": 1.0}
    config |= {"pretrained_cfg": stated} if layout == "pretrained_cfg" else stated
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = load(SourceSpec("a", checkpoint=str(tmp_path)))
    scale = stated.get("std", [1.0])[0]
    weight = "patch_embed.proj.weight"
    assert torch.allclose(found.weights[weight] * scale, source.weights[weight])
    keys, values = " and ".join(k for k, _ in guessed), " and ".join(f"{k} {v}" for k, v in guessed)
    advice = " and ".join(f"models.sources.N.{k}=[...]" for k, _ in guessed)
    note = (
        f"'a': its files do not state {keys}, so {values} are assumed, for pixels in 0..1; if it was trained with "
        f"other values, pass {advice}"
    )
    assert found.notes == ((note,) if guessed else ())


@pytest.mark.parametrize(
    ("variant", "what"),
    [("class token", "position embeddings were resampled"), ("no positions", "input size was changed")],
)
def test_only_what_was_resampled_is_called_so(variant: str, what: str, tmp_path: Path) -> None:
    entry = written(tmp_path, vit_source(variant, 1))
    found = load(SourceSpec(entry["name"], checkpoint=entry["checkpoint"], input_size=16))
    assert found.notes == (
        f"'s1': its {what} from 8 x 8 to 16 x 16 pixels, which is not exact: its scores differ from those at its "
        "original size",
    )
