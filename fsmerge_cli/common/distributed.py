"""Several processes in one run: which of them this is, and what they tell each other.

torchrun or submitit starts the processes, PyTorch's process group joins them and its DistributedDataParallel
trains. Torch and submitit are imported where they are used: the command line asks for its rank without them.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from fsmerge_cli.common.errors import ConfigError, FsmergeError, UserError, describe

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import Store  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Place:
    """One process among those that were started: rank of size, and local_rank of local_size on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def place() -> Place | None:
    """What the environment of torchrun or of a submitit job says; None where nobody started several processes."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
        local_rank, local_size = os.environ.get("LOCAL_RANK", rank), os.environ.get("LOCAL_WORLD_SIZE", size)
        return Place(int(rank), int(size), int(local_rank), int(local_size))
    if "SUBMITIT_EXECUTOR" in os.environ:
        from submitit import JobEnvironment

        job = JobEnvironment()
        return Place(job.global_rank, job.num_tasks, job.local_rank, job.num_tasks // job.num_nodes)
    return None


def started(distributed: bool) -> Place:
    """The place of this process in a run; raises ConfigError where the option and the environment disagree."""
    here = place()
    if distributed and here is None:
        raise ConfigError(
            "hardware.distributed=true: this process was started alone. Start N of them with\n"
            "  torchrun --nproc-per-node=N -m fsmerge_cli merge ... hardware=multi_gpu\n"
            "or let a cluster start them: fsmerge merge --multirun ... hardware=slurm"
        )
    if not distributed and here is not None and here.size > 1:
        raise ConfigError(
            f"{here.size} processes were started, but each of them would do the same. Pass hardware=multi_gpu "
            "(or hardware.distributed=true) to share the work, or start one process."
        )
    return here or Place()


def is_main() -> bool:
    """Whether this process writes, logs and speaks for all: rank 0, or the only one."""
    here = place()
    return here is None or here.rank == 0


def outcome(error: Exception) -> tuple[str, int]:
    """What this process shows of an error, and its exit code.

    An error raised on purpose is raised by all processes, and rank 0 tells it. The others end well: torchrun
    kills all processes when it sees one fail, which may be before rank 0 has spoken.
    """
    return describe(error) if is_main() or not isinstance(error, FsmergeError) else ("", 0)


@dataclass(frozen=True)
class World:
    """The processes that share a run; alone, nothing is sent and every tensor stays as it is."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes, logs and evaluates."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """The part of global rows [n] that falls to this process: every size-th, from its rank on."""
        return rows[self.rank :: self.size]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same on each."""
        if self.size == 1:
            return values
        from torch import distributed

        values = values.clone()
        distributed.all_reduce(values)
        return values

    def first(self, values: Tensor) -> Tensor:
        """Rank 0's tensor, on each."""
        return self.total(values if self.main else values.new_zeros(values.shape))

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the processes, and rank 0's parameters at the start."""
        if self.size == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        # Of a class token [1, 1, d], whose strides over axes of one entry are anybody's: nothing to be said.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(module, gradient_as_bucket_view=True)  # gradients lie in memory once

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that may fail on one process alone: then it fails on all of them, with the same message.

        No process leaves the block before all have come to its end. Nothing inside may wait for the others.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
        if self.size == 1:
            return
        from torch import distributed

        found: list[tuple[int, str, bool] | None] = [None] * self.size
        own = failure and (self.rank, str(failure), isinstance(failure, UserError))
        distributed.all_gather_object(found, own)  # type: ignore[misc]
        if failure is not None:
            raise failure
        for rank, text, user in filter(None, found):
            raise UserError(text) if user else FsmergeError(f"process {rank} failed: {text}")


ALONE = World()
_runs = itertools.count()


@cache
def _meeting_point() -> Store:
    """Where the processes find each other; torchrun's takes a second group only under another name."""
    from torch.distributed import rendezvous  # type: ignore[attr-defined]

    store: Store = next(rendezvous("env://"))[0]
    return store


@contextmanager
def join(distributed: bool) -> Iterator[World]:
    """Join the processes of this run for the time of the block. Raises ConfigError as :func:`started` does."""
    here = started(distributed)
    if here.size == 1:
        yield ALONE
        return
    import torch
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    if "RANK" not in os.environ:  # a submitit job: put what torch reads into the environment
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    # Messages lie on the CPU, gradients where the model is.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = PrefixStore(f"run {next(_runs)}", _meeting_point())
    torch.distributed.init_process_group(backend, store=store, rank=here.rank, world_size=here.size)
    try:
        yield World(here.rank, here.size)
    except FsmergeError:
        torch.distributed.destroy_process_group()  # raised by all
        raise
    # After any other error the others may be waiting for this process, and leaving would wait for them.
    torch.distributed.destroy_process_group()
