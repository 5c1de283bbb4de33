"""What the sources say about the queries: the targets of every method that trains."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.metadata import version

import torch
from torch import Tensor, nn

from fsmerge_cli.checkpoints.files import tensors_sha256
from fsmerge_cli.common.cache import feature_folder, stored
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.data.draw import NO_TASK, Images, Targets
from fsmerge_cli.data.transfer import Feed, fetched
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source


@dataclass(frozen=True)
class TeacherTargets:
    """Features of one source on the images it is compared on.

    wanted: [n] (rows that are compared). variance: of the features on the wanted training images, mean over
    units; it scales the loss of the task, so that a source with large features does not drown the others.
    read: rows of the images -> features, from wherever they are kept. answer: new images -> features. weight: how
    much the source counts, 1 on average. head: the source's own, where it has one. foreign: [n] (rows of another
    task). The masks are in host memory.
    """

    wanted: Tensor
    variance: float
    read: Callable[[Tensor], Tensor]
    answer: Callable[[Tensor], Tensor]
    other_task: Tensor
    weight: float = 1.0
    head: Head | None = None

    def at(self, rows: Tensor) -> Tensor:
        """Features of the images `rows`, all of them wanted, [len(rows), d_i] in fp32, on the device."""
        return self.read(rows)


def network(source: Source, device: torch.device | str = "cpu") -> nn.Module:
    """The source's backbone as an ordinary frozen module in evaluation mode."""
    module = source.family.skeleton(source.arch)
    weights = {name: t.to(device) for name, t in source.weights.items()}
    module.load_state_dict(weights, assign=True)
    return module.requires_grad_(False).eval()


