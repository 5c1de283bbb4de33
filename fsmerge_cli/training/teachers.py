"""The teachers (frozen sources) and their features: the targets of every method that trains."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures.token_outputs import with_tokens
from fsmerge_cli.common.cache import try_cached_table
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.inputs import Inputs, content, feature_rows, reads, split
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.data.draw import NO_TASK, Images, Targets
from fsmerge_cli.data.transfer import Feed, to_host
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.feature_key import feature_key
from fsmerge_cli.training.teacher_group import TeacherGroup, rounded
from fsmerge_cli.training.token_targets import TokenTargets
from fsmerge_cli.training.variances import variances


@dataclass(frozen=True)
class TeacherTargets:
    """Target features of one source.

    mask: the images on which the source is compared, [n]. variance: of the features on the training images in the
    mask, mean over units. It divides the source's loss, so that a source with large features does not dominate.
    lookup: rows of the images -> features, captured or computed. run: new images -> features. other_task: the
    images that are known to belong to another task, [n]. weight: of the source's loss, 1 on average. head: of the
    source, where it has one. group: runs all teachers of the training on new images at once, where that is faster.
    The masks are in host memory. reads: rows of features of every image [n] (None: one each). tokens: where the
    patch tokens of the source count; they stand behind its features (see `TokenLayout`). whitening: [d_i, d_i],
    by which errors are multiplied instead of the division by the variance. output_variance: of the numbers that a
    head predicts (1: it predicts none).
    """

    mask: Tensor
    variance: float
    lookup: Callable[[Tensor], Tensor]
    run: Callable[[Inputs], Tensor]
    other_task: Tensor
    weight: float = 1.0
    head: Head | None = None
    group: TeacherGroup | None = None
    reads: Tensor | None = None
    tokens: TokenTargets | None = None
    whitening: Tensor | None = None
    output_variance: float = 1.0

    def at(self, rows: Tensor) -> Tensor:
        """Features of the images `rows`, all inside the mask, [rows of them, d_i] in fp32, on the device."""
        return self.lookup(rows)


def network(source: Source, device: torch.device | str = "cpu") -> nn.Module:
    """The source's backbone as an ordinary frozen module in evaluation mode."""
    module = source.family.skeleton(source.arch)
    weights = {name: t.to(device) for name, t in source.weights.items()}
    module.load_state_dict(weights, assign=True)
    return module.requires_grad_(False).eval()


def teacher_network(source: Source, device: torch.device | str = "cpu") -> nn.Module:
    """The `network` whose outputs are all that counts of the source: with `reads`, its patch tokens too."""
    module = network(source, device)
    return module if source.reads == "pooled" else with_tokens(module, source.family)


