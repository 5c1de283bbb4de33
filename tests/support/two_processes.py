"""The program of the two gloo processes of test_distributed: methods on small problems."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch

from fsmerge_cli.cli import main
from fsmerge_cli.common.distributed import World, join
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.methods import Problem
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.models.plan import compile_plan
from tests.support.sources import distilling, folding, mlp_source, random_images
from tests.support.vits import vit_source

# With 3 or 4 images per batch, some steps have no image of a task on one or both processes.
TRAINED: dict[str, Trained] = {
    "fs_merge own": folding(steps=30, batch_size=3, maps="full"),
    "fs_merge all": folding(steps=30, batch_size=5, maps="low_rank", rank=2, targets="all"),
    "fs_merge sequential": folding(steps=10, batch_size=4, sequential=True),
    "fs_merge weighted": folding(steps=20, batch_size=3, sequential=True, task_weights=(1.0, 2.0, 5.0)),
    "fs_merge fresh": FSMerge(steps=12, batch_size=6, finetune_share=0.5, lr=1e-3, finetune_lr=1e-3),
    "kd own": distilling(steps=30, batch_size=3),
    "kd identity": distilling(steps=30, batch_size=4, projector="identity", targets="all"),
    "vit": folding(steps=5, batch_size=3, maps="low_rank", rank=2),
    "vit kd": distilling(steps=5, batch_size=3),
}


def problem(name: str, world: World) -> Problem:
    """The problem of one case; with a validation share, so that all processes have to keep the same step."""
    if name.startswith("vit"):
        sources = [vit_source("class token", seed) for seed in (1, 2)]
    else:
        sources = [mlp_source(f"s{seed}", [8, 8], seed, norm="batch") for seed in (1, 2, 3)]
    images = random_images(len(sources), 12, sources[0].arch.input_size, held=3)
    return Problem(compile_plan(sources), sources, images, world=world)


def fitted(name: str, world: World) -> dict[str, Any]:
    """Weights, projectors and trace of one case."""
    solution = TRAINED[name].fit(problem(name, world))
    projectors = {f"U{i}": U for i, U in enumerate(solution.projectors)}
    trace = solution.trace
    values = torch.tensor([*trace.loss, *(error for _, error in trace.validation), *trace.start_error])
    return {**solution.weights, **projectors, "trace": values, "chosen": torch.tensor(trace.chosen_step)}


def work(rank: int, port: int, folder: str) -> None:
    """Run all cases on one of two processes, then raise errors on only one process."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with join(True) as world:
        found = {name: fitted(name, world) for name in TRAINED}
        torch.save(found, Path(folder) / f"{rank}.pt")
        messages = [
            failed(world, error, at) for at in (0, 1) for error in (ConfigError("no"), RuntimeError("boom"))
        ]
        (Path(folder) / f"{rank}.txt").write_text("\n".join(messages))
    # The same processes, joined a second time by the command line.
    with redirect_stderr(io.StringIO()) as err:
        hardware = ["hardware=cpu", "hardware.distributed=true"]
        code = main(["merge", "+models=digits_mlp_pair", *hardware, f"output.dir={folder}/0.pt"])
    (Path(folder) / f"{rank}.err").write_text(f"{code} {err.getvalue()}")


def failed(world: World, error: Exception, at: int) -> str:
    """The error that this process raises after an error on process `at` only."""
    try:
        with world.synchronized():
            if world.rank == at:
                raise error
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return "nothing"
