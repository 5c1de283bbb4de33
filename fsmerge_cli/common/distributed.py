"""Several processes in one run: the rank of this process, and their communication.

torchrun or submitit starts the processes; PyTorch's process group and DistributedDataParallel connect them. Torch
and submitit are imported where they are used, so that the command line can read its rank without them.
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
class ProcessRank:
    """The rank of a process: rank of size overall, local_rank of local_size on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def process_rank() -> ProcessRank | None:
    """The rank set by torchrun or a submitit job; None where the process was started directly."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
        local_rank, local_size = os.environ.get("LOCAL_RANK", rank), os.environ.get("LOCAL_WORLD_SIZE", size)
        return ProcessRank(int(rank), int(size), int(local_rank), int(local_size))
    if "SUBMITIT_EXECUTOR" in os.environ:
        from submitit import JobEnvironment

        job = JobEnvironment()
        return ProcessRank(job.global_rank, job.num_tasks, job.local_rank, job.num_tasks // job.num_nodes)
    return None


def checked_rank(distributed: bool) -> ProcessRank:
    """The rank of this process; raises ConfigError where the option contradicts the environment."""
    here = process_rank()
    if distributed and here is None:
        raise ConfigError(
            "hardware.distributed=true: only one process was started. Start N processes with\n"
            "  torchrun --nproc-per-node=N -m fsmerge_cli merge ... hardware=multi_gpu\n"
            "or let a cluster start them: fsmerge merge --multirun ... hardware=slurm"
        )
    if not distributed and here is not None and here.size > 1:
        raise ConfigError(
            f"{here.size} processes were started, and each of them would run the whole merge. Pass "
            "hardware=multi_gpu (or hardware.distributed=true) to split the work, or start one process."
        )
    return here or ProcessRank()


def is_main() -> bool:
    """Whether this process writes files and prints messages: rank 0, or the only process."""
    here = process_rank()
    return here is None or here.rank == 0


def outcome(error: Exception) -> tuple[str, int]:
    """The text that this process prints for an error, and its exit code.

    An FsmergeError is raised by all processes and printed by rank 0. The others exit with 0: torchrun kills all
    processes when one fails, possibly before rank 0 has printed the message.
    """
    return describe(error) if is_main() or not isinstance(error, FsmergeError) else ("", 0)


@dataclass(frozen=True)
class World:
    """The processes of a run. With a single process nothing is communicated and tensors are returned unchanged."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes, logs and evaluates."""
        return self.rank == 0

    def shard(self, rows: Tensor) -> Tensor:
        """The rows of this process among all rows [n]: every size-th row, starting at its rank."""
        return rows[self.rank :: self.size]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, returned on each (all-reduce)."""
        if self.size == 1:
            return values
        from torch import distributed

        values = values.clone()
        distributed.all_reduce(values)
        return values

    def broadcast(self, values: Tensor) -> Tensor:
        """The tensor of rank 0, returned on each process."""
        return self.sum(values if self.main else values.new_zeros(values.shape))

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module in DistributedDataParallel: gradients averaged, initial parameters from rank 0."""
        if self.size == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        # Raised for a class token [1, 1, d]: strides of axes with one entry are arbitrary, so this is harmless.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(module, gradient_as_bucket_view=True)  # gradients are stored once

    @contextmanager
    def synchronized(self) -> Iterator[None]:
        """If the block fails on one process, it fails on all of them with the same message.

        All processes wait for each other at the end of the block. Nothing inside may wait for other processes.
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

        errors: list[tuple[int, str, bool] | None] = [None] * self.size
        own = failure and (self.rank, str(failure), isinstance(failure, UserError))
        distributed.all_gather_object(errors, own)  # type: ignore[misc]
        if failure is not None:
            raise failure
        for rank, text, user in filter(None, errors):
            raise UserError(text) if user else FsmergeError(f"process {rank} failed: {text}")


SINGLE_PROCESS = World()
_runs = itertools.count()


@cache
def _rendezvous_store() -> Store:
    """The store through which the processes connect; with torchrun, every group needs a name of its own."""
    from torch.distributed import rendezvous  # type: ignore[attr-defined]

    store: Store = next(rendezvous("env://"))[0]
    return store


@contextmanager
def join(distributed: bool) -> Iterator[World]:
    """Connect the processes of this run during the block. Raises ConfigError as :func:`checked_rank` does."""
    here = checked_rank(distributed)
    if here.size == 1:
        yield SINGLE_PROCESS
        return
    import torch
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    if "RANK" not in os.environ:  # a submitit job: set the environment variables that torch reads
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    # Objects are sent from the CPU, gradients from the device of the model.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = PrefixStore(f"run {next(_runs)}", _rendezvous_store())
    torch.distributed.init_process_group(backend, store=store, rank=here.rank, world_size=here.size)
    try:
        yield World(here.rank, here.size)
    except FsmergeError:
        torch.distributed.destroy_process_group()  # raised by all processes
        raise
    # Not after other errors: the other processes may be waiting for this one, so destroying the group would block.
    torch.distributed.destroy_process_group()