@contextmanager
def recorded_outputs(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside the context, every forward pass stores the outputs of the named submodules in the dictionary."""
    outputs: dict[str, Tensor] = {}

    def record(name: str, output: Tensor) -> None:
        outputs[name] = output

    with ExitStack() as stack:
        for name in names:
            hook = module.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, name=name: record(name, output)
            )
            stack.callback(hook.remove)
        yield outputs


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
    """Features of every source on the images of its own task, or on all images (`targets`).

    `hardware.features` decides where they are kept: on disk (memory-mapped and shared by runs; in memory where the
    cache cannot be written), in memory, or nowhere (live: computed in every step). The teachers run in batches of
    `hardware.eval_batch`, in fp32 unless `hardware.precision` is bf16 (auto is fp32 here: the targets should be
    exact; on new images of a step they have the precision of the student). On a GPU one source at a time is moved;
    with live features, or new images, all of them stay there.
    """
    digests = _digests(images.images) if hardware.features == "disk" else []
    pixels = cache(lambda: Feed(images.images, device))  # shared by all sources; created only if needed
    captured = []
    masks = [images.selected(i, targets) for i in range(len(sources))]
    several = reads(images.images)
    counter = _CaptureProgress(progress, sum(_rows_of(mask, several) for mask in masks))
    for index, (source, mask) in enumerate(zip(sources, masks)):
        rows = mask.nonzero().flatten()
        train = torch.zeros_like(mask).index_fill(0, images.train, True)[rows].nonzero().flatten()
        teacher = _Teacher(source, pixels, hardware, device)
        if hardware.features == "live":
            lookup: Callable[[Tensor], Tensor] = teacher
            trained = partial(teacher.parts, rows[train])
            variance, tokens = variances(counter.count(trained()), source)
        else:
            own = None if several is None else several[rows]
            table = _table(teacher, rows, _rows_of(mask, several), digests, counter)
            lookup = _FeatureTable(Feed(table, device), mask.cumsum(0) - 1, own)
            trained = partial(_parts_of, table, own, torch.split(train, hardware.eval_batch))
            variance, tokens = variances(trained(), source)
        head = source.head.to(device) if source.head else None
        live = _Teacher(source, pixels, hardware, device, fresh=True)  # new, so that the first network is freed
        other_task = (images.task != index) & (images.task != NO_TASK)
        found = TeacherTargets(
            mask, variance, lookup, live.run, other_task, head=head, reads=several, tokens=tokens
        )
        if source.head is not None and source.head.regression:
            found = replace(found, output_variance=variances(map(source.head, trained()), source)[0])
        captured.append(found)
        counter.finish_source(_rows_of(mask, several))
    # On a CPU, running one after the other as the loss needs them is faster.
    if device.type != "cuda" or several is not None:
        return tuple(captured)
    group = TeacherGroup(sources, [own.run for own in captured], hardware, device)
    return tuple(replace(own, group=group) for own in captured)


def _parts_of(table: Tensor, reads: Tensor | None, parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """The features of some images of a table, in parts."""
    return (table[feature_rows(reads, part)] for part in parts)


def _rows_of(mask: Tensor, several: Tensor | None) -> int:
    """Number of rows of features of the images in a mask."""
    return int(mask.sum() if several is None else several[mask].sum())


class _CaptureProgress:
    """Reports how many images have been captured, over all sources; cached features count too."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self._total, self._done, self._before = progress, total, 0, 0
        self._report()

    def count(self, parts: Iterator[Tensor]) -> Iterator[Tensor]:
        """Pass the parts through and report each of them."""
        for part in parts:
            self._done += len(part)
            self._report()
            yield part

    def finish_source(self, rows: int) -> None:
        """Report that all `rows` images of one source are done."""
        self._before += rows
        if self._done != self._before:
            self._done = self._before
            self._report()

    def _report(self) -> None:
        self.progress(Event("capture features", self._done, self._total, images=1))


class _Teacher:
    """A frozen source as a teacher; its network is built on the device at the first use."""

    def __init__(
        self,
        source: Source,
        pixels: Callable[[], Feed],
        hardware: Hardware,
        device: torch.device,
        fresh: bool = False,
    ) -> None:
        """fresh: for the new images of a step, in the precision of the student."""
        self._source, self._pixels, self._hardware, self._device = source, pixels, hardware, device
        self._fresh = fresh
        self._bf16 = hardware.precision == "bf16" or (fresh and hardware.bf16(device))

    @cached_property
    def _network(self) -> nn.Module:
        found = teacher_network(self._source, self._device)
        return rounded(found) if self._bf16 else found

    @cached_property
    def _call(self) -> Callable[[Inputs], Tensor]:
        compiled = self._fresh and self._device.type == "cuda"
        return self._hardware.compiled(self._network) if compiled else self._network

    @property
    def width(self) -> int:
        """Size of the outputs."""
        layout = self._source.layout
        return self._source.arch.features if layout is None else layout.size

    def __call__(self, rows: Tensor) -> Tensor:
        """Features of the images `rows`, computed now, for use inside a training step."""
        # Tensors of inference mode may not enter a graph.
        return torch.cat(list(self._of_rows(rows, torch.no_grad)))

    def run(self, pixels: Inputs) -> Tensor:
        """Features of new images, computed now, for use inside a training step."""
        return torch.cat(list(self._of_batches(split(pixels, self._hardware.eval_batch), torch.no_grad)))

    def parts(self, rows: Tensor) -> Iterator[Tensor]:
        """Features of the images `rows` in host memory, in order, a batch at a time."""
        return to_host(self._of_rows(rows, torch.inference_mode))

    def _of_rows(self, rows: Tensor, mode: Callable[[], AbstractContextManager[None]]) -> Iterator[Tensor]:
        pixels = self._pixels()
        return self._of_batches((pixels[part] for part in torch.split(rows, self._hardware.eval_batch)), mode)

    def _of_batches(
        self, batches: Iterable[Inputs], mode: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[Tensor]:
        call = self._call
        for batch in batches:
            # Its own context, so that the autocast of a training step does not apply to the targets.
            with mode(), torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
                features = call(batch).float()
            yield features

    def key(self, digests: Sequence[bytes]) -> str:
        """Cache key of the features of images with these digests."""
        own = self._source.family, self._source.arch, self._source.weights
        images = hashlib.sha256(b"".join(digests)).hexdigest()
        images += "" if self._source.reads == "pooled" else " with tokens"
        return feature_key([own], images, __name__, self._hardware, self._device, self._bf16)


@dataclass(frozen=True)
class _FeatureTable:
    """Captured features; position: of every image in the table, in host memory like all rows.

    reads: rows of features of every image there (None: one each).
    """

    table: Feed
    position: Tensor
    reads: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        found: Tensor = self.table[feature_rows(self.reads, self.position[rows])]
        return found


def _table(
    teacher: _Teacher, rows: Tensor, size: int, digests: Sequence[bytes], counter: _CaptureProgress
) -> Tensor:
    """Features of the images `rows`: memory-mapped with digests and a writable cache, otherwise in memory.

    size: number of their rows of features.
    """
    shape = size, teacher.width
    if digests and len(rows):
        key = teacher.key([digests[row] for row in rows.tolist()])
        found = try_cached_table(key, shape, lambda: counter.count(teacher.parts(rows)), counter.progress)
        if found is not None:
            return found
    table, start = torch.empty(shape), 0
    for part in counter.count(teacher.parts(rows)):
        table[start : start + len(part)] = part
        start += len(part)
    return table


def _digests(pixels: Inputs) -> list[bytes]:
    """SHA-256 of the content of every input (of an image: its pixels and its shape)."""
    if not isinstance(pixels, Tensor):
        return [hashlib.sha256(content(item)).digest() for item in pixels]
    start = hashlib.sha256(f"{tuple(pixels.shape[1:])} {pixels.dtype}".encode())
    found = []
    for image in pixels:
        digest = start.copy()
        digest.update(image.contiguous().numpy().data)
        found.append(digest.digest())
    return found
