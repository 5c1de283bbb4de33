"""`fsmerge predict`: the labels of images, from a written model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fsmerge_cli.cli.json_output import write_json
from fsmerge_cli.cli.model_keys import HELP as MODEL_KEYS
from fsmerge_cli.cli.model_keys import model_inputs, model_keys
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.shown import shown

HELP = """usage: fsmerge predict RUN IMAGE [IMAGE ...] [--task NAME] [--top-k 5] [--csv FILE] [--json]
                       [--device NAME] [--overwrite] [--quiet] [model.KEY=VALUE ...]

Predicts the labels of images. RUN is a folder written by `fsmerge merge` or its merged/. IMAGE is
a file or a folder, which is searched for images (.bmp, .gif, .jpg, .png, .ppm, .tif, .webp). Of a
text encoder it is a text in quotes, or a .txt file of one text per line; a classifier of tokens
predicts a tag for every word.
Without --task the labels of all tasks compete, as in classifier/; the decision is the one that
was best on the images of the merge.

  --task NAME     only the labels of this task
  --top-k N       number of labels per image (default: 5), or of tags per word (default: 1)
  --csv FILE      write image, rank, task, label and probability as CSV
  --json          print the predictions as JSON
  --device NAME   cpu, cuda or mps (default: cuda where there is one)
  --overwrite     replace an existing FILE
  -q, --quiet     print only errors; --csv is still written
@MODEL_KEYS@
examples:
  fsmerge predict outputs/demo photo.jpg
  fsmerge predict outputs/demo holiday/ --top-k 1 --csv holiday.csv
  fsmerge predict outputs/demo photo.jpg --task low --json
  fsmerge predict outputs/text "the soup was not bad at all"
""".replace("@MODEL_KEYS@", MODEL_KEYS)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"fsmerge predict: {shown(message)}. See fsmerge predict --help.")


def run(arguments: list[str]) -> int:
    """Predict the labels of every image, print them and write the file."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("model", metavar="RUN")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--task")
    parser.add_argument("--top-k", type=int, metavar="N")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("-q", "--quiet", action="store_true")
    rest, reading = model_keys(arguments, "predict")
    options = parser.parse_intermixed_args(rest)
    from fsmerge_cli.common.output_files import check_files, write_files
    from fsmerge_cli.common.separation import Input
    from fsmerge_cli.reporting import tables, terminal
    from fsmerge_cli.runs.merged import load_merged
    from fsmerge_cli.runs.predict import chosen_device, image_files, passed_over, predictions, require_top_k
    from fsmerge_cli.runs.predict_texts import text_predictions, texts_in

    require_top_k(5 if options.top_k is None else options.top_k)
    model, device = load_merged(options.model, reading).with_heads(), chosen_device(options.device)
    items: Any
    files: Sequence[Path]
    kind = model.family.kind
    of_words = kind == "text" and model.arch.pooling == "tokens"
    if kind == "text":
        items, files = texts_in(options.images)
    else:
        items = files = image_files(options.images)
    inputs = [*model_inputs(options.model, reading), *(Input(f"an {kind}", str(file)) for file in files)]
    written = check_files({"--csv ": options.csv}, inputs, options.overwrite, "--overwrite")
    predicted: Callable[..., Any] = text_predictions if kind == "text" else predictions
    model = model.to(device)
    console = terminal.console(stderr=True, quiet=options.quiet)
    notes = () if kind == "text" else passed_over(options.images)
    terminal.print_notes(console, (*model.notes, *notes))
    with terminal.Reporter(console) as progress:
        found = predicted(model, items, options.task, options.top_k or (1 if of_words else 5), progress)
    grouped = [[*_rows(item, own, kind)] for item, own in zip(items, found)]
    rows = [row for own in grouped for row in own]
    writers: dict[str, Callable[[Path], None]] = {"--csv ": lambda path: tables.write_csv(path, rows)}
    write_files({key: (path, writers[key]) for key, path in written.items()}, options.overwrite)
    if options.json:
        write_json(rows)
    elif not options.quiet:
        _print(terminal.console(), grouped, kind)
    return 0


def _rows(item: Any, found: Any, kind: str) -> Iterator[dict[str, Any]]:
    """The rows of an image, of a text, or of the words of a text, which have a prediction each."""
    words = zip(found.words, found.predictions) if hasattr(found, "words") else [(None, found)]
    for word, prediction in words:
        if prediction is None:
            continue
        own = {kind: str(item)} if word is None else {kind: str(item), "word": word}
        for rank, best in enumerate(prediction.top, 1):
            yield {**own, "rank": rank, "task": best.task, "label": best.label, "probability": best.probability}
        for task, value in prediction.numbers.items():
            yield {**own, "rank": 1, "task": task, "label": None, "probability": None, "value": value}


def _print(console: Any, grouped: Sequence[Sequence[dict[str, Any]]], kind: str) -> None:
    """One paragraph per image or text: its path or itself, then its labels, best first, or its words' tags."""
    from rich.text import Text

    rows = [row for own in grouped for row in own]
    wide, words = (max((len(shown(row.get(key) or "")) for row in rows), default=0) for key in ("label", "word"))
    for place, row in ((place, row) for own in grouped for place, row in enumerate(own)):
        if not place:
            console.print(Text(shown(row[kind]), style="bold"), soft_wrap=True)
        word = f"{shown(row['word']):<{words}}  " if words else ""
        value = row.get("value")
        figure = f"{100 * row['probability']:5.1f} %" if value is None else f"{value:7.4g}"
        line = f"  {word}{figure}  {shown(row['label'] or ''):<{wide}}  {shown(row['task'])}"
        console.print(Text(line), soft_wrap=True)
