"""Failed and interrupted runs: exit code, message and traceback."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import PAIR, Command

BUG = "fsmerge: this is a bug in fsmerge; please report it with the lines above\n"


@pytest.mark.full
@pytest.mark.usefixtures("_trained")
@pytest.mark.parametrize("validated", [False, True])
def test_a_loss_that_is_not_finite_exits_with_1_and_advice(
    validated: bool, fsmerge: Command, tmp_path: Path
) -> None:
    images = 100 if validated else 10
    run = ["merge", PAIR, "method.lr=1e30", f"data.images_per_task={images}", "method.steps=5", "output.dir=out"]
    run += ["method.start=matched"]  # the closed form is kept, as the state of a run that may be continued
    code, out, err = fsmerge(*run, "method.finetune_share=0.0", "--quiet")
    assert (code, out) == (1, "")
    assert [path.name for path in tmp_path.iterdir()] == [".out.logs"]
    log = (tmp_path / ".out.logs/run.log").read_text()
    assert "Traceback (most recent call last):\n" in log
    assert "DivergedError: the loss became " in log
    assert re.fullmatch(
        r"fsmerge: error: the loss became (nan|inf) at step [12]\. "
        r"Try a third of the learning rate \(method\.lr=\.\.\.\), maps of lower rank, or method\.retries=2, "
        r"which restarts with half the learning rate\.\nfsmerge: the log is \.out\.logs/run\.log\n",
        err,
    )


@pytest.mark.full
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
    assert refused("merge", PAIR, code=130) == "fsmerge: interrupted by SIGINT. Run the same command again.\n"
