"""README and docs say nothing that does not run.

Every block of commands (```sh) and of Python (```python) is run here, page by page and in order, in a folder with
two small ViTs (`pets/`, `cars/`) and their images (`images/`), unless a line `<!-- ... -->` before it says why
not:

    <!-- needs: hub -->      weights from timm's hub        } their keys are checked,
    <!-- needs: gpu -->      one CUDA device or several     } nothing is run
    <!-- needs: cluster -->  Slurm                          }
    <!-- needs: files -->    files that only readers have   }
    <!-- long -->            more than some minutes         }
    <!-- slow -->            run by `make test-slow` alone, where trainings have all their steps
    <!-- sketch -->          Python of which a part is left out; it is parsed

Of `make TARGET` the target has to exist; its fsmerge commands are run where the block is.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
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
from fsmerge_cli.cli.composing import composed, own_folder
from fsmerge_cli.cli.merge_command import composed as as_hydra_takes_it
from fsmerge_cli.common.options import build
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.runs.finetune import finetune
from fsmerge_cli.runs.request import chosen_data, chosen_hardware, request
from tests.support.paths import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
UNRUN = {"needs: hub", "needs: gpu", "needs: cluster", "needs: files", "long"}
MARKERS = {*UNRUN, "slow", "sketch", ""}
LANGUAGES = {"sh", "python", "yaml", "json", "text", ""}


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, line, language, marker and text."""

    page: Path
    line: int
    language: str
    marker: str
    text: str


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    lines = page.read_text().splitlines()
    found, start, language, marker = [], None, "", ""
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start, language = number, line[3:].strip()
            before = next((text for text in reversed(lines[:number]) if text.strip()), "")
            mark = re.fullmatch(r"<!-- (.*) -->", before.strip())
            marker = mark[1] if mark and not mark[1].endswith(("begin", "end")) else ""
        else:
            found.append(Block(page, start + 1, language, marker, "\n".join(lines[start + 1 : number])))
            start = None
    assert start is None, f"{page.name}: a block that does not end"
    return found


def is_file(block: Block) -> bool:
    """Whether it is YAML that begins with the path it belongs to."""
    return block.language == "yaml" and re.match(r"# [\w/.-]+\.yaml$", block.text.splitlines()[0]) is not None


def write(block: Block) -> None:
    """Write such a block to its path."""
    path = Path(block.text.splitlines()[0].removeprefix("# "))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text + "\n")


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of a block of shell; NAME=... and $NAME are understood."""
    names: dict[str, str] = {}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if given := re.fullmatch(r'(\w+)="(.*)"', line):
            names[given[1]] = given[2]
            continue
        for name, value in names.items():
            line = line.replace(f"${name}", value)
        if words := shlex.split(line, comments=True):
            yield words


BLOCKS = {page: blocks(page) for page in PAGES}


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS[page]:
        if is_file(block):
            write(block)
        where = f"{page.name}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: language {block.language!r}"
        assert block.marker in MARKERS, f"{where}: marker {block.marker!r}"
        if block.language not in ("sh", "python"):
            assert not re.search(r"^(fsmerge|python|make|pip) ", block.text, re.M), (
                f"{where}: commands that nobody runs"
            )
        if block.language == "sh":
            for words in commands(block.text):
                check_known(words, where)
                if block.marker in UNRUN and words[0] in ("fsmerge", "torchrun"):
                    check_keys(words)
        elif block.language == "python":
            ast.parse(block.text)


def check_known(words: list[str], where: str) -> None:
    """Whether a command is one that the reader has."""
    if words[0] == "fsmerge":
        assert words[1] in COMMANDS or words[1].startswith("--"), f"{where}: {words}"
    elif words[0] == "make":
        assert recipe(words[1]) is not None, f"{where}: no target {words[1]}"
    elif words[0] == "pip":
        project = (REPOSITORY / "pyproject.toml").read_text()
        for extra in re.findall(r"\[([\w,]+)\]", words[-1]):
            assert all(f"\n{name} = [" in project for name in extra.split(",")), f"{where}: {extra}"
    elif words[0] == "python":
        module = words[2].replace(".", "/") if words[1] == "-m" else ""
        found = [words[1], f"{module}.py", f"{module}/__main__.py"]
        assert any((REPOSITORY / path).is_file() for path in found), f"{where}: {words[:3]}"
    else:
        assert words[0] in ("torchrun", "source", "git"), f"{where}: {words[0]}"


def recipe(target: str) -> list[str] | None:
    """The lines of a target of the Makefile."""
    text = (REPOSITORY / "Makefile").read_text()
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)*)", text, re.M)
    return None if found is None else [line.strip() for line in found[1].splitlines()]


def check_keys(words: list[str]) -> None:
    """Compose a command that is not run; raises where a key or a value is wrong."""
    if words[0] == "torchrun":
        words = ["fsmerge", *words[words.index("fsmerge_cli") + 1 :]]
    words, search = own_folder(words)
    command, arguments = words[1], [word for word in words[2:] if not word.startswith("--")]
    overrides = [first(word) for word in arguments if "=" in word and not word.startswith("hydra.")]
    if command in ("merge", "check"):
        keys = composed("merge", as_hydra_takes_it(overrides), search)
        groups = (keys["method"], keys.get("data"), keys["hardware"], keys["seed"])
        request(keys["models"]["sources"], *groups, overwrite=False)
    elif command == "finetune":
        keys = composed("finetune", overrides, None)
        from fsmerge_cli.runs.finetune_request import Start
        from fsmerge_cli.training.classifier import Tuning

        build(Start, keys["model"], "model")
        build(Tuning, keys["training"], "training")
        chosen_data(keys["data"])
        chosen_hardware(keys["hardware"])
    elif command == "evaluate":
        composed("evaluate", overrides, None)


def first(word: str) -> str:
    """An override, the first value of a sweep."""
    parsed = OverridesParser.create().parse_override(word.lstrip("+"))
    if not parsed.is_sweep_override():
        return word
    if "(" in word:
        return word.replace("interval(", "").split(",")[0]
    return f"{word.partition('=')[0]}={next(iter(parsed.sweep_string_iterator()))}"


FEW_STEPS = 40
"""Most steps that a training has here, but in `make test-slow`: what is run is the same, only shorter."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small ViTs with their images, as a reader has them."""
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
    """Run a block as a reader would; YAML that begins with a path is a file."""
    if block.language == "yaml":
        write(block)
        return
    if block.language == "python":
        exec(compile(block.text, f"{block.page.name}:{block.line}", "exec"), names)
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
    """Blocks of a page to be run; with the slow ones come all before them, which they may build on."""
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
    with mock.patch.dict(SPECS), mock.patch.dict(METHODS):  # a page may register its own
        for block in runnable(page, slow):
            run(block, names, patch)


@pytest.mark.full
@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p, False)], ids=name_of)
def test_what_a_page_says_runs(page: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Trained.total_steps
    few = property(lambda method: min(FEW_STEPS, whole.fget(method)))  # type: ignore[attr-defined]
    monkeypatch.setattr(Trained, "total_steps", few)
    run_all(page, False, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p, True)], ids=name_of)
def test_what_a_page_says_runs_in_the_end(page: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all(page, True, monkeypatch)


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_pages_are_reached_from_the_readme() -> None:
    text = (REPOSITORY / "README.md").read_text()
    pages = {name_of(page) for page in PAGES if page.parent.name == "docs"}
    assert {page for page in pages if f"]({page})" not in text} == set()


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_script", REPOSITORY / "scripts/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_reference_is_current() -> None:
    script = reference()
    assert script.PAGE.read_text() == script.page(), "stale: make reference"


def test_the_configuration_reference_explains_every_key() -> None:
    rows = [line for line in reference().page().splitlines() if re.match(r"\| `[a-z_.N]+` \|", line)]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []
