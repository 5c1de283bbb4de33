"""Plots of runs: content, label placement and error messages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.reporting import plots
from fsmerge_cli.reporting.plots import Point, front, plot_cost, plot_front

POINTS = [Point("seed=0", "kd", 20, 0.96, 0.95, 0.97), Point("average", "average", 0.5, 0.76, 0.74, 0.78)]


def test_the_front_has_the_entries_that_no_other_one_dominates() -> None:
    assert front([(0.5, 0.5)]) == [True]
    assert front([(0.5, 0.5), (0.5, 0.5)]) == [True, True]  # equal entries do not dominate each other
    assert front([(0.5, 0.5), (0.5, 0.6)]) == [False, True]
    assert front([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.0)]) == [True] * 4


@pytest.mark.full
@pytest.mark.parametrize("suffix", plots.SUFFIXES)
def test_a_plot_has_the_format_of_its_suffix_and_is_deterministic(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one", "two"):
        plot_cost(tmp_path / f"{name}{suffix}", POINTS, "top-1 accuracy", 0.98)
    one, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert one.startswith({".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one{suffix}", f"two{suffix}"]


@pytest.mark.full
def test_a_plot_has_labels_titles_and_the_bound(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_cost(tmp_path / "cost.svg", POINTS, "top-1 accuracy, mean over tasks", 0.98)
    text = (tmp_path / "cost.svg").read_text()
    for shown in ("seed=0", ">kd<", ">average<", "ensemble of the sources", "top-1 accuracy, mean over tasks, %"):
        assert shown in text
    plot_cost(tmp_path / "cost.svg", POINTS, "top-1 accuracy", None)
    assert "ensemble" not in (tmp_path / "cost.svg").read_text()
    runs = [("w=1", "kd", (0.9, 0.5, 0.3), True), ("w=2", "kd", (0.5, 0.9, 0.4), True)]
    plot_front(tmp_path / "front.svg", ["cats", "dogs", "birds"], runs)
    text = (tmp_path / "front.svg").read_text()
    for pair in (("cats", "dogs"), ("cats", "birds"), ("dogs", "birds")):
        assert all(f"{name}: top-1 accuracy, %" in text for name in pair)
    assert text.count(">w=1<") == 3


def test_labels_of_near_points_do_not_cover_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Text = pytest.importorskip("matplotlib.text").Text
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, *_: figures.append(figure))
    near = [Point(f"run={i}", "kd", 10 + i / 10, 0.9 + i / 1000) for i in range(6)]
    plot_cost(tmp_path / "x.png", [*near, *POINTS], "top-1 accuracy", None)
    texts = [t for t in figures[0].axes[0].texts if t.get_text().startswith("run=")]
    boxes = [Text.get_window_extent(t) for t in texts]  # that of an annotation includes its line
    assert len(boxes) == 6
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    many = [Point(f"run={i}", "kd", 10 + i, 0.9 - i / 1000) for i in range(40)]
    plot_cost(tmp_path / "x.png", many, "top-1 accuracy", None)
    assert [t.get_text() for t in figures[1].axes[0].texts] == ["run=0"]  # the most accurate and fastest run


@pytest.mark.full
@pytest.mark.parametrize("label", ["run={i}", "method.steps={i} method.lr=0.00{i} data.x=1", "/a/long/path/" * 9])
def test_labels_and_the_name_of_the_bound_stay_inside_the_plot(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    figures = []
    save = plots.save_figure
    monkeypatch.setattr(
        plots, "save_figure", lambda figure, *place: (figures.append(figure), save(figure, *place))
    )
    points = [
        Point(label.replace("{i}", str(i)), "kd", 10 * 1.3**i, 1 - 0.1 * abs(5 - i), 0.4, 1.0) for i in range(9)
    ]
    plot_cost(tmp_path / "x.png", points, "top-1 accuracy, " + "a task of a long name " * 6, 1.0)
    axis = figures[0].axes[0]
    frame = axis.get_window_extent()
    boxes = [plots._box_of(text) for text in axis.texts]
    assert len(boxes) == 10
    assert all(box.x0 > frame.x0 - 1 and box.x1 < frame.x1 + 1 for box in boxes)
    assert all(box.y0 > frame.y0 - 1 and box.y1 < frame.y1 + 1 for box in boxes)
    title = axis.yaxis.label.get_window_extent()
    assert title.y0 >= 0
    assert title.y1 <= figures[0].bbox.y1


def test_a_long_label_is_wrapped_and_does_not_shrink_the_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    figures = []
    save = plots.save_figure
    monkeypatch.setattr(
        plots, "save_figure", lambda figure, *place: (figures.append(figure), save(figure, *place))
    )
    plot_cost(tmp_path / "x.svg", [Point("method.steps=20 " * 20, "kd", 7, 0.9)], "top-1 accuracy", None)
    axis = figures[0].axes[0]
    assert axis.get_position().width > 0.7
    assert max(map(len, axis.texts[0].get_text().splitlines())) <= plots.WIDE


def test_without_matplotlib_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError) as error:
        plots.check_plot(tmp_path / "runs.svg")
    assert str(error.value) == "a plot needs matplotlib. Install it: pip install matplotlib"


def test_a_plot_of_another_kind_is_refused() -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError) as refused:
        plots.check_plot(Path("runs.gif"))
    assert str(refused.value) == "--plot runs.gif: give a file that ends in .svg, .png, .pdf."
