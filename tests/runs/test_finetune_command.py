"""`fsmerge finetune`, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fsmerge_cli.cli import main
from fsmerge_cli.cli.finetune_command import HELP
from fsmerge_cli.runs.finetune_request import FinetuneStart
from fsmerge_cli.training import classifier

pytestmark = pytest.mark.full


@pytest.fixture
def fsmerge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(argv))
        return code, *capsys.readouterr()

    return run


SMALL = (
    "model.arch={family:vit,name:vit_tiny_patch16_224,args:{img_size:12,patch_size:6,in_chans:1,embed_dim:24,"
    "depth:2,num_heads:3}}"
)


def test_two_sources_are_trained_and_merged_by_command(
    fsmerge: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    shared = ("model.start=random", "data=glyphs", "data.train_images=12", "data.test_images=4", "data.size=12")
    short = ("training.steps=30", "training.head_steps=5", "training.lr=0.003", "hardware=cpu")
    for number, task in enumerate(("digits", "capitals")):
        run = ("finetune", SMALL, f"model.task={task}", *shared, *short, f"seed={number}", f"output.dir={task}")
        code, out, err = fsmerge(*run)
        assert code == 0, err
        assert f"source: {task}\n" in out
        assert "train all: 30/30 loss " in err
        assert (tmp_path / task / "run.log").is_file()
        assert fsmerge(*run, "resume=true", "-q") == (0, "", "")
        code, _, err = fsmerge(*run)
        assert code == 2
        assert err.endswith("or choose another output.dir=...\n")
    models = "+models.sources=[{name:digits,checkpoint:digits},{name:capitals,checkpoint:capitals}]"
    code, out, err = fsmerge("merge", models, *shared[1:], "method=fs_merge", "method.steps=5", "output.dir=both")
    assert code == 0, err
    code, out, _ = fsmerge("evaluate", "both", "data=from_run", "--json", "--sources")
    found = json.loads(out)
    for task in ("digits", "capitals"):
        own = json.loads((tmp_path / task / "evaluation.json").read_text())
        assert found["rows"][task]["tasks"][task]["top1"] == own["rows"][task]["mean_top1"]
    code, out, _ = fsmerge("compare", "digits", "capitals", "both", "--json")
    rows = {row["folder"]: row for row in json.loads(out)}
    for task in ("digits", "capitals"):
        top1 = found["rows"][task]["mean_top1"]
        assert (rows[task][f"top1.{task}"], rows[task]["mean"], rows[task]["difference"]) == (top1, top1, None)
        assert "method=finetune" in rows[task]["run"]


def test_the_command_reports_mistakes(fsmerge: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    assert fsmerge("finetune", "--help") == (0, HELP, "")
    cases = {
        ("data=digits", "training.stps=3"): "unknown key in training 'stps'. Did you mean 'steps'? Available: "
        "anneal, batch_size, clip, cutmix, ema, head_lr, head_steps, label_smoothing, lr, matrix_lr, mixup, "
        "optimizer, patch_drop, patience, plain_share, randaugment, steps, stochastic_depth, warmup, "
        "weight_decay.",
        ("model.task=a",): "finetune needs labelled images. Pass data=NAME",
        ("outputs/x",): "fsmerge finetune: unknown argument 'outputs/x'. Available: KEY=VALUE.",
        ("--jsno",): "fsmerge finetune: unknown option '--jsno'. Did you mean '--json'? Available: --config-dir, "
        "--json, --quiet, -q.",
        (
            "-m",
            "seed=1,2",
        ): "fsmerge finetune trains one source. Leave out --multirun and give every key one value.",
        ("data=folder", "data.root=."): "model.task is missing: the folder in data.root that holds the images of "
        "the task.",
    }
    for arguments, message in cases.items():
        code, out, err = fsmerge("finetune", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"fsmerge: error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_the_yaml_lists_every_field_with_its_default() -> None:
    from dataclasses import asdict

    from fsmerge_cli.cli.composing import composed
    from fsmerge_cli.cli.finetune_command import TOP, Output
    from fsmerge_cli.cli.keys import Checkpoint

    keys = composed("finetune", [], None)
    assert set(keys) == set(TOP)
    assert keys["model"] == asdict(FinetuneStart())
    assert keys["training"] == asdict(classifier.TrainingOptions())
    assert keys["output"] == asdict(Output())
    assert keys["checkpoint"] == asdict(Checkpoint())
    assert keys["data"] == {"images_per_task": "all"}
