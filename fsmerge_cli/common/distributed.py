"""Several processes in one run: the rank of this process, and their communication.

torchrun or submitit starts the processes; PyTorch's process group and DistributedDataParallel connect them. Torch
and submitit are imported where they are used, so that the command line can read its rank without them.
"""

from __future__ import annotations

import itertools
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from fsmerge_cli.common.errors import ConfigError, FsmergeError, UserError, describe, first_line
from fsmerge_cli.common.shown import shortened, shown

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


NAMES = (("RANK",) * 2, ("WORLD_SIZE",) * 2, ("LOCAL_RANK", "RANK"), ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
"""Environment variables of torchrun, and those that stand in where one is missing."""
UNSET = "torchrun sets these variables; without it, unset RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE."


def _whole(own: str, other: str) -> int:
    name = own if own in os.environ else other
    text = os.environ[name]
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ConfigError(f"{name}={shortened(text)}: should be a whole number. {UNSET}")
    return int(text)


def process_rank() -> ProcessRank | None:
    """The rank set by torchrun or a submitit job; None where the process was started directly.

    Raises ConfigError where the environment variables are no ranks.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        found = ProcessRank(*(_whole(own, other) for own, other in NAMES))
        if 0 <= found.rank < found.size and 0 <= found.local_rank < found.local_size <= found.size:
            return found
        values = " ".join(f"{own}={shortened(os.environ[own])}" for own, _ in NAMES if own in os.environ)
        raise ConfigError(f"{values}: these are no ranks of processes. {UNSET}")
    if "SUBMITIT_EXECUTOR" in os.environ:
        from submitit import JobEnvironment

        try:
            job = JobEnvironment()
        except RuntimeError as error:
            executor = shortened(os.environ["SUBMITIT_EXECUTOR"])
            raise ConfigError(f"SUBMITIT_EXECUTOR={executor}: {first_line(error)}. Unset this variable.") from None
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
    try:
        here = process_rank()
    except ConfigError:  # reported by whoever needs the rank
        return True
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

    place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    try:
        socket.getaddrinfo(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        store: Store = next(rendezvous("env://"))[0]
    except KeyError as error:
        raise ConnectionError(f"{error.args[0]} is not set, so the processes cannot connect. {START}") from None
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise ConnectionError(
            f"the processes cannot connect at MASTER_ADDR:MASTER_PORT={shown(place)} ({first_line(error)}). "
            f"{START}"
        ) from None  # an error of its own for every process
    return store


START = "Start them with torchrun, which sets these variables, and one port per run."


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
