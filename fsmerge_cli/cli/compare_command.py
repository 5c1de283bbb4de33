"""`fsmerge compare`: finished runs in one table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fsmerge_cli.cli.json_output import write_json
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.shown import shown

HELP = """usage: fsmerge compare RUN [RUN ...] [--sort METRIC] [--group-by KEY] [--csv FILE] [--json]
                       [--plot FILE] [--overwrite] [--quiet]

Prints one table of finished runs, best first. RUN is a folder written by `fsmerge merge` or
`fsmerge finetune`, a glob of them ("outputs/*"), or the folder of a sweep. Differences are
relative to the first run with the same tasks. They are paired over the test images, with 95 %
confidence intervals. A narrow terminal shows the most important columns; a pipe or a file, --csv
and --json get all of them.

  --sort METRIC   of the whole run: mean (default; top-1 accuracy averaged over the tasks),
                  relative (accuracy and correlation relative to the sources'; the default where no
                  run has an accuracy), joint (accuracy when the task is not given),
                  joint_calibrated, joint_logits, seconds, steps, trained_parameters,
                  peak_memory_gb, images, images_per_second;
                  of one task: top1.TASK, top5.TASK, loss.TASK, calibration_error.TASK,
                  pearson.TASK and spearman.TASK (of a task that predicts a number),
                  relative.TASK, agreement.TASK, neighbours.TASK and probe.TASK (tasks without a
                  head), feature_error.TASK, feature_cosine.TASK, feature_cka.TASK
  --group-by KEY  one row for all runs that differ only in KEY (seed, method.lr, ...): the mean and
                  the standard deviation of every metric. The difference is that of runs with the
                  same value of KEY
  --csv FILE      write all metrics as CSV
  --json          print all metrics as JSON
  --plot FILE     plot accuracy (mean, or the accuracy given by --sort) against seconds, with 95 %
                  intervals (with --group-by: standard deviations), as .svg, .png or .pdf
                  (needs pip install matplotlib)
  --overwrite     replace existing files of --csv and --plot
  -q, --quiet     print only errors; --csv and --plot are still written

examples:
  fsmerge compare outputs/*
  fsmerge compare outputs/sweeps/2026-01-31_12-00-00 --sort joint
  fsmerge compare outputs/by-kd outputs/by-fs-merge --csv runs.csv
  fsmerge compare outputs/* --plot runs.svg
  fsmerge compare outputs/sweeps/2026-01-31_12-00-00 --group-by seed
"""

ACCURACIES = ("mean", "joint", "joint_calibrated", "joint_logits")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"fsmerge compare: {shown(message)}. See fsmerge compare --help.")


def run(arguments: list[str]) -> int:
    """Read the runs and print their table."""
    parser = _Parser(add_help=False)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--sort", metavar="METRIC")
    parser.add_argument("--group-by", metavar="KEY")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("-q", "--quiet", action="store_true")
    options = parser.parse_args(arguments)
    from fsmerge_cli.common.output_files import check_files, write_files
    from fsmerge_cli.reporting import comparison_table, plots, tables, terminal
    from fsmerge_cli.runs import compare, grouping

    if options.plot:
        plots.check_plot(options.plot)
    runs = compare.read_runs(options.runs)
    sort = options.sort or compare.usual_metric(runs)
    runs = compare.ordered(runs, sort)
    files = check_files(
        {"--csv ": options.csv, "--plot ": options.plot},
        compare.inputs(options.runs, runs),
        options.overwrite,
        "--overwrite",
    )
    groups = grouping.grouped(runs, options.group_by, sort) if options.group_by else []
    rows = grouping.group_rows(groups, options.group_by) if groups else _rows(runs)
    writers: dict[str, Callable[[Path], None]] = {
        "--csv ": lambda path: tables.write_csv(path, rows),
        "--plot ": lambda path: _plot(path, options.plot.suffix, runs, sort, groups),
    }
    write_files({key: (path, writers[key]) for key, path in files.items()}, options.overwrite)
    terminal.print_notes(terminal.console(stderr=True, quiet=options.quiet), compare.notes(runs))
    if options.json:
        write_json(rows)
    elif not options.quiet:
        console = terminal.console()
        console.print(comparison_table.compare_table(rows, sort, console.width, compare.counted(runs)))
    return 0


def _plot(path: Path, kind: str, runs: Sequence[Any], sort: str, groups: Sequence[Any]) -> None:
    from fsmerge_cli.reporting import plots
    from fsmerge_cli.runs import compare, grouping

    metric = sort if sort in ACCURACIES or sort.startswith("top1.") else "mean"
    points = compare.points(runs, compare.labels(runs), metric)
    title = compare.title(metric)
    if groups:
        points, title = grouping.group_points(groups, metric), f"{title} ± standard deviation"
    if not points:
        raise ConfigError(f"--plot: none of these runs has an accuracy ({metric}), so there is nothing to plot.")
    plots.plot_cost(path, points, title, compare.bound(runs, metric), kind)


def _rows(runs: Sequence[Any]) -> list[dict[str, Any]]:
    from fsmerge_cli.runs import compare

    rows = []
    for entry, label, gap in zip(runs, compare.labels(runs), compare.paired(runs)):
        paired = {
            "difference": gap and gap.value,
            "difference_low": gap and gap.low,
            "difference_high": gap and gap.high,
        }
        rows.append({"run": label, "folder": str(entry.folder), **entry.metrics, **paired})
    return rows
