"""`sweep=map` and `sweep=m2n2`: searches for the Pareto front of the tasks whose jobs are merges."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.text import Text as Line

from fsmerge_cli.cli import sweep_folder
from fsmerge_cli.cli.search_space import search_space
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.reporting import tables, terminal

if TYPE_CHECKING:
    from fsmerge_cli.cli.niches import Genome, Scores

MODULE = "hydra_plugins.fsmerge"
"""Hydra only makes plugins whose module begins with hydra_plugins."""

SURROGATE = "surrogate.csv"


class FrontSweeper(Sweeper):
    """Abstract: proposes jobs by the accuracies of those before.

    n_trials: number of jobs that the search may start. n_jobs: of them at once. seed: of the proposals.
    """

    def __init__(self, n_trials: int, n_jobs: int, seed: int, params: DictConfig | None = None) -> None:
        self.n_trials, self.n_jobs, self.seed = n_trials, n_jobs, seed
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None
        self._started = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def run(self, batch: Sequence[tuple[str, ...]]) -> list[dict[str, Any] | None]:
        """The results of jobs, `n_jobs` at once; None for a job that failed."""
        if self.launcher is None:
            raise RuntimeError("setup was not called")
        found: list[dict[str, Any] | None] = []
        for start in range(0, len(batch), self.n_jobs):
            part = batch[start : start + self.n_jobs]
            self.validate_batch_is_legal(part)
            for job in self.launcher.launch(part, initial_job_idx=self._started):
                row = job.return_value
                found.append(None if row["exit_code"] else row)
            self._started += len(part)
        return found

    def sweep(self, arguments: list[str]) -> None:
        """Run the search."""
        if self.config is None:
            raise RuntimeError("setup was not called")
        self.search(self.config, arguments)

    def search(self, config: DictConfig, arguments: Sequence[str]) -> None:
        """Run the search; the summary of the jobs is written by the callback of all sweeps."""
        raise NotImplementedError


class MapSweeper(FrontSweeper):
    """MAP (arXiv 2406.07529): merges at points that fill the search space, then those of the predicted front.

    The accuracy of every task is approximated by a quadratic in the coefficients. The paper finds the front of the
    approximation by NSGA-III, this one by 2^13 points that fill the space. front: how many of it are merged.
    """

    def __init__(self, n_trials: int, n_jobs: int, seed: int, front: int, params: Any = None) -> None:
        super().__init__(n_trials, n_jobs, seed, params)
        self.front = front

    def search(self, config: DictConfig, arguments: Sequence[str]) -> None:
        """Merge, approximate, merge."""
        import numpy as np

        from fsmerge_cli.cli import surrogate

        space = search_space("map", config, arguments)
        if self.n_trials < (least := surrogate.needed(space.size)):
            raise ConfigError(
                f"hydra.sweeper.n_trials={self.n_trials}: a quadratic in {space.size} coefficients needs {least} "
                f"merges. Pass hydra.sweeper.n_trials={least} or more."
            )
        points = surrogate.design(space.size, self.n_trials, self.seed)
        rows = self.run([(*space.fixed, *space.of(point)) for point in points])
        pairs = [(x, row) for x, row in zip(points, rows) if row and None not in row["tasks"].values()]
        if len(pairs) < least:
            raise ConfigError(
                f"sweep=map: {len(pairs)} merges measured the accuracy of every task, and the approximation needs "
                f"{least}. Give every task labelled test images; errors of jobs are shown above."
            )
        tasks = list(pairs[0][1]["tasks"])
        metrics = np.array([[row["tasks"][task] for task in tasks] for _, row in pairs])
        coefficients, fits = surrogate.fit(np.stack([x for x, _ in pairs]), metrics)
        chosen, expected = surrogate.predicted_front(coefficients, space.size, max(1, self.front), self.seed)
        overrides = [space.of(point) for point in chosen]
        merged = self.run([(*space.fixed, *own) for own in overrides]) if self.front else [None] * len(overrides)
        shown = ", ".join(f"{task} {own:.2f}" for task, own in zip(tasks, fits))
        terminal.console().print(Line(f"R^2 of the quadratic approximation: {shown}"), soft_wrap=True)
        cells = [["run", *(f"{task} predicted" for task in tasks), *tasks, "folder"]]
        for own, values, row in zip(overrides, expected.tolist(), merged):
            measured = [row["tasks"].get(task) if row else None for task in tasks]
            cells.append([" ".join(own), *values, *measured, row["folder"] if row else None])
        sweep_folder.write(Path(config.hydra.sweep.dir) / SURROGATE, partial(_write_cells, cells))


def _write_cells(cells: Sequence[Sequence[Any]], path: Path) -> None:
    tables.write_cells(path, cells)


class NichesSweeper(FrontSweeper):
    """M2N2 (arXiv 2508.16204): an archive of merged models that compete for the images they predict correctly.

    Each child joins two of them by slerp, with a random split point and mixing ratio. The archive begins with the
    sources. population: its size. alpha: exponent of the competition, 0 for none.
    """

    def __init__(
        self, n_trials: int, n_jobs: int, seed: int, population: int, alpha: float, params: Any = None
    ) -> None:
        super().__init__(n_trials, n_jobs, seed, params)
        self.population, self.alpha = population, alpha

    def search(self, config: DictConfig, arguments: Sequence[str]) -> None:
        """Evaluate the sources, then children of the archive."""
        import numpy as np

        from fsmerge_cli.cli import niches

        if "boundaries" not in config.method:
            raise ConfigError(f"sweep=m2n2 mixes sources by method=slerp, not method={config.method.name}.")
        k = len(config.models.sources)
        random = np.random.default_rng(self.seed)
        archive, scores = self._evaluated([niches.source(i, k) for i in range(k)], arguments)
        if len(archive) < 2:
            raise ConfigError(
                "sweep=m2n2: fewer than two sources have labelled test images. Give every task some; errors of "
                "jobs are shown above."
            )
        seen = set(archive)
        while self._started < self.n_trials:
            children: list[Genome] = []
            for _ in range(min(self.n_jobs, self.n_trials - self._started)):
                for _ in range(20):  # a child that was there before tells nothing
                    first, second = niches.parents(scores, self.alpha, random)
                    split, mixing = random.random(2)
                    child = niches.crossover(archive[first], archive[second], float(split), float(mixing))
                    if child not in seen:
                        break
                seen.add(child)
                children.append(child)
            found, added = self._evaluated(children, arguments)
            if not found:
                continue
            archive, scores = archive + found, np.concatenate([scores, added])
            left = niches.survivors(scores, max(2, self.population), self.alpha)
            archive, scores = [archive[i] for i in left], scores[left]

    def _evaluated(self, genomes: Sequence[Genome], arguments: Sequence[str]) -> tuple[list[Genome], Scores]:
        """Those whose jobs succeeded, and which test images of all tasks they predict correctly."""
        import numpy as np
        from safetensors.numpy import load_file

        rows = self.run([(*arguments, *own.overrides) for own in genomes])
        found, scores = [], []
        for genome, row in zip(genomes, rows):
            path = None if row is None else Path(row["folder"]) / "correct.safetensors"
            stored = load_file(path) if path is not None and path.is_file() else {}
            if own := [stored[name] for name in sorted(stored) if name.startswith("task.")]:  # others are joint
                found.append(genome)
                scores.append(np.concatenate(own).astype(float))
        return found, np.array(scores)


@dataclass
class MapConfig:
    """hydra.sweeper of sweep=map."""

    _target_: str = f"{MODULE}.MapSweeper"
    n_trials: int = 20
    n_jobs: int = 1
    seed: int = 0
    front: int = 6
    params: Any = None


@dataclass
class NichesConfig:
    """hydra.sweeper of sweep=m2n2."""

    _target_: str = f"{MODULE}.NichesSweeper"
    n_trials: int = 30
    n_jobs: int = 1
    seed: int = 0
    population: int = 8
    alpha: float = 1.0
    params: Any = None


@cache
def register() -> None:
    """Make the sweepers known to Hydra, once in a process."""
    store, package = ConfigStore.instance(), MODULE.partition(".")[0]
    with suppress(ImportError):  # there is none where no plugin is installed
        import_module(package)
    parent = sys.modules.setdefault(package, ModuleType(package))
    sys.modules[MODULE] = sys.modules[__name__]
    setattr(parent, MODULE.partition(".")[2], sys.modules[__name__])
    for name, cls, node in (("fsmerge_map", MapSweeper, MapConfig), ("fsmerge_m2n2", NichesSweeper, NichesConfig)):
        cls.__module__ = MODULE
        Plugins.instance().register(cls)
        store.store(group="hydra/sweeper", name=name, node=node, provider="fsmerge")


def is_front_search(config: DictConfig) -> bool:
    """Whether a sweep is one of these."""
    return str(OmegaConf.select(config, "hydra.sweeper._target_")).startswith(f"{MODULE}.")
