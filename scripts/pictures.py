"""Make the two pictures of the README: what a merge is, with its accuracy, and a screenshot of the report page.

    python -m scripts.pictures                  # docs/pictures/merge.svg, from the benchmark
    python -m scripts.pictures --report RUN     # also report.png there, of that run; needs Chromium

The bars are the four-alphabet rows of the benchmark with 50 images per task: mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.benchmark.intervals import relative

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs/pictures"
GROUP, IMAGES = "four_alphabets", "50"
COLOURS = ("#4c78a8", "#59a14f", "#e8a33d", "#b279a2")
MERGED, GREY = "#d1495b", "#9aa0a6"


def rows(method: str) -> list[dict[str, Any]]:
    """Rows of the benchmark, one per seed."""
    lines = (ROOT / "docs/results/quality.jsonl").read_text().splitlines()
    found = [row for row in map(json.loads, lines) if (row["group"], row["images"]) == (GROUP, IMAGES)]
    return [row for row in found if row["method"] == method]


def merge_picture(path: Path) -> None:
    """Four checkpoints and a few images become one model; bars in per cent of the sources' accuracy."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"font.size": 12, "svg.hashsalt": "fsmerge", "font.family": "DejaVu Sans"}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), width_ratios=(1.75, 1))
        _story(left)
        _bars(right)
        figure.tight_layout(w_pad=3)
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
        plt.close(figure)


def _story(axes: Any) -> None:
    axes.set(xlim=(0, 10), ylim=(0, 6))
    axes.axis("off")
    for i, colour in enumerate(COLOURS):
        _network(axes, 0.3, 4.75 - 1.15 * i, colour)
    axes.text(1.2, 5.85, "k checkpoints", ha="center", va="bottom")
    axes.text(1.2, 0.62, "different tasks,\ndifferent initialisations", ha="center", va="top", fontsize=10)
    for i in range(6):
        _photograph(axes, 3.75 + 0.95 * (i % 2), 4.35 - 1.0 * (i // 2))
    axes.text(4.65, 5.85, "unlabelled images", ha="center", va="bottom")
    axes.text(4.65, 0.62, "16 to 500 per task", ha="center", va="top", fontsize=10)
    axes.text(2.95, 3.1, "+", ha="center", va="center", fontsize=24)
    arrow = {"arrowstyle": "-|>", "linewidth": 2.5, "color": "0.25", "mutation_scale": 22}
    axes.annotate("", xy=(7.6, 3.1), xytext=(5.95, 3.1), arrowprops=arrow)
    axes.text(6.75, 3.35, "fsmerge", ha="center", va="bottom", family="monospace")
    _network(axes, 7.85, 2.65, MERGED)
    axes.text(8.75, 3.75, "one model", ha="center", va="bottom")
    axes.text(8.75, 2.45, "of the original size", ha="center", va="top", fontsize=10)


def _network(axes: Any, x: float, y: float, colour: str) -> None:
    """Three layers of a network, as wide blocks in a row."""
    from matplotlib.patches import FancyBboxPatch

    for i in range(3):
        box = FancyBboxPatch(
            (x + 0.62 * i, y), 0.48, 0.85, boxstyle="round,pad=0.02,rounding_size=0.1", color=colour, alpha=0.9
        )
        axes.add_patch(box)
    axes.plot([x - 0.08, x + 1.85], [y + 0.42, y + 0.42], color=colour, linewidth=2, zorder=0)


def _photograph(axes: Any, x: float, y: float) -> None:
    from matplotlib.patches import Circle, Polygon, Rectangle

    axes.add_patch(Rectangle((x, y), 0.8, 0.8, facecolor="#dbe9f6", edgecolor="0.55"))
    axes.add_patch(Polygon([(x, y), (x + 0.3, y + 0.5), (x + 0.5, y + 0.22), (x + 0.62, y + 0.38), (x + 0.8, y)]))
    axes.add_patch(Circle((x + 0.6, y + 0.62), 0.08, color="#f2c14e"))


def _bars(axes: Any) -> None:
    measured = {"average": rows("average"), "RegMean": rows("regmean"), "FS-Merge": rows("fs_merge")}
    heights = {name: relative(found) for name, found in measured.items()} | {"ensemble\n(4 x size)": 100.0}
    bars = axes.bar(list(heights), list(heights.values()), color=[GREY, GREY, MERGED, "#5f6368"], width=0.68)
    axes.bar_label(bars, fmt="%.0f", padding=2)
    axes.set(ylim=(0, 112), yticks=(0, 50, 100), ylabel="% of the sources' accuracy")
    axes.set_title("four ViTs, 50 images per task", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=10)


def screenshot(report: Path, path: Path) -> None:
    """The first screen of a report page, by a headless Chromium."""
    browser = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("the screenshot needs Chromium (Debian: apt install chromium) or Google Chrome")
    with tempfile.TemporaryDirectory() as profile:
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars"
        options = [f"--user-data-dir={profile}", "--window-size=1100,1350", f"--screenshot={path.resolve()}"]
        subprocess.run(
            [browser, *flags.split(), *options, report.resolve().as_uri()], check=True, capture_output=True
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, metavar="RUN", help="folder of a run, for the screenshot")
    options = parser.parse_args(argv)
    PICTURES.mkdir(parents=True, exist_ok=True)
    merge_picture(PICTURES / "merge.svg")
    if options.report:
        screenshot(options.report / "report.html", PICTURES / "report.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
