"""The commands and the Python code of README and docs run.

Every shell (```sh) and Python (```python) block is run here, page by page and in order, in a folder with two small
ViTs (`pets/`, `cars/`) and their images (`images/`), unless a marker `<!-- ... -->` precedes it:

    <!-- needs: hub -->      weights from timm's hub        } not run;
    <!-- needs: gpu -->      one or more CUDA devices       } their keys are checked
    <!-- needs: cluster -->  Slurm                          }
    <!-- needs: files -->    files of the reader            }
    <!-- long -->            takes more than some minutes   }
    <!-- slow -->            run only by `make test-slow`, with all training steps
    <!-- sketch -->          incomplete Python; only parsed

For `make TARGET` the target has to exist; its fsmerge commands are run.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import runpy
import shlex
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from fsmerge_cli.architectures import SPECS
from fsmerge_cli.cli import COMMANDS, main
from fsmerge_cli.cli.composing import composed, config_dir_of
from fsmerge_cli.cli.merge_command import composed as merge_overrides
from fsmerge_cli.cli.short_form import SUFFIXES, expanded
from fsmerge_cli.common.options import build
from fsmerge_cli.data import DATASETS
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.runs.curve_result import CurveOptions
from fsmerge_cli.runs.finetune import finetune
from fsmerge_cli.runs.request import chosen_data, chosen_hardware, request
from scripts import examples_page
from tests.support.doc_blocks import (
    BLOCKS,
    LANGUAGES,
    MARKERS,
    PAGES,
    UNRUN,
    Block,
    commands,
    is_file,
    name_of,
    recipe,
    write,
)
from tests.support.paths import REPOSITORY


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_a_known_language_marker_and_commands(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS[page]:
        if is_file(block):
            write(block)
        where = f"{page.name}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: language {block.language!r}"
        assert block.marker in MARKERS, f"{where}: marker {block.marker!r}"
        if block.language not in ("sh", "python"):
            assert not re.search(r"^(fsmerge|python|make|pip) ", block.text, re.M), (
                f"{where}: commands outside of a shell block"
            )
        if block.language == "sh":
            for words in commands(block.text):
                check_known(words, where)
                if block.marker in UNRUN and words[0] in ("fsmerge", "torchrun"):
                    check_keys(words)
        elif block.language == "python":
            ast.parse(block.text)


def check_known(words: list[str], where: str) -> None:
    """Assert that a reader can run a command."""
    if words[0] == "fsmerge":
        assert words[1] in COMMANDS or words[1].startswith("--"), f"{where}: {words}"
    elif words[0] == "make":
        assert recipe(words[1]) is not None, f"{where}: no target {words[1]}"
    elif words[0] in ("pip", "uv"):
        project = (REPOSITORY / "pyproject.toml").read_text()
        for extra in re.findall(r"\[([\w,]+)\]", words[-1]):
            assert all(f"\n{name} = [" in project for name in extra.split(",")), f"{where}: {extra}"
    elif words[0] == "python":
        module = words[2].replace(".", "/") if words[1] == "-m" else ""
        found = [words[1], f"{module}.py", f"{module}/__main__.py"]
        assert any((REPOSITORY / path).is_file() for path in found), f"{where}: {words[:3]}"
    else:
        assert words[0] in ("torchrun", "source", "git"), f"{where}: {words[0]}"


def check_keys(words: list[str]) -> None:
    """Compose the configuration of a command without running it; raises for wrong keys and values."""
    if words[0] == "torchrun":
        words = ["fsmerge", *words[words.index("fsmerge_cli") + 1 :]]
    words, search = config_dir_of(words)
    command, given = words[1], words[2:]
    if command in ("merge", "check", "init", "curve"):
        if any(word.endswith(".yaml") for word in given):
            return  # states the keys
        given = expanded_as_if_there(given, command)
    arguments = [word for word in given if not word.startswith("--")]
    overrides = [first(word) for word in arguments if "=" in word and not word.startswith("hydra.")]
    if command in ("merge", "check", "init"):
        keys = composed("merge", merge_overrides(overrides), search)
        groups = (keys["method"], keys.get("data"), keys["hardware"], keys["seed"])
        request(keys["models"]["sources"], *groups, overwrite=False, images_needed=command != "check")
    elif command == "finetune":
        keys = composed("finetune", overrides, None)
        from fsmerge_cli.runs.finetune_request import FinetuneStart
        from fsmerge_cli.training.finetuning_options import TrainingOptions

        build(FinetuneStart, keys["model"], "model")
        build(TrainingOptions, keys["training"], "training")
        chosen_data(keys["data"])
        chosen_hardware(keys["hardware"])
    elif command == "curve":
        given = [word for word in overrides if not word.startswith(("models", "+models"))]
        build(CurveOptions, composed("curve", merge_overrides(overrides), search)["curve"], "curve")
        assert len(given) < len(overrides)  # with models
    elif command == "evaluate":
        composed("evaluate", [override for override in overrides if override != "data=from_run"], None)


def expanded_as_if_there(given: list[str], command: str) -> list[str]:
    """The arguments without the short form, in a folder in which the files of weights exist."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for path in (Path(word.rpartition("=")[2]) for word in given if not word.startswith("data.")):
                if path.suffix in SUFFIXES and not path.is_absolute():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
            for word in given:
                if word.endswith("/"):
                    Path(word.rpartition("=")[2]).mkdir(parents=True, exist_ok=True)
            return expanded(given, command)
        finally:
            os.chdir(here)


