"""Where the computing happens: device, precision, threads, loader workers."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.distributed import Place, started
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import FORBID, Count, Flag, Positive, Text


@dataclass(frozen=True, config=FORBID)
class Hardware:
    """Fields of the `hardware` group.

    device: auto (a GPU where there is one), cpu, cuda or cuda:N. precision: of the forward and backward pass;
    auto takes bf16 on a GPU and fp32 elsewhere; maps and optimiser stay fp32. threads: CPU threads (null: as
    torch chooses). workers: processes that read images (0: the main process). eval_batch: images per batch
    where nothing is trained. features: where the sources' features are kept while a method trains: disk (a
    memory-mapped cache, shared by runs), memory, or live (nothing kept, computed again at every step).
    compile: torch.compile of the trained network. checkpointing: activations of a block are computed again in
    the backward pass, and FS-Merge folds one block at a time. distributed: the processes that torchrun or a
    cluster started share every batch. deterministic: refuse operations without a deterministic form; runs on
    the CPU repeat to the byte without it.
    """

    device: Text = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: Annotated[Positive, Field(le=1024)] | None = None
    workers: Annotated[Count, Field(le=256)] = 0
    eval_batch: Positive = 256
    features: Literal["disk", "memory", "live"] = "disk"
    compile: Flag = False
    checkpointing: Flag = False
    distributed: Flag = False
    deterministic: Flag = False

    def __post_init__(self) -> None:
        """Refuse what excludes each other."""
        if self.compile and self.checkpointing:
            raise ValueError(
                "hardware.compile and hardware.checkpointing exclude each other. Pass compile=true for speed or "
                "checkpointing=true for memory."
            )

    def resolve(self) -> torch.device:
        """The device that this process uses. Raises ConfigError where it is unknown or not there."""
        here = started(self.distributed)
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError:
            raise ConfigError(f"hardware.device={name!r}: give auto, cpu, cuda or cuda:N.") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "hardware.device=cuda: no CUDA device is visible. Pass hardware=cpu, or install a torch build "
                "with CUDA and check `nvidia-smi`."
            )
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"hardware.device={name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0."
            )
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f"hardware.device={name!r}: give auto, cpu, cuda or cuda:N.")
        return _own_device(device, here) if device.type == "cuda" and here.size > 1 else device

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The autocast context of the chosen precision."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16(device))

    def bf16(self, device: torch.device) -> bool:
        """Whether forward and backward passes on `device` run in bf16."""
        return self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda")

    def compiled(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`function` through torch.compile where `compile` is on; ConfigError where it cannot be compiled."""
        if not self.compile:
            return function
        inner = torch.compile(function)

        def run(*args: Any, **kwargs: Any) -> Tensor:
            from torch._dynamo.exc import TorchDynamoException  # slow to import

            try:
                with warnings.catch_warnings():  # the compiler looks at .grad of folded weights, which have none
                    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
                    return inner(*args, **kwargs)
            except TorchDynamoException as error:
                raise ConfigError(
                    "hardware.compile=true: torch cannot compile here, which takes a C++ compiler on the CPU and "
                    f"Triton on a GPU ({' '.join(str(error).split())[:200]}). Pass hardware.compile=false."
                ) from error

        return run

    @contextmanager
    def session(self) -> Iterator[torch.device]:
        """Apply the settings for one run and put the process back as it was afterwards."""
        device = self.resolve()
        before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        convolutions = torch.backends.cudnn.allow_tf32
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            if self.deterministic:  # cuBLAS reads this before its first call
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(self.deterministic)
            if device.index is not None:  # what is sent or recorded without a tensor of ours lies here
                torch.cuda.set_device(device)
            # fp32 means fp32: by default cuDNN rounds what a convolution reads to 10 bits.
            torch.backends.cudnn.allow_tf32 = False
            yield device
        finally:
            torch.backends.cudnn.allow_tf32 = convolutions
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1])


def _own_device(device: torch.device, here: Place) -> torch.device:
    """One CUDA device per process of a machine."""
    count = torch.cuda.device_count()
    if device != torch.device("cuda"):
        raise ConfigError(
            f"hardware.device={device}: {here.size} processes cannot share one device. Pass hardware.device=cuda; "
            "each takes its own."
        )
    if count == 1 and "SUBMITIT_EXECUTOR" in os.environ:  # the cluster shows each task its own device alone
        return torch.device("cuda", 0)
    if here.local_size > count:
        raise ConfigError(
            f"{here.local_size} processes were started on a machine with {count} CUDA devices. Start one per "
            "device: torchrun --nproc-per-node=gpu ..."
        )
    return torch.device("cuda", here.local_rank)


def peak_memory(device: torch.device) -> int | None:
    """Largest memory that this process has held so far, in bytes: of the GPU, or resident (None: not counted)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(
        OSError, StopIteration
    ):  # Linux; the other count may be that of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
