"""Options of the hardware group: device, precision, threads, loader workers."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.common.distributed import ProcessRank, checked_rank
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import FORBID, Count, Flag, Positive, Text
from fsmerge_cli.common.shown import brief

Result = TypeVar("Result")


@dataclass(frozen=True, config=FORBID)
class Hardware:
    """Fields of the `hardware` group.

    device: auto (a CUDA GPU if available), cpu, cuda, cuda:N or mps (Apple). precision: of the forward and
    backward pass; auto uses bf16 on a GPU and fp32 on the CPU; maps and optimizer state stay fp32. threads: CPU
    threads (null: torch's default). workers: processes that load images (0: the main process). eval_batch:
    images per batch outside of training. features: where the sources' features are kept during training: disk (a
    memory-mapped cache, shared by runs), memory, or live (computed again at every step). compile: torch.compile
    of the trained network; on a GPU also of the fold of low-rank maps and of the teachers on new views. graphs:
    CUDA graphs of the student's and the teachers' passes over batches of one size (no effect on a CPU).
    checkpointing: recompute the activations of a block in the backward pass, and fold FS-Merge one block at a
    time. distributed: split every batch over the processes that torchrun or a cluster started. deterministic:
    refuse operations without a deterministic implementation; CPU runs are byte-identical without it.
    """

    device: Text = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: Annotated[Positive, Field(le=1024)] | None = None
    workers: Annotated[Count, Field(le=256)] = 0
    eval_batch: Positive = 256
    features: Literal["disk", "memory", "live"] = "disk"
    compile: Flag = False
    graphs: Flag = False
    checkpointing: Flag = False
    distributed: Flag = False
    deterministic: Flag = False

    def __post_init__(self) -> None:
        """Refuse options that cannot be combined."""
        if self.compile and self.checkpointing:
            raise ValueError(
                "hardware.compile and hardware.checkpointing cannot be combined. Pass compile=true for speed or "
                "checkpointing=true for memory."
            )
        if self.graphs and (self.checkpointing or self.distributed):
            other = "checkpointing" if self.checkpointing else "distributed"
            raise ValueError(
                f"hardware.graphs and hardware.{other} cannot be combined. Pass graphs=false or {other}=false."
            )

    def resolve(self) -> torch.device:
        """The device of this process. Raises ConfigError where it is unknown or not available."""
        here = checked_rank(self.distributed)
        device = available(self.device, "hardware.device=", "hardware=cpu")
        return _own_device(device, here) if device.type == "cuda" and here.size > 1 else device

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The autocast context of the chosen precision."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16(device))

    def bf16(self, device: torch.device) -> bool:
        """Whether forward and backward passes on `device` run in bf16."""
        return self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda")

    def compiled(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """`function` compiled by torch.compile where `compile` is on; ConfigError where compilation fails."""
        if not self.compile:
            return function
        inner = torch.compile(function)

        def run(*args: Any, **kwargs: Any) -> Result:
            from torch._dynamo.exc import TorchDynamoException  # slow to import

            try:
                with warnings.catch_warnings():  # the compiler reads .grad of folded weights, which have none
                    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
                    return inner(*args, **kwargs)
            except TorchDynamoException as error:
                raise ConfigError(
                    "hardware.compile=true: torch.compile failed; it needs a C++ compiler on the CPU and Triton "
                    f"on a GPU ({' '.join(str(error).split())[:200]}). Pass hardware.compile=false."
                ) from error

        return run

    @contextmanager
    def session(self) -> Iterator[torch.device]:
        """Apply the settings during the block, and restore the previous ones afterwards."""
        device = self.resolve()
        before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        convolutions = torch.backends.cudnn.allow_tf32
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            if self.deterministic:  # cuBLAS reads this before its first call
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            _set_deterministic(self.deterministic)
            if (
                device.type == "cuda" and device.index is not None
            ):  # the default device of communication and CUDA events
                torch.cuda.set_device(device)
            # Full fp32: by default cuDNN rounds the inputs of a convolution to TF32 (10 bits).
            torch.backends.cudnn.allow_tf32 = False
            yield device
        finally:
            torch.backends.cudnn.allow_tf32 = convolutions
            torch.set_num_threads(before[0])
            _set_deterministic(before[1])


def _set_deterministic(wanted: bool) -> None:
    """torch.use_deterministic_algorithms imports torch's compiler (1.5 s), so it is called only for a change."""
    if wanted != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(wanted)


def available(name: str, key: str, cpu: str) -> torch.device:
    """The device of this name. Raises ConfigError where it is unknown or not available.

    key: what was passed, in messages; cpu: what to pass for the CPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"{key}{brief(name)}: use auto, cpu, cuda, cuda:N or mps.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"{key}cuda: no CUDA device is visible. Pass {cpu}, or install a torch build with CUDA and check "
            "`nvidia-smi`."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{key}{name}: this machine has {_devices(torch.cuda.device_count())}, numbered from 0.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{key}mps: no Apple GPU is available to this build of torch. Pass {cpu}.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"{key}{brief(name)}: use auto, cpu, cuda, cuda:N or mps.")
    return device


def _own_device(device: torch.device, here: ProcessRank) -> torch.device:
    """One CUDA device per process of a machine."""
    count = torch.cuda.device_count()
    if device != torch.device("cuda"):
        raise ConfigError(
            f"hardware.device={device}: {here.size} processes cannot share one device. Pass hardware.device=cuda, "
            "which gives every process a device of its own."
        )
    if count == 1 and "SUBMITIT_EXECUTOR" in os.environ:  # the cluster shows each task only its own device
        return torch.device("cuda", 0)
    if here.local_size > count:
        raise ConfigError(
            f"{here.local_size} processes were started on a machine with {_devices(count)}. Start one per "
            "device: torchrun --nproc-per-node=gpu ..."
        )
    return torch.device("cuda", here.local_rank)


def _devices(count: int) -> str:
    return f"{count} CUDA device{'' if count == 1 else 's'}"


WITHOUT_FP64 = frozenset({"mps"})
"""Types of devices that have no fp64."""


def with_fp64(device: torch.device) -> torch.device:
    """`device`, or the CPU where it has no fp64, for statistics, solves and products that need it."""
    return torch.device("cpu") if device.type in WITHOUT_FP64 else device


def double(tensor: Tensor) -> Tensor:
    """`tensor` in fp64, on a device that has it."""
    return tensor.to(with_fp64(tensor.device), torch.float64)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on a GPU or on the CPU."""
    text = str(error)
    known = ("not enough memory", "can't allocate", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(part in text for part in known)


def peak_memory(device: torch.device) -> int | None:
    """Peak memory of this process in bytes: GPU memory, or resident memory (None: not available)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":  # now, not the peak, which it does not tell
        return int(torch.mps.driver_allocated_memory())
    with suppress(OSError, StopIteration):  # Linux; ru_maxrss there may include the parent process
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