def first(word: str) -> str:
    """An override; of a sweep, its first value."""
    parsed = OverridesParser.create().parse_override(word.lstrip("+"))
    if not parsed.is_sweep_override():
        return word
    if "(" in word:
        return word.replace("interval(", "").split(",")[0]
    return f"{word.partition('=')[0]}={next(iter(parsed.sweep_string_iterator()))}"


FEW_STEPS = 40
"""Maximum number of training steps, except in `make test-slow`."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two small ViTs and their images."""
    colours = {
        "pets": {"cat": (200, 60, 60), "dog": (60, 200, 60)},
        "cars": {"bus": (60, 60, 200), "van": (90, 90, 90)},
    }
    for task, classes in colours.items():
        for split, count in (("train", 12), ("test", 4)):
            for name, colour in classes.items():
                (tmp_path / "images" / task / split / name).mkdir(parents=True)
                for i in range(count):
                    shade = tuple(min(255, c + 3 * i) for c in colour)
                    Image.new("RGB", (32, 32), shade).save(tmp_path / f"images/{task}/{split}/{name}/{i}.png")
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    for seed, task in enumerate(colours):
        finetune(
            {
                "arch": {"family": "vit", "name": "vit_small_patch16_224", "args": args},
                "start": "random",
                "task": task,
            },
            data={"name": "folder", "root": str(tmp_path / "images")},
            training={"head_steps": 5, "steps": 20},
            hardware="cpu",
            seed=seed,
            output=tmp_path / task,
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(block: Block, names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """Run a block; YAML blocks are written to their paths."""
    if block.language == "yaml":
        write(block)
        return
    if block.language == "python":
        code = compile(block.text, f"{block.page.name}:{block.line}", "exec", dont_inherit=True)
        exec(code, names)
        return
    for words in commands(block.text):
        lines = [words]
        if words[0] == "make":
            lines = [["fsmerge", *line.split()[1:]] for line in recipe(words[1]) or [] if "/fsmerge " in line]
        for own in lines:
            if own[0] == "fsmerge":
                assert main(own[1:]) == 0, f"{block.page.name}:{block.line}: {shlex.join(own)}"
            elif own[0] == "python":
                patch.setattr("sys.argv", own[1:])
                runpy.run_path(str(REPOSITORY / own[1]), run_name="__main__")


def runnable(page: Path, slow: bool) -> list[Block]:
    """The blocks of a page to run; slow ones together with all blocks before them, which they may depend on."""
    found = [b for b in BLOCKS[page] if b.language in ("sh", "python") and b.marker in ("", "slow")]
    if found:
        files = [block for block in BLOCKS[page] if is_file(block)]
        found = [*files, *found]
    if not slow:
        return [block for block in found if block.marker == ""]
    last = max((i for i, block in enumerate(found) if block.marker == "slow"), default=-1)
    return found[: last + 1]


def run_all(page: Path, slow: bool, patch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "__main__", "images": torch.rand(2, 1, 8, 8)}
    with mock.patch.dict(SPECS), mock.patch.dict(METHODS), mock.patch.dict(DATASETS):  # a page may add to them
        for block in runnable(page, slow):
            run(block, names, patch)


@pytest.mark.full
@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p, False)], ids=name_of)
def test_the_blocks_of_a_page_run(page: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = Trained.total_steps
    few = property(lambda method: min(FEW_STEPS, total.fget(method)))  # type: ignore[attr-defined]
    monkeypatch.setattr(Trained, "total_steps", few)
    run_all(page, False, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p, True)], ids=name_of)
def test_the_slow_blocks_of_a_page_run(page: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all(page, True, monkeypatch)


def test_links_between_pages_have_targets() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_pages_are_reached_from_the_readme() -> None:
    """All but the front page of the site, which the README is to readers of the repository."""
    text = (REPOSITORY / "README.md").read_text()
    pages = {name_of(page) for page in PAGES if page.parent.name == "docs"} - {"docs/index.md"}
    assert {page for page in pages if f"]({page})" not in text} == set()


def test_the_examples_page_is_current() -> None:
    assert examples_page.PAGE.read_text() == examples_page.page(), "stale: make reference"


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_script", REPOSITORY / "scripts/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_reference_is_current() -> None:
    script = reference()
    assert script.PAGE.read_text() == script.page(), "outdated: run make reference"


def test_the_configuration_reference_explains_every_key() -> None:
    rows = [line for line in reference().page().splitlines() if re.match(r"\| `[a-z_.N]+` \|", line)]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []
