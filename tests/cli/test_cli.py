from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli import __version__, check
from fsmerge_cli.architectures import SPECS
from fsmerge_cli.cli import COMMANDS, HELP, main
from fsmerge_cli.cli.launch import TOP
from fsmerge_cli.cli.list_command import HELP as LIST_HELP
from fsmerge_cli.cli.merge_command import HELP as MERGE_HELP
from fsmerge_cli.common import presets
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.data import DATASETS
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.paths import REPOSITORY
from tests.support.sources import mlp_source
from tests.test_docs import check_keys

PAIR = "+models=digits_mlp_pair"
BUG = "fsmerge: this is a bug in fsmerge; please report it with the lines above\n"


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # nets this small only lose time on more
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fsmerge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("FSMERGE_DEBUG", "HYDRA_FULL_ERROR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def run(*argv: str) -> Ran:
        capsys.readouterr()
        code = main(list(argv))
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def _trained(_one_thread: None) -> None:
    check("digits_mlp_pair")


@pytest.fixture
def refused(fsmerge: Command, tmp_path: Path) -> Callable[..., str]:
    def run(*argv: str, code: int = 2) -> str:
        ran = fsmerge(*argv)
        assert (ran.code, ran.out) == (code, "")
        assert list(tmp_path.iterdir()) == []
        return ran.err

    return run


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def keys_of(cls: Any) -> str:
    return listed(field.name for field in fields(cls))


def no_models() -> str:
    lines = [f"  +models={name:<20}{presets.summary('models', name)}" for name in presets.names("models")]
    return "\n".join(["no models given. Say which with +models=NAME; there are:", "models", *lines])


# What needs no run


def test_help_names_every_command(fsmerge: Command) -> None:
    for argument in ("--help", "-h", "help"):
        assert fsmerge(argument) == (0, HELP, "")
    assert all(f"\n  {name:<10}{line}\n" in HELP for name, line in COMMANDS.items())


def test_every_command_has_its_own_help(fsmerge: Command) -> None:
    assert fsmerge("merge", "--help") == (0, MERGE_HELP, "")
    assert fsmerge("merge", PAIR, "method.steps=abc", "-h") == (0, MERGE_HELP, "")
    assert fsmerge("list", "--help") == (0, LIST_HELP, "")


def test_merge_help_names_every_option_of_every_group() -> None:
    groups = MERGE_HELP.partition("groups:")[2].partition("keys:")[0].replace(",\n" + 23 * " ", ", ")
    named = {line.split("=")[0].strip(): line for line in groups.splitlines() if "=" in line}
    for group in ("data", "method", "hardware", "launcher", "sweep"):
        shown = re.sub(r" \([^)]*\)", "", named[group].split("NAME")[1]).replace(" ", "").split(",")
        assert sorted(shown) == presets.names(group)


def test_version(fsmerge: Command) -> None:
    assert fsmerge("--version") == (0, f"fsmerge {__version__}\n", "")
    assert fsmerge("-V") == (0, f"fsmerge {__version__}\n", "")


def test_no_arguments_show_the_help_and_fail(fsmerge: Command) -> None:
    assert fsmerge() == (2, HELP, "")


def test_list_shows_every_option_of_every_group_with_its_line(fsmerge: Command) -> None:
    code, out, err = fsmerge("list")
    assert (code, err) == (0, "")
    expected = []
    for group in ("models", "data", "method", "hardware", "launcher", "sweep"):
        plus = "+" if group == "models" else ""
        files = sorted((REPOSITORY / "configs" / group).glob("*.yaml"))
        assert files
        expected += [group]
        expected += [f"  {plus}{group}={file.stem:<20}{presets.summary(group, file.stem)}" for file in files]
        expected += [""]
    assert out.splitlines() == expected[:-1]


def test_list_of_one_group_shows_that_group_alone(fsmerge: Command) -> None:
    code, out, err = fsmerge("list", "method")
    assert (code, err) == (0, "")
    assert out.startswith("method\n  method=")
    assert {line.split()[0] for line in out.splitlines()[1:]} == {
        f"method={name}" for name in presets.names("method")
    }


def test_the_door_works_again_and_again_in_one_process(fsmerge: Command) -> None:
    assert [fsmerge("list", "data").code for _ in range(3)] == [0, 0, 0]


def test_help_list_and_version_import_neither_torch_nor_hydra(tmp_path: Path) -> None:
    code = """
import sys
from fsmerge_cli.cli import main
for arguments in (["--help"], ["list"], ["--version"], ["merge", "--help"], ["merge"]):
    assert main(arguments) == (2 if arguments == ["merge"] else 0), arguments
sys.exit(str(sorted({"torch", "hydra", "omegaconf", "rich"} & set(sys.modules))))
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stderr == f"fsmerge: error: {no_models()}\n[]\n"


@pytest.mark.full
@pytest.mark.usefixtures("_trained")
def test_the_python_api_imports_no_hydra(tmp_path: Path) -> None:
    code = """
import sys
from fsmerge_cli import merge
result = merge("digits_mlp_pair", method="average")
assert result.scores["merged"].tasks.keys() == {"low", "high"}
sys.exit(str(sorted({"hydra", "omegaconf"} & set(sys.modules))))
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stderr == "[]\n"


# What is refused


REFUSED: list[tuple[str, str]] = [
    ("xyz", f"unknown command 'xyz'. Available: {listed(COMMANDS)}. See fsmerge --help."),
    (
        "mrege --help",
        f"unknown command 'mrege'. Did you mean 'merge'? Available: {listed(COMMANDS)}. See fsmerge --help.",
    ),
    (
        "list methods",
        "unknown group 'methods'. Did you mean 'method'? Available: data, hardware, launcher, method, models, "
        "sweep.",
    ),
    ("merge", no_models()),
    ("merge method=kd --multirun", no_models()),
    (
        f"merge {PAIR} launcher=joblib",
        "launcher=joblib is for several merges at once. Add --multirun, or leave it out.",
    ),
    (
        "merge +models=digits_mlp_pai",
        "unknown models 'digits_mlp_pai'. Did you mean 'digits_mlp_pair'? "
        f"Available: {listed(presets.names('models'))}.",
    ),
    ("merge models=null", f"unknown models 'null'. Available: {listed(presets.names('models'))}."),
    (
        f"merge {PAIR} method=fs_merg",
        f"unknown method 'fs_merg'. Did you mean 'fs_merge'? Available: {listed(presets.names('method'))}.",
    ),
    (f"merge {PAIR} method=null", f"unknown method 'null'. Available: {listed(presets.names('method'))}."),
    (
        f"merge {PAIR} data=digit",
        f"unknown data 'digit'. Did you mean 'digits'? Available: {listed(DATASETS)}.",
    ),
    (
        f"merge {PAIR} hardware=gp",
        f"unknown hardware 'gp'. Did you mean 'gpu'? Available: {listed(presets.names('hardware'))}.",
    ),
    (f"merge {PAIR} sead=1", f"unknown key 'sead'. Did you mean 'seed'? Available: {listed(TOP)}."),
    (f"merge {PAIR} +sead=1", f"unknown key 'sead'. Did you mean 'seed'? Available: {listed(TOP)}."),
    (
        f"merge {PAIR} method=kd method.stps=5",
        f"unknown key in method 'stps'. Did you mean 'steps'? Available: {keys_of(METHODS['kd'])}.",
    ),
    (f"merge {PAIR} method.mix=0.5", "method.mix is now called method.mixup. Write method.mixup=..."),
    (
        f"merge {PAIR} +data.unrelated.name=glyphs +method.readout=linear method=kd",
        "data.unrelated is now called data.auxiliary. Write data.auxiliary=...",
    ),
    (
        f"merge {PAIR} method=average +method.stps=5 +method.withd=3",
        f"unknown key in method 'stps'. Available: {keys_of(METHODS['average'])}.\n"
        f"unknown key in method 'withd'. Did you mean 'width'? Available: {keys_of(METHODS['average'])}.",
    ),
    (
        f"merge {PAIR} sead=1 method.stps=5 data.augmet=shift hardware.devic=cpu output.dri=x",
        f"unknown key 'sead'. Did you mean 'seed'? Available: {listed(TOP)}.\n"
        f"unknown key in method 'stps'. Did you mean 'steps'? Available: {keys_of(METHODS['fs_merge'])}.\n"
        f"unknown key in data 'augmet'. Did you mean 'augment'? Available: {keys_of(DATASETS['digits'])}.\n"
        f"unknown key in hardware 'devic'. Did you mean 'device'? Available: {keys_of(Hardware)}.\n"
        "unknown key in output 'dri'. Did you mean 'dir'? Available: dir, dtype, overwrite, tensorboard.",
    ),
    (
        f"merge {PAIR} models.sources.0.chekpoint=x",
        "unknown key in models.sources.0 'chekpoint'. Did you mean 'checkpoint'? "
        f"Available: {keys_of(SourceSpec)}.",
    ),
    (f"merge {PAIR} models.sources.5.head=x", "unknown key in models.sources '5'. Available: 0, 1."),
    (f"merge {PAIR} method.steps=abc", "method.steps: should be a valid integer, got 'abc'."),
    (f"merge {PAIR} method.steps=2.5", "method.steps: should be a valid integer, got 2.5."),
    (f"merge {PAIR} method.steps=0", "method.steps: should be greater than or equal to 1, got 0."),
    (
        f"merge {PAIR} method.steps=0 method.lr=-1 method.clip=inf method.targets=ow",
        "method.steps: should be greater than or equal to 1, got 0.\n"
        "method.lr: should be greater than 0, got -1.\n"
        "method.clip: should be a finite number, got inf.\n"
        "method.targets: should be 'own' or 'all', got 'ow'.",
    ),
    (f"merge {PAIR} seed=-1", "seed: should be greater than or equal to 0, got -1."),
    (f"merge {PAIR} seed=one", "seed: should be a valid integer, got 'one'."),
    (f"merge {PAIR} output.overwrite=maybe", "output.overwrite: should be a valid boolean, got 'maybe'."),
    (f"merge {PAIR} output.dir=3", "output.dir: should be a valid string, got 3."),
    (f"merge {PAIR} output=3", "output: should be keys and values, got 3."),
    (f"merge {PAIR} models.sources=3", "models.sources: should be a list of sources, got 3."),
    (
        f"merge {PAIR} data.images_per_task=-5",
        "data.images_per_task: should be greater than or equal to 0 or 'all', got -5.",
    ),
    (
        f"merge {PAIR} hardware.device=tpu",
        "hardware.device='tpu': give auto, cpu, cuda or cuda:N.",
    ),
    (f"merge {PAIR} ~seed", "seed is missing."),
    (f"merge {PAIR} ~method", "method is missing."),
    (f"merge {PAIR} ~models.sources", "models.sources is missing."),
    *(
        (
            f"merge {PAIR} '{override}'",
            f"cannot read '{override}'. Write KEY=VALUE; quote a value with spaces or symbols: 'KEY=\"a, b\"'.",
        )
        for override in ("method.lr=[1", "method.lr", "output.dir=a b}")
    ),
    (
        f"merge {PAIR} models.sources.0.checkpoint=nowhere/model.safetensors",
        "source 'low': nowhere/model.safetensors does not exist. Check models.sources.N.checkpoint.",
    ),
    (
        f"merge {PAIR} models.sources.0.arch.family=mpl",
        f"source 'low': unknown arch.family 'mpl'. Did you mean 'mlp'? Available: {listed(SPECS)}.",
    ),
    (
        f"merge {PAIR} method=kd ~data",
        "method=kd needs unlabelled images and no data set is given. Pass data=NAME "
        f"({listed(DATASETS)}; data.root=PATH for your own folder), or method=average.",
    ),
    (
        f"merge {PAIR} method=kd data=null",
        "method=kd needs unlabelled images and no data set is given. Pass data=NAME "
        f"({listed(DATASETS)}; data.root=PATH for your own folder), or method=average.",
    ),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line or "nothing" for line, _ in REFUSED])
