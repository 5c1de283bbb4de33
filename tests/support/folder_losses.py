"""Commands that would replace a folder with a file that is not ours, or with one that they read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.support.losses import AGAIN, MERGE, OUT, Loss, Prepare, both, link, nothing, put

NOT_OURS = (
    "{folder}/out also holds what this run would delete and fsmerge did not write: %s. Move it away, or choose "
    "another output.dir=..."
)
NO_LIST = "{folder}/out contains files but no .fsmerge.json, so it is not replaced. Choose another output.dir=..."
READ = "%s lies in {folder}/out, which output.overwrite=true would replace. Choose another output.dir=..."


def without_list(folder: Path) -> None:
    (folder / "out/.fsmerge.json").unlink()


def from_(*sources: str) -> tuple[str, ...]:
    return ("merge", f"+models.sources=[{','.join(sources)}]", "method=average", *AGAIN[3:])


def moved(name: str) -> Prepare:
    """Moves a folder of the working folder into the finished run."""
    return lambda folder: (folder / name).rename(folder / "out" / name)


def config_in_out(folder: Path) -> None:
    put("out/conf/models/pair.yaml", "sources: [{name: a, checkpoint: a}, {name: b, checkpoint: b}]\n")(folder)


LOSSES = [
    Loss("a file of the user", put("out/notes.txt"), AGAIN, NOT_OURS % "notes.txt"),
    Loss("a hidden file", put("out/.DS_Store"), AGAIN, NOT_OURS % ".DS_Store"),
    Loss("a file below", put("out/merged/logits.npy"), AGAIN, NOT_OURS % "merged/logits.npy"),
    Loss("a file beside the events", put("out/tensorboard/notes"), AGAIN, NOT_OURS % "tensorboard/notes"),
    Loss("an empty folder", lambda f: (f / "out/plots").mkdir(), AGAIN, NOT_OURS % "plots/"),
    Loss("a folder", put("out/plots/a.png"), AGAIN, NOT_OURS % "plots/, plots/a.png"),
    Loss("an edited log", put("out/run.log"), AGAIN, NOT_OURS % "run.log, which was changed"),
    Loss(
        "an event file of others",
        put("out/tensorboard/events.out.tfevents.mine"),
        AGAIN,
        NOT_OURS % "tensorboard/events.out.tfevents.mine",
    ),
    Loss("an edited card", put("out/merged/README.md"), AGAIN, NOT_OURS % "merged/README.md, which was changed"),
    Loss(
        "other weights",
        lambda f: shutil.copy(f / "a/model.safetensors", f / "out/merged/model.safetensors"),
        AGAIN,
        NOT_OURS % "merged/model.safetensors, which was changed",
    ),
    Loss("a link to a file", link("out/a", "a/config.json"), AGAIN, NOT_OURS % "a"),
    Loss("a link to a folder", link("out/images", "images"), AGAIN, NOT_OURS % "images"),
    Loss(
        "a file of ours that became a link",
        both(
            lambda f: (f / "out/report.html").rename(f / "report.html"),
            link("out/report.html", "report.html"),
        ),
        AGAIN,
        NOT_OURS % "report.html",
    ),
    Loss(
        "a folder of ours that became a link",
        both(lambda f: (f / "out/merged").rename(f / "kept"), link("out/merged", "kept")),
        AGAIN,
        NOT_OURS % "merged",
    ),
    Loss("a pipe", lambda f: os.mkfifo(f / "out/pipe"), AGAIN, NOT_OURS % "pipe"),
    Loss("a folder without a list", without_list, AGAIN, NO_LIST),
    Loss("a folder without a list, not to be replaced", without_list, OUT, NO_LIST),
    Loss("a damaged list", put("out/.fsmerge.json", '{"written_by": "fsmerge", "files"'), AGAIN, NO_LIST),
    Loss("an empty list", put("out/.fsmerge.json", ""), AGAIN, NO_LIST),
    Loss("the list of another tool", put("out/.fsmerge.json", '{"files": {}}'), AGAIN, NO_LIST),
    Loss(
        "a list that is a link",
        both(without_list, link("out/.fsmerge.json", "other/.fsmerge.json")),
        AGAIN,
        NO_LIST,
    ),
    Loss(
        "a list with another hash",
        lambda f: put("out/.fsmerge.json", (f / "out/.fsmerge.json").read_text().replace('html": "', 'html": "0'))(
            f
        ),
        AGAIN,
        NOT_OURS % "report.html, which was changed",
    ),
    Loss(
        "a folder of another tool",
        both(lambda f: shutil.rmtree(f / "out"), put("out/evaluation.json", "{}"), put("out/config.yaml")),
        AGAIN,
        NO_LIST,
    ),
    Loss(
        "a source in it",
        moved("a"),
        from_("{name:a,checkpoint:out/a}", "{name:b,checkpoint:b}"),
        READ % "source 'a'",
    ),
    Loss(
        "the folder is a source",
        nothing,
        from_("{name:a,checkpoint:out/merged,head:a}", "{name:b,checkpoint:b}"),
        READ % "source 'a'",
    ),
    Loss(
        "a source by way of a link",
        link("again", "out/merged"),
        from_("{name:a,checkpoint:again,head:a}", "{name:b,checkpoint:b}"),
        READ % "source 'a'",
    ),
    Loss(
        "a source with another spelling",
        nothing,
        from_("{name:a,checkpoint:images/../out/./merged,head:a}", "{name:b,checkpoint:b}"),
        READ % "source 'a'",
    ),
    Loss(
        "a source whose weights are a link into it",
        lambda f: (
            (f / "linked").mkdir(),
            *(link(f"linked/{p.name}", f"out/merged/{p.name}")(f) for p in (f / "out/merged").iterdir()),
        ),
        from_("{name:a,checkpoint:linked,head:a}", "{name:b,checkpoint:b}"),
        READ % "source 'a'",
    ),
    Loss(
        "a file of labels",
        put("out/labels.txt", "x\ny\nz\n"),
        from_("{name:a,checkpoint:a,labels:out/labels.txt}", "{name:b,checkpoint:b}"),
        READ % "the labels of source 'a'",
    ),
    Loss("images", moved("images"), (*AGAIN, "data=folder", "data.root=out/images"), READ % "data.root"),
    Loss(
        "auxiliary images",
        moved("images"),
        (
            *(*AGAIN, "data=folder", "data.root=images", "data.images_per_task=0"),
            *("++data.auxiliary.name=folder", "++data.auxiliary.root=out/images"),
        ),
        READ % "data.auxiliary.root",
    ),
    Loss(
        "a file of images",
        put("out/a.npz"),
        (*AGAIN, "data=tensors", "data.train=out/{task}.npz"),
        READ % "data.train",
    ),
    Loss(
        "the images of one task",
        moved("images"),
        (
            *(*AGAIN, "data=per_task", "data.tasks.a={name:folder,root:out/images}"),
            "data.tasks.b={name:folder,root:images}",
        ),
        READ % "data.tasks.a.root",
    ),
    Loss(
        "a folder of torchvision",
        put("out/MNIST/raw/t10k"),
        (*AGAIN, "data=torchvision", "data.dataset=MNIST", "data.root=out"),
        READ % "data.root",
    ),
    Loss(
        "the folder of configurations",
        config_in_out,
        ("merge", "--config-dir", "out/conf", "+models=pair", *AGAIN[2:]),
        READ % "--config-dir",
    ),
    Loss(
        "a search path of Hydra",
        config_in_out,
        ("merge", "+models=pair", *AGAIN[2:], "hydra.searchpath=[file://{folder}/out/conf]"),
        READ % "--config-dir",
    ),
    Loss(
        "a run into a source",
        nothing,
        (*MERGE, "output.dir=a/merged"),
        "output.dir={folder}/a/merged lies in a (source 'a'), which this run reads and never changes. "
        "Choose another output.dir=...",
    ),
    Loss(
        "a run into the images",
        nothing,
        (*MERGE, "data=folder", "data.root=images", "output.dir=images/a/run"),
        "output.dir={folder}/images/a/run lies in images/a (data.root), which this run reads and never changes. "
        "Choose another output.dir=...",
    ),
    Loss(
        "a run into the configurations",
        put("conf/models/pair.yaml", "sources: [{name: a, checkpoint: a}, {name: b, checkpoint: b}]\n"),
        ("merge", "--config-dir", "conf", "+models=pair", "method=average", "output.dir=conf/models/out"),
        "output.dir={folder}/conf/models/out lies in {folder}/conf/models (--config-dir), which this run reads "
        "and never changes. Choose another output.dir=...",
    ),
    Loss(
        "the current folder",
        nothing,
        (*MERGE, "output.dir=.", "output.overwrite=true"),
        "output.dir={folder} is the current folder or holds it, and a run replaces its folder as a whole. Give a "
        "folder inside it, for example output.dir=outputs/run",
    ),
    Loss(
        "the root of the system",
        nothing,
        (*MERGE, "output.dir=/", "output.overwrite=true"),
        "output.dir=/ is the current folder or holds it, and a run replaces its folder as a whole. Give a folder "
        "inside it, for example output.dir=outputs/run",
    ),
    Loss(
        "a mount point",
        nothing,
        (*MERGE, "output.dir=/proc", "output.overwrite=true"),
        "output.dir=/proc is a mount point, which cannot be replaced as a whole. Give a folder inside it: "
        "output.dir=/proc/run",
    ),
    Loss(
        "a source",
        nothing,
        (*MERGE, "output.dir=a", "output.overwrite=true"),
        "source 'a' lies in {folder}/a, which output.overwrite=true would replace. Choose another output.dir=...",
    ),
    Loss(
        "the folder of the sources",
        lambda f: (put("src/x")(f), (f / "a").rename(f / "src/a")),
        (*MERGE[:1], MERGE[1].replace("checkpoint:a", "checkpoint:src/a"), MERGE[2], "output.dir=src"),
        "source 'a' lies in {folder}/src, which output.overwrite=true would replace. Choose another "
        "output.dir=...",
    ),
    Loss(
        "a write-protected folder",
        lambda f: (f / "out/merged").chmod(0o555),
        AGAIN,
        "{folder}/out/merged is write-protected, so it is not replaced. Change its permissions, or choose another "
        "output.dir=...",
    ),
]
