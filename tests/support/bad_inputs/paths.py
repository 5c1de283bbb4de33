"""Files and folders that are missing or cannot be read or written."""

from __future__ import annotations

from fsmerge_cli.common.own_files import write_list
from tests.support.bad_inputs.case import (
    AVERAGE,
    DENIED,
    FULL,
    READ_ONLY,
    Case,
    both,
    fails,
    folder_fails,
    locked,
    make,
    put,
    remove,
    two,
    written_fails,
)

NOTHING = (
    "source 'a': {} holds no weights (model.safetensors, pytorch_model.bin, or another file of weights), and no "
    "merged/ of a run. Pass another folder, or a file."
)

PATHS = [
    Case(
        "a checkpoint that does not exist",
        two("name:a,checkpoint:gone") + " method=average",
        2,
        "source 'a': gone does not exist. Check models.sources.N.checkpoint.",
        installed=True,
    ),
    Case(
        "a folder in place of a file",
        AVERAGE,
        2,
        (
            "source 'a': a: model.safetensors cannot be read: it is a folder, not a regular file. Pass "
            "another checkpoint."
        ),
        both(remove("a/model.safetensors"), make("a/model.safetensors")),
    ),
    Case(
        "a file in place of a folder",
        two("name:a,checkpoint:a/config.json") + " method=average",
        2,
        (
            "source 'a': a/config.json is a text (JSON), not the weights. Pass the file of the weights, or its "
            "folder."
        ),
    ),
    Case(
        "an empty folder",
        two("name:a,checkpoint:empty") + " method=average",
        2,
        NOTHING.format("empty"),
        make("empty"),
    ),
    Case(
        "a broken link",
        two("name:a,checkpoint:link.safetensors") + " method=average",
        2,
        "source 'a': link.safetensors does not exist. Check models.sources.N.checkpoint.",
        lambda f, p: (f / "link.safetensors").symlink_to("gone"),
    ),
    Case(
        "weights that may not be read",
        AVERAGE,
        2,
        "source 'a': a: model.safetensors cannot be read: {library}. Copy or download the file again.\n"
        "source 'b': b: model.safetensors cannot be read: {library}. Copy or download the file again.",
        fails("fsmerge_cli.checkpoints.files.safe_open", DENIED),
    ),
    Case(
        "a path that is too long",
        two(f"name:a,checkpoint:{'x' * 5000}") + " method=average",
        2,
        (
            "source 'a': the path "
            "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
            "xxxxxxxxx' cannot be used (File name too long). Pass another checkpoint."
        ),
    ),
    Case(
        "a home folder of an unknown user",
        two('name:a,checkpoint:"~nobody-of-that-name/m"') + " method=average",
        2,
        (
            "source 'a': the path '~nobody-of-that-name/m' cannot be used (Could not determine home "
            "directory). Pass another checkpoint."
        ),
    ),
    Case(
        "a path with a null byte",
        two('name:a,checkpoint:"a\x00b"') + " method=average",
        2,
        "source 'a': a\\x00b does not exist. Check models.sources.N.checkpoint.",
    ),
    Case(
        "an output that is a file",
        two() + " method=average output.dir=a/config.json",
        2,
        "{folder}/a/config.json is a file, not a folder. Choose another output.dir=...",
    ),
    Case(
        "an output below a file",
        two() + " method=average output.dir=a/config.json/out",
        2,
        (
            "cannot make the folder {folder}/a/config.json/out: a part of the path is a file. Choose another "
            "output.dir=..."
        ),
    ),
    Case(
        "an output that is a source",
        two() + " method=average output.dir=a",
        2,
        (
            "source 'a' lies in {folder}/a, which output.overwrite=true would replace. Choose another "
            "output.dir=..."
        ),
    ),
    Case(
        "an output that holds a source and would be replaced",
        two("name:a,checkpoint:out/a").replace("output.dir=out", "")
        + " method=average output.dir=out output.overwrite=true",
        2,
        (
            "source 'a' lies in {folder}/out, which output.overwrite=true would replace. Choose another "
            "output.dir=..."
        ),
        lambda f, p: (
            (f / "out").mkdir(),
            (f / "a").rename(f / "out/a"),
            (f / "out/evaluation.json").write_text("{}"),
        ),
    ),
    Case(
        "an output in the home folder of an unknown user",
        two() + " method=average 'output.dir=\"~nobody-of-that-name/m\"'",
        2,
        ("cannot write ~nobody-of-that-name/m: Could not determine home directory. Choose another output.dir=..."),
    ),
    Case(
        "an output with a name too long",
        two() + f" method=average output.dir={'x' * 300}",
        2,
        "cannot write {folder}/{x}: File name too long. Choose another output.dir=...",
    ),
    Case(
        "an output that may not be written",
        AVERAGE,
        2,
        "cannot write /locked: permission denied. Choose another output.dir=...",
        folder_fails(PermissionError(13, "Permission denied", "/locked")),
    ),
    Case(
        "a read-only disk",
        AVERAGE,
        2,
        "cannot write {folder}/out: Read-only file system. Choose another output.dir=...",
        folder_fails(READ_ONLY),
    ),
    Case(
        "a disk that is full at the weights",
        AVERAGE,
        2,
        "cannot write {folder}/out: No space left on device. Choose another output.dir=...",
        fails("fsmerge_cli.common.atomic.save_file", FULL),
        quick=True,
    ),
    Case(
        "a disk that is full at the card",
        AVERAGE,
        2,
        "cannot write {folder}/out: No space left on device. Choose another output.dir=...",
        written_fails("README.md", FULL),
    ),
    Case(
        "a disk that is full at the report",
        AVERAGE,
        2,
        "cannot write {folder}/out: No space left on device. Choose another output.dir=...",
        written_fails("report.html", FULL),
    ),
    Case(
        "a disk that is full at the end",
        AVERAGE,
        2,
        "cannot write {folder}/out: No space left on device. Choose another output.dir=...",
        written_fails("evaluation.json", FULL),
    ),
    Case(
        "two runs into one folder",
        AVERAGE,
        2,
        "another run is writing {folder}/out. Wait for it, or choose another output.dir=...",
        locked,
    ),
    Case(
        "a folder that is finished",
        AVERAGE,
        2,
        (
            "{folder}/out holds a finished run. Pass output.overwrite=true to replace it, or choose another "
            "output.dir=..."
        ),
        both(put("out/evaluation.json", "{}"), lambda folder, patch: write_list(folder / "out")),
    ),
    Case(
        "a folder with other files",
        AVERAGE,
        2,
        ("{folder}/out contains files but no .fsmerge.json, so it is not replaced. Choose another output.dir=..."),
        put("out/thesis.tex", ""),
    ),
    Case(
        "an unknown config folder",
        AVERAGE + " --config-dir gone",
        2,
        ("--config-dir: 'gone' is not a folder. Pass a folder with models/*.yaml, data/*.yaml, ..."),
    ),
]
