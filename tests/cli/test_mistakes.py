"""Mistakes on the command line: one message, exit code 2 and no files."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save_file

from fsmerge_cli.architectures import SPECS
from fsmerge_cli.cli import COMMANDS, main
from fsmerge_cli.cli.keys import TOP
from fsmerge_cli.common import presets
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.data import DATASETS
from fsmerge_cli.methods import METHODS
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.command import PAIR, keys_of, listed, no_models
from tests.support.sources import mlp_source

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
        "launcher=joblib only applies to --multirun. Add --multirun, or leave it out.",
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
        "unknown key in output 'dri'. Did you mean 'dir'? Available: dir, dtype, license, mlflow, "
        "overwrite, tensorboard, wandb.",
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
    (f"merge {PAIR} output.dir=[3]", "output.dir: should be a valid string, got [3]."),
    (f"merge {PAIR} output=3", "output: should be keys and values, got 3."),
    (f"merge {PAIR} models.sources=3", "models.sources: should be a list of sources, got 3."),
    (
        f"merge {PAIR} data.images_per_task=-5",
        "data.images_per_task: should be greater than or equal to 0 or 'all', got -5.",
    ),
    (
        f"merge {PAIR} hardware.device=tpu",
        "hardware.device='tpu': use auto, cpu, cuda, cuda:N or mps.",
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
        "method=kd needs unlabelled images and no data set is given. Pass --images FOLDER "
        "(texts: data=text data.root=FOLDER), data=NAME "
        f"({listed(DATASETS)}), or method=average.",
    ),
    (
        f"merge {PAIR} method=kd data=null",
        "method=kd needs unlabelled images and no data set is given. Pass --images FOLDER "
        "(texts: data=text data.root=FOLDER), data=NAME "
        f"({listed(DATASETS)}), or method=average.",
    ),
]


@pytest.mark.full
@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line or "nothing" for line, _ in REFUSED])
def test_a_mistake_gets_one_message_and_leaves_nothing(
    line: str, message: str, refused: Callable[..., str]
) -> None:
    assert refused(*shlex.split(line)) == f"fsmerge: error: {message}\n"


@pytest.mark.full
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
            "data.auxiliary={name: generated}, or method=average, which needs none.",
        ),
        (
            ["method.width=[64]"],
            "method.width: [64] gives 1 layers, but the sources have 2. "
            "Give one width for all layers or a list of 2.",
        ),
    ],
)
def test_a_mistake_found_in_the_sources_is_reported_the_same_way(
    arguments: list[str], message: str, refused: Callable[..., str]
) -> None:
    assert refused("merge", PAIR, *arguments, "-q") == f"fsmerge: error: {message}\n"


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
@pytest.mark.parametrize("argument", ["hardware=gpu", "hardware.device=cuda"])
def test_a_missing_gpu_is_reported(argument: str, refused: Callable[..., str]) -> None:
    assert refused("merge", PAIR, argument) == (
        "fsmerge: error: hardware.device=cuda: no CUDA device is visible. Pass hardware=cpu, or install a torch "
        "build with CUDA and check `nvidia-smi`.\n"
    )


@pytest.mark.full
@pytest.mark.parametrize("name", ["ensemble", "average", "kd", "merged"])
def test_a_source_named_like_a_row_of_the_score_table_is_refused(
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


KEYS_OF_OTHERS = {
    "model.labels=data": (
        "model.labels=data: fsmerge {} reads no data set whose classes have names. Give a list "
        "(model.labels=[cat,dog]), or a file (.txt, .json)."
    ),
    "data.root=images": (
        "fsmerge {}: data.root=images is a key of another command. It takes model.KEY=VALUE only. See fsmerge "
        "{} --help."
    ),
    "seed=1": "fsmerge {}: seed=1 is a key of another command. It takes model.KEY=VALUE only. See fsmerge {} "
    "--help.",
}


@pytest.mark.parametrize("command", [("predict", "run", "a text"), ("export", "run", "--format", "torch")])
@pytest.mark.parametrize("key", KEYS_OF_OTHERS)
def test_a_key_of_another_command_is_no_text(
    key: str, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, key]) == 2
    assert capsys.readouterr().err == f"fsmerge: error: {KEYS_OF_OTHERS[key].replace('{}', command[0])}\n"