def batches(total: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def capture(
    sources: Sequence[Source],
    images: Images,
    targets: Targets,
    hardware: Hardware,
    device: torch.device,
    progress: Progress,
) -> tuple[TeacherTargets, ...]:
    """Each source's features on the images it is compared on: its own task's, or all of them.

    Kept as `hardware.features` says: on disk (memory-mapped and shared by runs; in memory where the cache
    cannot be written), in memory, or nowhere (live). In batches of `hardware.eval_batch`, in fp32 unless
    `hardware.precision` is bf16 (auto: fp32, for all else is measured by them). On a GPU the sources are moved
    one at a time; live, they all stay there.
    """
    digests = _digests(images.images) if hardware.features == "disk" else []
    pixels = cache(lambda: Feed(images.images, device))  # one for all sources, and none where all is found
    captured = []
    masks = [images.asked(i, targets) for i in range(len(sources))]
    told = _Told(progress, sum(int(mask.sum()) for mask in masks))
    for index, (source, wanted) in enumerate(zip(sources, masks)):
        rows = wanted.nonzero().flatten()
        train = torch.zeros_like(wanted).index_fill(0, images.train, True)[rows].nonzero().flatten()
        teacher = _Teacher(source, pixels, hardware, device)
        if hardware.features == "live":
            read: Callable[[Tensor], Tensor] = teacher
            variance = _variance(told.each(teacher.parts(rows[train])))
        else:
            table = _table(teacher, rows, digests, told)
            read = _Kept(Feed(table, device), wanted.cumsum(0) - 1)
            variance = _variance(table[part] for part in torch.split(train, hardware.eval_batch))
        head = source.head.to(device) if source.head else None
        asked = _Teacher(source, pixels, hardware, device)  # another one: this one's network is done with
        other_task = (images.task != index) & (images.task != NO_TASK)
        captured.append(TeacherTargets(wanted, variance, read, asked.answer, other_task, head=head))
        told.source(len(rows))
    return tuple(captured)


class _Told:
    """How many of the images that all sources are to see have been seen; kept features count as seen."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self._total, self._done, self._before = progress, total, 0, 0
        self._tell()

    def each(self, parts: Iterator[Tensor]) -> Iterator[Tensor]:
        """The same parts, each told once it is there."""
        for part in parts:
            self._done += len(part)
            self._tell()
            yield part

    def source(self, rows: int) -> None:
        """One source is through with its `rows`."""
        self._before += rows
        if self._done != self._before:
            self._done = self._before
            self._tell()

    def _tell(self) -> None:
        self.progress(Event("capture", self._done, self._total, images=1))


class _Teacher:
    """A frozen source that answers for images; it is only built and moved once it is asked."""

    def __init__(
        self, source: Source, pixels: Callable[[], Feed], hardware: Hardware, device: torch.device
    ) -> None:
        self._source, self._pixels, self._hardware, self._device = source, pixels, hardware, device
        self._bf16 = hardware.precision == "bf16"

    @cached_property
    def _network(self) -> nn.Module:
        return network(self._source, self._device)

    @property
    def width(self) -> int:
        """Size of the features."""
        return self._source.arch.features  # type: ignore[no-any-return]

    def __call__(self, rows: Tensor) -> Tensor:
        """Features of the images `rows`, computed now, for use inside a training step."""
        # Tensors of inference mode may not enter a graph.
        return torch.cat(list(self._run(rows, torch.no_grad)))

    def answer(self, pixels: Tensor) -> Tensor:
        """Features of new images, computed now, for use inside a training step."""
        return torch.cat(list(self._through(torch.split(pixels, self._hardware.eval_batch), torch.no_grad)))

    def parts(self, rows: Tensor) -> Iterator[Tensor]:
        """Features of the images `rows` in host memory, in order, a batch at a time."""
        return fetched(self._run(rows, torch.inference_mode))

    def _run(self, rows: Tensor, mode: Callable[[], AbstractContextManager[None]]) -> Iterator[Tensor]:
        pixels = self._pixels()
        return self._through((pixels[part] for part in torch.split(rows, self._hardware.eval_batch)), mode)

    def _through(
        self, parts: Iterable[Tensor], mode: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[Tensor]:
        network = self._network
        for batch in parts:
            # A context of its own: the autocast of a training step must not reach the targets.
            with mode(), torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
                features = network(batch).float()
            yield features

    def key(self, digests: Sequence[bytes]) -> str:
        """Name for the features of images with these digests: all that they depend on, to the last bit.

        The weights themselves are hashed, for `Source.sha256` is that of the file they once came from: folding,
        permuting and merging change them.
        """
        cuda = self._device.type == "cuda"
        family = self._source.family
        code = [sys.modules[family.build.__module__], sys.modules[__name__]]
        name = torch.cuda.get_device_name(self._device) if cuda else torch.backends.cpu.get_cpu_capability()
        content = {
            "weights": tensors_sha256(self._source.weights),
            "architecture": [family.name, asdict(self._source.arch)],
            "images": hashlib.sha256(b"".join(digests)).hexdigest(),
            "code": [hashlib.sha256(inspect.getsource(module).encode()).hexdigest() for module in code],
            "versions": [torch.__version__, version("timm")],
            "device": name,
            "numerics": [self._bf16, self._hardware.eval_batch, torch.are_deterministic_algorithms_enabled()],
            "threads": None if cuda else torch.get_num_threads(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Kept:
    """Features in a table; position: row in the table of every image, in host memory as all rows are."""

    table: Feed
    position: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        return self.table[self.position[rows]]


def _table(teacher: _Teacher, rows: Tensor, digests: Sequence[bytes], told: _Told) -> Tensor:
    """Features of the images `rows`: memory-mapped where there are digests and a cache, else in memory."""
    shape = len(rows), teacher.width
    if digests and len(rows):
        try:
            return stored(
                teacher.key([digests[row] for row in rows.tolist()]), shape, lambda: told.each(teacher.parts(rows))
            )
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            why = f"{feature_folder()} cannot be written ({getattr(error, 'strerror', None) or error})"
            told.progress(
                Event(f"features stay in memory: {why}; FSMERGE_CACHE=FOLDER takes another folder", 1, 1)
            )
    table, start = torch.empty(shape), 0
    for part in told.each(teacher.parts(rows)):
        table[start : start + len(part)] = part
        start += len(part)
    return table


def _digests(pixels: Tensor) -> list[bytes]:
    """SHA-256 of every image, its shape included."""
    start = hashlib.sha256(f"{tuple(pixels.shape[1:])} {pixels.dtype}".encode())
    found = []
    for image in pixels:
        digest = start.copy()
        digest.update(image.contiguous().numpy().data)
        found.append(digest.digest())
    return found


def _variance(parts: Iterable[Tensor]) -> float:
    """Variance over rows, mean over units, of parts [m, d]: streamed in fp64, each part around its own mean.

    1.0 where nothing varies, so that it can be divided by.
    """
    count, mean, square = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for x in (part.double() for part in parts if len(part)):
        own, total = x.mean(0), count + len(x)
        square = square + (x - own).square().sum(0) + (own - mean).square() * (count * len(x) / total)
        mean = mean + (own - mean) * (len(x) / total)
        count = total
    variance = (square / max(count, 1)).mean().item()
    return variance if variance > 0 else 1.0