def test_a_mistake_gets_one_message_and_leaves_nothing(
    line: str, message: str, refused: Callable[..., str]
) -> None:
    assert refused(*shlex.split(line)) == f"fsmerge: error: {message}\n"


@pytest.mark.usefixtures("_trained")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["method.maps=low_rank", "method.rank=100"],
            "method.rank=100 is above the width of the merged model (64). "
            "Take a rank below it, or method.maps=full.",
        ),
        (
            ["data.images_per_task=0"],
            "this method needs unlabelled images. Pass data=... with data.images_per_task of 1 or more, "
            "data.auxiliary={name: generated} for images of no task, or method=average, which needs none.",
        ),
        (
            ["method.width=[64]"],
            "method.width: [64] gives 1 layers, but the sources have 2. "
            "Give one width for all layers or a list of 2.",
        ),
    ],
)
def test_what_only_the_sources_can_tell_is_refused_the_same_way(
    arguments: list[str], message: str, refused: Callable[..., str]
) -> None:
    assert refused("merge", PAIR, *arguments, "-q") == f"fsmerge: error: {message}\n"


@pytest.mark.usefixtures("_trained")
@pytest.mark.parametrize("validated", [False, True])
def test_a_loss_that_is_not_finite_exits_with_1_and_advice(
    validated: bool, fsmerge: Command, tmp_path: Path
) -> None:
    images = 100 if validated else 10
    run = ["merge", PAIR, "method.lr=1e30", f"data.images_per_task={images}", "method.steps=5", "output.dir=out"]
    code, out, err = fsmerge(*run, "method.finetune_share=0.0", "--quiet")
    assert (code, out) == (1, "")
    assert [path.name for path in tmp_path.iterdir()] == [".out.logs"]
    log = (tmp_path / ".out.logs/run.log").read_text()
    assert "Traceback (most recent call last):\n" in log
    assert "DivergedError: the loss became " in log
    assert re.fullmatch(
        r"fsmerge: error: the loss became (nan|inf) at step [12]\. "
        r"Try a third of the learning rate \(method\.lr=\.\.\.\), maps of lower rank, or method\.retries=2 "
        r"to begin again with half of it by itself\.\nfsmerge: the log is \.out\.logs/run\.log\n",
        err,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
@pytest.mark.parametrize("argument", ["hardware=gpu", "hardware.device=cuda"])
def test_a_gpu_that_is_not_there_is_refused(argument: str, refused: Callable[..., str]) -> None:
    assert refused("merge", PAIR, argument) == (
        "fsmerge: error: hardware.device=cuda: no CUDA device is visible. Pass hardware=cpu, or install a torch "
        "build with CUDA and check `nvidia-smi`.\n"
    )


@pytest.mark.parametrize("name", ["ensemble", "average", "kd", "merged"])
def test_a_source_called_like_a_row_of_the_table_is_refused(
    name: str, refused: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("source")
    source = mlp_source("low", [4], 1)
    save_file({**source.weights, "head.weight": torch.ones(2, 4)}, folder / "model.safetensors")
    entry = f"checkpoint:'{folder}/model.safetensors',arch:{{family:mlp,input_size:[1,4,4],widths:[4]}}"
    models = f"models.sources=[{{name:{name},{entry}}},{{name:other,{entry}}}]"
    assert refused("merge", models, "method=average") == (
        "fsmerge: error: these sources cannot be merged, for 1 reason:\n"
        f"  - the task name '{name}' is a row of the score table; give the source another name\n"
        "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other sources.\n"
    )


def test_sources_can_be_given_without_a_models_file_and_without_data(
    fsmerge: Command, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sources")
    entries = []
    for number, name in enumerate(("a", "b")):
        save_file(dict(mlp_source(name, [4], number).weights), folder / f"{name}.safetensors")
        arch = "arch:{family:mlp,input_size:[1,4,4],widths:[4]}"
        entries.append(f"{{name:{name},checkpoint:'{folder}/{name}.safetensors',{arch}}}")
    ran = fsmerge("merge", f"+models.sources=[{','.join(entries)}]", "method=average", "output.dir=out")
    assert (ran.code, ran.err) == (0, "certify: 5/5\nwrite: 2/2\n")
    assert "note: no data: nothing was evaluated\n" in ran.out
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["tasks"] == ["a", "b"]


@pytest.mark.full
@pytest.mark.usefixtures("_trained")
def test_models_with_and_without_plus_are_the_same_run(fsmerge: Command, tmp_path: Path) -> None:
    for form, folder in ((PAIR, "one"), ("models=digits_mlp_pair", "two")):
        assert fsmerge("merge", form, "method=average", f"output.dir={folder}").code == 0
    assert (tmp_path / "one/config.yaml").read_bytes() == (tmp_path / "two/config.yaml").read_bytes()
    weights = [(tmp_path / folder / "merged/model.safetensors").read_bytes() for folder in ("one", "two")]
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("_trained")
def test_a_finished_folder_is_kept_unless_overwrite_is_asked_for(fsmerge: Command, tmp_path: Path) -> None:
    run = ["merge", PAIR, "method=average", "output.dir=out"]
    assert fsmerge(*run).code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    message = (
        f"fsmerge: error: {tmp_path}/out holds a finished run. Pass output.overwrite=true to replace it, "
        "or choose another output.dir=...\n"
    )
    assert fsmerge(*run) == (2, "", message)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    run = ["merge", PAIR, "method=kd", "method.steps=2", "output.dir=out", "output.overwrite=true"]
    assert fsmerge(*run).code == 0
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["method"] == "kd"
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before.keys()


def test_an_output_folder_below_a_file_is_refused(fsmerge: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in ("file/below", "file/far/below"):
        assert fsmerge("merge", PAIR, f"output.dir={folder}") == (
            2,
            "",
            f"fsmerge: error: cannot make the folder {tmp_path}/{folder}: a part of the path is a file. "
            "Choose another output.dir=...\n",
        )
    assert fsmerge("merge", PAIR, "output.dir=file") == (
        2,
        "",
        f"fsmerge: error: {tmp_path}/file is a file, not a folder. Choose another output.dir=...\n",
    )
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "mine")]


def test_a_cache_that_cannot_be_written_is_named_as_such(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache") / "file"
    cache.write_text("")
    monkeypatch.setenv("FSMERGE_CACHE", str(cache))
    err = refused("merge", PAIR, "method=average")
    assert err == (
        f"fsmerge: error: cannot write the cache of embedded sources, {cache}/sources. "
        "Choose another folder: FSMERGE_CACHE=FOLDER\n"
    )


def test_debug_shows_the_traceback_above_the_message(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "fsmerge: error: seed: should be a valid integer, got 'one'.\n"
    assert refused("merge", PAIR, "seed=one") == message
    monkeypatch.setenv("FSMERGE_DEBUG", "1")
    err = refused("merge", PAIR, "seed=one")
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("\n" + message)


def test_a_bug_of_the_package_exits_with_1_and_a_traceback(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("fsmerge_cli.runs.merge.merge", broken)
    err = refused("merge", PAIR, code=1)
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith(f"\nRuntimeError: boom\n{BUG}")


def test_an_interrupt_exits_with_130(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fsmerge_cli.runs.merge.merge", interrupted)
    assert refused("merge", PAIR, code=130) == "fsmerge: interrupted\n"


# Sweeps


def summary(folder: Path) -> list[dict[str, str]]:
    (file,) = folder.rglob("summary.csv")
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


@pytest.mark.usefixtures("_trained")
def test_a_sweep_ends_with_one_table_of_all_runs(fsmerge: Command, tmp_path: Path) -> None:
    arguments = ["method=fs_merge,kd", "seed=0,1", "method.steps=5"]
    code, out, err = fsmerge("merge", "--multirun", PAIR, *arguments)
    assert code == 0
    labels = [
        f"models=digits_mlp_pair method={method} seed={seed} method.steps=5"
        for method in ("fs_merge", "kd")
        for seed in (0, 1)
    ]
    assert [line.rstrip("─ ") for line in err.splitlines() if line.startswith("models=")] == labels
    table = out.partition("All runs, ")[2]
    shown = [line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")]
    assert shown == [f"method={method} seed={seed}" for method in ("fs_merge", "kd") for seed in (0, 1)]
    rows = summary(tmp_path / "outputs/sweeps")
    assert [row["run"] for row in rows] == labels
    assert [row["exit_code"] for row in rows] == ["0"] * 4
    evaluations = [
        json.loads(path.read_text()) for path in (tmp_path / "outputs").glob("digits_mlp_pair-*/evaluation.json")
    ]
    merged = {
        f"{e['method']} {e['provenance']['seed']}": e["rows"]["merged"]["tasks"]["high"]["top1"]
        for e in evaluations
    }
    assert len(evaluations) == len(merged) == 4
    assert [float(row["high"]) for row in rows] == [
        merged[f"{method} {seed}"] for method in ("fs_merge", "kd") for seed in (0, 1)
    ]


@pytest.mark.full
@pytest.mark.usefixtures("_trained")
@pytest.mark.parametrize(
    ("arguments", "codes", "failure"),
    [
        (
            ["method.maps=full,low_rank,diagonal", "method.rank=100"],
            [0, 2, 0],
            "fsmerge: error: method.rank=100 is above the width of the merged model (64). Take a rank below it, "
            "or method.maps=full.\n",
        ),
        (
            ["method.lr=0.001,1e30,0.002", "data.images_per_task=10"],
            [0, 1, 0],
            "Try a third of the learning rate (method.lr=...), maps of lower rank, or method.retries=2 to begin "
            "again with half of it by itself.\n",
        ),
    ],
    ids=["input", "training"],
)
def test_a_failed_job_is_shown_when_it_happens_and_the_others_still_run(
    arguments: list[str], codes: list[int], failure: str, fsmerge: Command, tmp_path: Path
) -> None:
    code, out, err = fsmerge("merge", "--multirun", PAIR, "method.steps=5", *arguments)
    assert code == max(codes)
    assert "Traceback" not in err
    first, second, third = err.split("models=digits_mlp_pair method.steps=5 ")[1:]
    assert failure in second
    assert "evaluate merged: 540/540" in first
    assert "evaluate merged: 540/540" in third
    table = [line.split("│") for line in out.partition("All runs, ")[2].splitlines() if line.startswith("│")]
    assert [row[6].strip() == f"failed ({c})" for row, c in zip(table, codes)] == [False, True, False]
    rows = summary(tmp_path / "outputs/sweeps")
    assert [int(row["exit_code"]) for row in rows] == codes
    assert [row["mean"] == "" for row in rows] == [False, True, False]
    assert len(list((tmp_path / "outputs").glob("digits_mlp_pair-*"))) == 2


@pytest.mark.full
@pytest.mark.usefixtures("_trained")
def test_a_second_sweep_into_the_same_folder_shows_its_own_runs_alone(fsmerge: Command, tmp_path: Path) -> None:
    common = ["merge", "--multirun", PAIR, "method=average", "hydra.sweep.dir=sweep", "output.overwrite=true"]
    assert fsmerge(*common, "seed=0,1,2").code == 0
    assert len(summary(tmp_path / "sweep")) == 3
    assert fsmerge(*common, "seed=3,4").code == 0
    assert [row["run"].rsplit(" ", 1)[1] for row in summary(tmp_path / "sweep")] == ["seed=3", "seed=4"]


@pytest.mark.parametrize("methods", ["average,kd", "kd,average"])
def test_a_key_that_one_choice_of_a_sweep_does_not_have_is_named(methods: str, fsmerge: Command) -> None:
    ran = fsmerge("merge", "--multirun", PAIR, f"method={methods}", "method.steps=5")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        f"fsmerge: error: unknown key in method 'steps'. Available: {keys_of(METHODS['average'])}.\n"
    )


# What is printed runs


def examples(text: str) -> list[str]:
    """The commands of a help, lines that are continued joined."""
    lines = re.split(r"examples?:\n", text)[-1].replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.startswith("  fsmerge ")]


EXAMPLES = [line for text in (HELP, MERGE_HELP, LIST_HELP) for line in examples(text)]
HELPS = {name: import_module(f"fsmerge_cli.cli.{name}_command").HELP for name in COMMANDS}


def test_every_help_has_examples() -> None:
    assert len(EXAMPLES) == len(set(EXAMPLES)) + EXAMPLES.count("fsmerge list") - 1
    assert sum("merge " in line for line in EXAMPLES) >= 4
    assert any("--multirun" in line for line in EXAMPLES)
    for name, text in HELPS.items():
        assert any(line.startswith(f"fsmerge {name}") for line in examples(text))


@pytest.mark.parametrize("name", HELPS)
def test_the_keys_of_an_example_are_known(name: str) -> None:
    text = HELPS[name].replace("\\\n", "")
    assert "\\" not in text  # else a line is continued that does not end there
    for line in examples(HELPS[name]):
        check_keys([word for word in shlex.split(line) if word.partition("=")[0] not in presets.SWEEPS])


@pytest.mark.parametrize("name", [name for name, text in HELPS.items() if "\nkeys:\n" in text])
def test_every_line_of_keys_begins_with_a_key_or_goes_on_under_its_meaning(name: str) -> None:
    lines = HELPS[name].partition("\nkeys:\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) > 5
    for line in lines:
        assert re.match(r"  ([a-z][\w.]*=\S| {20}|--)", line), line


@pytest.mark.full
@pytest.mark.usefixtures("_trained")
@pytest.mark.parametrize("line", dict.fromkeys(EXAMPLES))
def test_an_example_of_the_help_runs_as_printed(
    line: str, fsmerge: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trained.total_steps  # what is run is the same, only shorter
    few = property(lambda method: min(40, whole.fget(method)))  # type: ignore[attr-defined]
    monkeypatch.setattr(Trained, "total_steps", few)
    if "sweep=optuna" in line:
        pytest.importorskip("optuna", reason="the extra `sweep` is not installed")
    ran = fsmerge(*shlex.split(line)[1:])
    assert ran.code == 0, ran.err
    assert ran.out
    runs = list(tmp_path.rglob("merged/model.safetensors"))
    several = 20 if "sweep=optuna" in line else 9
    assert len(runs) == (several if "--multirun" in line else int(" merge " in line))


@pytest.mark.full
def test_the_demos_command_trains_merges_and_shows_the_table(tmp_path: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    (command,) = re.findall(r"^demo:.*\n\t\$\(BIN\)/fsmerge (.*)$", makefile, re.MULTILINE)
    script = shutil.which("fsmerge", path=str(Path(sys.executable).parent))
    assert script is not None
    environment = {
        **os.environ,
        "FSMERGE_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }
    work = tmp_path / "work"
    work.mkdir()
    ran = subprocess.run(
        [script, *shlex.split(command)], cwd=work, env=environment, capture_output=True, text=True, timeout=180
    )
    assert ran.returncode == 0, ran.stderr
    assert "train source low: 800/800" in ran.stderr
    assert "train: 100/100" in ran.stderr
    assert "train: 1900/1900" in ran.stderr  # after the release
    rows = [line.split("│")[1].strip() for line in ran.stdout.splitlines() if line.startswith("│")]
    assert rows == ["low (source)", "high (source)", "ensemble", "average", "merged"]
    assert "merged model: outputs/demo/merged   scores: outputs/demo/evaluation.json" in ran.stdout
    found = json.loads((work / "outputs/demo/evaluation.json").read_text())["rows"]
    assert found["merged"]["mean_top1"] > found["average"]["mean_top1"] + 0.1
    assert sorted(path.name for path in (work / "outputs").iterdir()) == ["demo"]
