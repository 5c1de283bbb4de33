"""What is no file of its kind, blocks or never ends, every place where a command reads or writes, its message."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path


def cleared(path: str) -> Path:
    """A path at which nothing is, in a folder that exists."""
    place = Path(path)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def pipe(path: str) -> None:
    os.mkfifo(cleared(path))


def zeros(path: str) -> None:
    cleared(path).symlink_to("/dev/zero")


def noise(path: str) -> None:
    cleared(path).symlink_to("/dev/random")


def a_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(cleared(path)))


def endless(path: str) -> None:
    """A file of 1 TB that takes no room."""
    with cleared(path).open("wb") as file:
        file.truncate(2**40)


def a_folder(path: str) -> None:
    cleared(path).mkdir()


KINDS: dict[str, tuple[Callable[[str], None], str]] = {
    "pipe": (pipe, "it is a named pipe, not a regular file"),
    "zeros": (zeros, "it is a device, not a regular file"),
    "noise": (noise, "it is a device, not a regular file"),
    "socket": (a_socket, "it is a socket, not a regular file"),
    "folder": (a_folder, "it is a folder, not a regular file"),
    "endless": (endless, "it is larger than 64 MB, the limit for such a file"),
}
CHECK = "check 'models.sources=[{name: a, checkpoint: a}, {name: b, checkpoint: b}]' method=average"
KD = "merge" + CHECK.removeprefix("check").replace("average", "kd") + " hardware.threads=1 output.dir=out"
IMAGES = "data=folder data.root=images data.images_per_task=3"
ZERO = (
    "no file of weights: its first 1024 bytes are zero, as in an unfinished download. Download or copy it again."
)
LABELS = "Pass another file, or a list: models.sources.N.labels=[...]"
NO_RUN = (
    "is no finished run (a folder with evaluation.json). Give folders that `fsmerge merge` or `fsmerge finetune` "
    "wrote, a glob of them, or the folder of a sweep."
)
NO_LIST = "contains files but no .fsmerge.json, so it is not replaced. Choose another output.dir=..."
ANOTHER = "Pass another data.train=PATH, data.test=PATH."
NOT_OURS = "and a run into {place}/out would replace it. Move it away, or choose another output.dir=..."
TEXT = "pipe zeros noise socket folder endless"
WEIGHTS = "pipe noise socket"

FILES: list[tuple[str, str, str, str, str]] = [
    # kinds of file, where it is, the command, the message ({}: what the file is)
    (
        "a checkpoint",
        WEIGHTS,
        "x",
        CHECK.replace(": a}", ": x}"),
        "source 'a': x cannot be read: {}. Pass another checkpoint.",
    ),
    (
        "the weights in a folder",
        WEIGHTS,
        "a/model.safetensors",
        CHECK,
        "source 'a': a: model.safetensors cannot be read: {}. Pass another checkpoint.",
    ),
    ("an endless checkpoint", "endless", "x.pt", CHECK.replace(": a}", ": x.pt}"), f"source 'a': x.pt is {ZERO}"),
    (
        "heads.safetensors",
        WEIGHTS,
        "a/heads.safetensors",
        CHECK,
        "source 'a': a: heads.safetensors cannot be read: {}. Pass another checkpoint.",
    ),
    (
        "config.json",
        TEXT,
        "a/config.json",
        CHECK,
        "source 'a': a: config.json cannot be read: {}. Repair it, or copy it again.",
    ),
    (
        "open_clip_config.json",
        "pipe",
        "a/open_clip_config.json",
        CHECK,
        "source 'a': a: open_clip_config.json cannot be read: {}. Repair it, or copy it again.",
    ),
    (
        "an index of shards",
        "zeros endless",
        "a/model.safetensors.index.json",
        CHECK.replace(": a}", ": a/model.safetensors.index.json}"),
        "source 'a': a/model.safetensors.index.json cannot be read: {}. Download it again.",
    ),
    (
        "labels.txt",
        "pipe noise folder endless",
        "labels.txt",
        f"{CHECK} models.sources.0.labels=labels.txt",
        f"source 'a': the labels in labels.txt cannot be read ({{}}). {LABELS}",
    ),
    (
        "labels.json",
        "pipe zeros endless",
        "labels.json",
        f"{CHECK} models.sources.0.labels=labels.json",
        f"source 'a': the labels in labels.json cannot be read ({{}}). {LABELS}",
    ),
    (
        "a preset",
        "pipe zeros socket folder",
        "conf/models/b.yaml",
        "check +models=a --config-dir conf",
        "{place}/conf/models/b.yaml cannot be read: {}. Repair the file, or pass another one.",
    ),
    (
        "the folder of presets",
        "pipe zeros",
        "conf",
        "check +models=a --config-dir conf",
        "--config-dir: 'conf' is not a folder. Pass a folder with models/*.yaml, data/*.yaml, ...",
    ),
    ("evaluation.json of compare", "pipe zeros folder", "run/evaluation.json", "compare run run", f"run {NO_RUN}"),
    (
        "an endless evaluation.json",
        "endless",
        "run/evaluation.json",
        "compare run run",
        "run/evaluation.json cannot be read: {}. Run the command again, or leave out this folder.",
    ),
    ("a folder of compare", "pipe zeros", "run", "compare run", f"run {NO_RUN}"),
    (
        "a record of a sweep",
        "pipe endless",
        "sweep/jobs/00000.json",
        "compare sweep",
        "sweep/jobs/00000.json cannot be read: {}. Run the command again, or leave out this folder.",
    ),
    (
        "config.yaml of evaluate",
        "pipe zeros",
        "run/config.yaml",
        "evaluate run data=from_run",
        "run/config.yaml cannot be read: {}. Move run/merged into another folder, and pass data=...",
    ),
    (
        "config.json of evaluate",
        "pipe endless",
        "run/merged/config.json",
        f"evaluate run {IMAGES}",
        "run/merged: config.json cannot be read: {}. Repair it, or copy it again.",
    ),
    (
        "a file of evaluate",
        "pipe zeros",
        "x",
        f"evaluate x {IMAGES}",
        "x cannot be read: {}. Pass another checkpoint.",
    ),
    (
        "a checkpoint of finetune",
        "pipe",
        "a/model.safetensors",
        f"finetune model.checkpoint=a model.task=a model.labels=[x,y,z] {IMAGES} output.dir=out",
        "source 'a': a: model.safetensors cannot be read: {}. Pass another checkpoint.",
    ),
    *(
        (
            f"arrays in .{s}",
            "pipe zeros",
            f"x.{s}",
            f"{KD} data=tensors data.train=x.{s}",
            f"x.{s} cannot be read ({{}}). {ANOTHER}",
        )
        for s in ("npz", "pt", "safetensors")
    ),
    (
        "endless arrays",
        "endless",
        "x.npy",
        f"{KD} data=tensors data.train=x.npy",
        f"x.npy cannot be read (it is damaged, or holds more than arrays and plain values). {ANOTHER}",
    ),
    (
        "a folder of images",
        "pipe zeros",
        "images",
        f"{KD} {IMAGES}",
        "data.root=images: no such folder.",
    ),
    (
        "an endless image",
        "endless",
        "images/a/1.png",
        f"{KD} {IMAGES}",
        "the image images/a/1.png cannot be read (cannot identify image file 'images/a/1.png'). Repair or "
        "remove it.",
    ),
    (
        "auxiliary images",
        "pipe zeros",
        "more",
        f"{KD} {IMAGES} '+data.auxiliary={{name: folder, root: more}}'",
        "data.auxiliary: data.root=more: no such folder.",
    ),
    (
        "the output folder",
        "pipe socket",
        "out",
        f"{KD} {IMAGES}",
        "{place}/out is a file, not a folder. Choose another output.dir=...",
    ),
    (
        "the list of an output folder",
        "pipe zeros",
        "out/.fsmerge.json",
        f"{KD} {IMAGES} output.overwrite=true",
        f"{{place}}/out {NO_LIST}",
    ),
    (
        "a lock",
        "pipe",
        ".out.lock",
        f"{KD} {IMAGES}",
        f"{{place}}/.out.lock was not written by fsmerge (it is no lock), {NOT_OURS}",
    ),
    (
        "a saved state",
        "pipe",
        ".out.state",
        f"{KD} {IMAGES} resume=true",
        f"{{place}}/.out.state was not written by fsmerge (it is no folder), {NOT_OURS}",
    ),
    (
        "a file of evaluate that is written",
        "pipe",
        "o.json",
        f"evaluate run {IMAGES} output.file=o.json output.overwrite=true",
        "output.file={place}/o.json is no regular file. Choose another file.",
    ),
    (
        "a cache",
        "pipe",
        "cache",
        "merge +models=digits_mlp_pair method=average data=none output.dir=out",
        "cannot write the cache of embedded sources, cache/sources. Choose another folder: FSMERGE_CACHE=FOLDER",
    ),
]
