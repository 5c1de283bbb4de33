"""`fsmerge finetune`: trains a source model from a timm model or a text encoder, and a data set."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass

from fsmerge_cli.cli.composing import composed, config_dir_of
from fsmerge_cli.cli.json_output import write_json
from fsmerge_cli.common.errors import ConfigError, unknown
from fsmerge_cli.common.options import FORBID, Flag, Text, build
from fsmerge_cli.common.separation import expanded
from fsmerge_cli.reporting.trackers import TRACKERS

if TYPE_CHECKING:
    from fsmerge_cli.common.wording import Word
    from fsmerge_cli.runs.finetune_request import FinetuneRequest

HELP = """usage: fsmerge finetune model.arch=NAME data=NAME [KEY=VALUE ...] [--json] [--quiet]

Trains a source model for a later merge: first its classifier head on the features of the frozen
backbone, then all weights. Writes a folder that `fsmerge merge` reads as a source
(models.sources.0.checkpoint=FOLDER) and that timm loads without fsmerge: config.json,
model.safetensors, heads.safetensors with the label names, evaluation.json, config.yaml, run.log.
A text encoder is written with its tokenizer, as AutoModelForSequenceClassification or, of tags of
words, AutoModelForTokenClassification loads it.

keys:
  model.arch=NAME              a timm name; a name with a tag loads pretrained weights from the hub:
                               vit_base_patch16_224.augreg_in21k
  model.checkpoint=PATH        start from a local checkpoint instead (docs/sources.md)
  model.start=random           start from random weights
  model.task=NAME              name of the source; with data=folder also of its image folder
  model.labels=[cat,dog]       default: the classes of the data set; or a file, or a label set name
  model.mean=[...], model.std=[...], model.prefix=student, model.ema=true, model.input_size=224,
                               model.base=MODEL (of a LoRA adapter):
                               how the initial weights are read (docs/sources.md)
  model.tokenizer=FOLDER       of a text encoder with random weights
  model.predicts=class         of a text encoder also tags (of words) or number (a regression);
                               default: what the labels are
  data=NAME                    digits, folder, glyphs, hf, per_task, tensors, torchvision, and of
                               texts hf_text, sentences, text; uses all training images (texts), or
                               data.images_per_task=N
  data.augment=paper           none, shift, crop_flip, paper, strong: sampled anew at every step;
                               for texts none, strong
  data.validation=0.1          share of the training images for early stopping and for the choice of
                               the best step
  training.head_steps=300      steps that train only the head; training.head_lr=0.01
  training.steps=2000          steps that train all weights; training.lr=0.0001
  training.batch_size=64       also weight_decay, label_smoothing, clip, patience
  training.mixup=0.2           also cutmix=1.0, randaugment=9, stochastic_depth=0.1, patch_drop=0.5,
                               ema=0.999, plain_share=0.1: regularisation, all off by default
  training.anneal=cosine       also warmup=0.05; training.optimizer=muon with matrix_lr=0.006
                               (docs/configuration.md lists all keys of training)
  hardware=NAME                auto (default: a GPU with bf16 if available), cpu, gpu
  seed=0                       random seed
  output.dir=FOLDER            default: outputs/finetune-TASK-HASH
  output.overwrite=true        replace a finished run
  output.tensorboard=true      also write TensorBoard event files (needs
                               pip install tensorboard); likewise
                               output.wandb=true and output.mlflow=true
  resume=true                  continue an interrupted run in output.dir
  checkpoint.every=60s         how often the training state is saved (60s, 5m, or a number of steps)

  --json               print the evaluation as JSON
  -q, --quiet          print only errors
  --config-dir FOLDER  your own folder with data/*.yaml, ... (trusted like code)

examples:
  fsmerge finetune model.arch=vit_base_patch16_224.augreg_in21k model.task=pets \\
      data=folder data.root=images/ data.augment=paper output.dir=outputs/pets
  fsmerge finetune model.checkpoint=mine.safetensors model.arch=vit_small_patch16_224 \\
      model.task=cars data=folder data.root=images/ output.dir=outputs/cars
  fsmerge finetune model.arch=vit_small_patch16_224 model.start=random model.task=shapes \\
      data=folder data.root=images/ data.augment=crop_flip training.head_steps=0 \\
      training.optimizer=muon training.anneal=cosine training.randaugment=9 training.ema=0.999
  fsmerge finetune model.checkpoint=minilm/ model.task=reviews data=text data.root=texts/
  fsmerge finetune model.checkpoint=minilm/ model.task=people data=text data.train=people.conll
  fsmerge merge \\
      '+models.sources=[{name:pets,checkpoint:outputs/pets},{name:cars,checkpoint:outputs/cars}]' \\
      data=folder data.root=images/ method=fs_merge method.maps=low_rank
"""


@dataclass(frozen=True, config=FORBID)
class Output:
    """dir: output folder (null: outputs/finetune-TASK-HASH). overwrite: replace it. The others: see `merge`."""

    dir: Text | None = None
    overwrite: Flag = False
    tensorboard: Flag = False
    wandb: Flag = False
    mlflow: Flag = False

    @property
    def trackers(self) -> list[str]:
        """The trackers that were chosen."""
        return [name for name in TRACKERS if getattr(self, name)]


FLAGS = ("--json", "--quiet", "-q")
TOP = ("model", "data", "training", "hardware", "seed", "resume", "checkpoint", "output")


def run(arguments: list[str]) -> int:
    """Compose the configuration, train and print the result."""
    if {"-m", "--multirun"} & {*arguments}:
        raise ConfigError("fsmerge finetune trains one source. Leave out --multirun and give every key one value.")
    rest, search = config_dir_of([argument for argument in arguments if argument not in FLAGS])
    unexpected = [argument for argument in rest if argument.startswith("-") or "=" not in argument]
    if unexpected:
        kind = "option" if unexpected[0].startswith("-") else "argument"
        known = (*FLAGS, "--config-dir") if kind == "option" else ("KEY=VALUE",)
        raise ConfigError(f"fsmerge finetune: {unknown(kind, unexpected[0], known)}")
    keys = composed("finetune", rest, search)
    if wrong := [unknown("key", key, TOP) for key in keys if key not in TOP]:
        raise ConfigError("\n".join(wrong))
    quiet = bool({"-q", "--quiet"} & {*arguments})
    command = shlex.join(["fsmerge", "finetune", *arguments])
    evaluation, folder, already_done = _finetune(keys, command, search, quiet)
    if "--json" in arguments:
        write_json(evaluation)
    elif not quiet:
        _show(evaluation, folder, already_done)
    return 0


def _finetune(
    keys: Mapping[str, Any], command: str, search: str | None, quiet: bool
) -> tuple[dict[str, Any], Path, bool]:
    """The evaluation of a run, its folder, and whether the run was already finished."""
    from fsmerge_cli.cli.keys import Checkpoint
    from fsmerge_cli.cli.run_dirs import report_stop
    from fsmerge_cli.common.atomic import tidy
    from fsmerge_cli.common.leftovers import unfinished
    from fsmerge_cli.common.progress import Event
    from fsmerge_cli.reporting import terminal
    from fsmerge_cli.reporting.logs import RunLog
    from fsmerge_cli.runs.finetune import finetune
    from fsmerge_cli.runs.finetune_request import request
    from fsmerge_cli.runs.inputs import config_inputs

    output = build(Output, keys["output"], "output")
    every = build(Checkpoint, keys["checkpoint"], "checkpoint").every
    groups = {name: keys[name] for name in ("model", "data", "training", "hardware", "seed", "resume")}
    setup = request(**groups, overwrite=output.overwrite, every=every)
    folder = expanded(output.dir or _folder(setup.options(), setup.spec.name))
    tidy(folder)
    continued = output.overwrite and unfinished(folder)  # a run that was to replace the finished one
    if setup.run.resume and not continued and (found := _finished(folder, setup)) is not None:
        return found, folder, True
    run_log = RunLog(folder, command, resume=setup.run.resume, trackers=output.trackers)
    console = terminal.console(stderr=True, quiet=quiet)
    with report_stop(folder, setup.run.resume), run_log as log, terminal.Reporter(console) as reporter:

        def both(event: Event) -> None:
            log(event)
            reporter(event)

        done = finetune(
            **groups,
            output=folder,
            overwrite=output.overwrite,
            checkpoint_every=every,
            progress=both,
            command=command,
            more_inputs=config_inputs([search] if search else []),
        )
        evaluation = done.evaluation()
        log.finish("\n".join(_lines(evaluation, folder)), evaluation)
    return evaluation, folder, False


def _folder(options: Mapping[str, Any], task: str) -> str:
    """outputs/finetune-TASK-HASH, with a hash of all options."""
    import hashlib

    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=list).encode()).hexdigest()[:8]
    return f"outputs/finetune-{re.sub(r'[^A-Za-z0-9_.-]+', '_', task)}-{digest}"


def _finished(folder: Path, setup: FinetuneRequest) -> dict[str, Any] | None:
    """The evaluation of the finished run in `folder`; ConfigError where its options or its checkpoint differ."""
    from fsmerge_cli.cli.run_dirs import AGAIN, check_sources, require_unchanged
    from fsmerge_cli.common.foreign_files import read_yaml
    from fsmerge_cli.reporting.schema import read_evaluation
    from fsmerge_cli.training.snapshots import check_same

    if not (folder / "evaluation.json").is_file():
        return None
    check_same(f"the finished run in {folder}", read_yaml(folder / "config.yaml", AGAIN), setup.options())
    found = read_evaluation(folder / "evaluation.json", AGAIN)
    require_unchanged(folder)
    check_sources(folder, [setup.spec], found)
    return found


def _show(evaluation: Mapping[str, Any], folder: Path, already_done: bool) -> None:
    from rich.text import Text as Line

    from fsmerge_cli.reporting import tables, terminal

    console = terminal.console()
    for name in evaluation["rows"]:
        for table in tables.task_tables(evaluation, name):
            console.print(terminal.worded_table(table, _counted(evaluation)))
    for line in _lines(evaluation, folder):
        console.print(Line(line), soft_wrap=True)
    if already_done:
        console.print(Line("already finished: nothing was run"))


def _counted(evaluation: Mapping[str, Any]) -> Word:
    """What was counted in the evaluation: images, texts, or the words of texts."""
    found: Word = evaluation.get("counted") or evaluation.get("inputs", "image")
    return found


def _lines(evaluation: Mapping[str, Any], folder: Path) -> Iterator[str]:
    from fsmerge_cli.common.wording import worded
    from fsmerge_cli.reporting import tables
    from fsmerge_cli.reporting.measures import correlation

    for name, found in evaluation["rows"].items():
        if (own := found["tasks"].get(name)) is not None:
            low, high = map(tables.per_cent, own["interval"])
            measure = f"top-1 accuracy {tables.per_cent(own['top1'])} % (95 % interval {low} to {high})"
        else:
            own = found["numbers"][name]
            pearson, spearman = (correlation(own[measure]) for measure in ("pearson", "spearman"))
            measure = f"Pearson's correlation {pearson}, Spearman's {spearman}"
        yield worded(f"{name}: {measure} on {own['count']} test images", _counted(evaluation))
    yield from (f"note: {note}" for note in evaluation["notes"])
    yield worded(tables.summary_line(evaluation), evaluation.get("inputs", "image"))
    yield f"source: {folder}"
