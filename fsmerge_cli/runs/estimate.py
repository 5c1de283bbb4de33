"""What a run will need, from models without weights: peak memory on the CPU, operations and seconds.

The memory is the largest of three moments. All of them hold the interpreter with its libraries, the sources (k
networks of n numbers, 4 bytes each: mapped files count once they were read), the images and their kept features:

- training: t trained numbers with gradient and two moments of AdamW (16 t; the one moment and the products of Muon
  are no more), the best step's copy (4 t, where
  images are held back), the activations that the network keeps for its gradient (counted on the meta device, times
  the batch; with checkpointing one block's and the blocks' inputs). FS-Merge adds folded weights and their
  gradient (8 n; with checkpointing one block's) and, where maps are multiplied out, W U of each source (4 k n).
- evaluation: the average and the merged model (8 n), the maps (4 t), the activations of one layer for a batch of
  `hardware.eval_batch` images.
- certificates: the merged model in fp32 and in fp64 (12 n), its file (4 n), the maps (4 t), and in fp64 one layer
  of all sources side by side between the maps.

What a run imports later than a check, and the buffers of its first products, are LATER bytes (measured).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fsmerge_cli.alignment.matching import matches
from fsmerge_cli.alignment.statistics import places
from fsmerge_cli.architectures.ports import Mapped, Unit
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.data.draw import FEWEST_FOR_VALIDATION
from fsmerge_cli.evaluation.certificates import IMAGES
from fsmerge_cli.methods.base import Method, Trained
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation
from fsmerge_cli.models.plan import Plan, Space

BASE = 700_000_000
"""Bytes of the interpreter and the libraries where the system does not say."""

LATER = 140_000_000
"""Bytes of what is loaded and set up only while a merge runs, as measured with the digits MLPs."""

PROBE_SIZE, PROBE_SECONDS = 768, 0.1


@dataclass(frozen=True)
class Workload:
    """Images per task that a merge may see, their views included; test images per task; images of no task."""

    train: tuple[int, ...]
    test: tuple[int, ...]
    others: int = 0

    @property
    def seen(self) -> int:
        """All images that a merge may see."""
        return sum(self.train) + self.others


@dataclass(frozen=True)
class Network:
    """One network of the merged size.

    numbers: in its weights. kept: bytes that its forward pass keeps for the gradient, per image; block: of those,
    the largest block's; inputs: bytes of all blocks' inputs. widest: bytes per image of the widest layer's input
    and output. operations: of a forward pass of one image.
    """

    numbers: int
    kept: int
    block: int
    inputs: int
    widest: int
    operations: int
    blocks: int


def measure(plan: Plan) -> Network:
    """Count on the meta device, where nothing is computed."""
    module = plan.skeleton().requires_grad_(True)
    names = list(plan.family.blocks(module))
    own = {p.untyped_storage()._cdata for p in [*module.parameters(), *module.buffers()]}
    image = torch.empty(1, *plan.arch.input_size, device="meta")
    sizes: list[int] = []
    block: list[tuple[int, int]] = []  # of every block: bytes kept before it, bytes of its input
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Fused attention keeps no [tokens, tokens] map, though torch multiplies it out without a device.
        square = tensor.ndim > 2 and tensor.shape[-1] == tensor.shape[-2]
        if not square and tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def total() -> int:
        return sum(t.untyped_storage().nbytes() for t in kept.values())

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.append(given[0].nbytes + output.nbytes)

    def enter(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        block.append((total(), given[0].nbytes))

    hooks = [m.register_forward_hook(note) for m in module.modules() if not list(m.children())]
    hooks += [module.get_submodule(name).register_forward_pre_hook(enter) for name in names]
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        module(image)
    for hook in hooks:
        hook.remove()
    ends = [start for start, _ in block[1:]] + [total()]
    return Network(
        numbers=sum(p.numel() for p in module.parameters()),
        kept=total(),
        block=max((end - start for (start, _), end in zip(block, ends)), default=0),
        inputs=sum(size for _, size in block),
        widest=max(sizes),
        operations=counter.get_total_flops(),
        blocks=len(names),
    )


def trainable_parameters(plan: Plan, method: Method, network: Network) -> int:
    """How many numbers a method trains: a student with its projectors, or the maps of all ports."""
    k = len(plan.tasks)
    if isinstance(method, Distillation):
        projectors = sum(own * plan.arch.features for own in plan.spaces[plan.features.space].sources)
        return network.numbers + (projectors if method.projector == "linear" else 0)
    if not isinstance(method, FSMerge):
        return 0
    spaces = [plan.spaces[port.space] for port in [*plan.writes, *plan.reads]]
    maps = sum(_map_numbers(space, i, method, plan.arch.features) for space in spaces for i in range(k))
    return maps + sum(plan.spaces[r.port.space].merged for r in plan.roles.values() if isinstance(r, Unit))


def _map_numbers(space: Space, source: int, method: FSMerge, features: int) -> int:
    own, merged = space.sources[source], space.merged
    if method.maps == "heads" and space.heads is not None:
        heads = space.heads[0]
        return heads * (merged // heads) ** 2 + heads**2
    if method.maps == "full":
        return own * merged
    rank = 0 if method.maps == "diagonal" else _rank(space, method, features)
    return min(own, merged) + rank * (own + merged)


def _rank(space: Space, method: FSMerge, features: int) -> int:
    return min(max(1, round(method.rank * space.merged / features)), space.merged, *space.sources)


def peak_memory(
    plan: Plan, sources: Sequence[int], method: Method, hardware: Hardware, work: Workload, network: Network
) -> int:
    """Bytes of resident memory at the highest point of a merge on the CPU that is evaluated and written.

    sources: bytes of each source in memory. Within 30 % of the real peak in the tests; see the module's text.
    """
    n, k, t = network.numbers, len(plan.tasks), trainable_parameters(plan, method, network)
    images = work.seen
    pixels = 4 * images * torch.Size(plan.arch.input_size).numel()
    wants = images * k if isinstance(method, Trained) and method.targets == "all" else images
    features = 4 * wants * plan.arch.features if isinstance(method, Trained) else 0
    always = resident() + LATER + sum(sources) + pixels + features
    reordered = reorders(plan, method, images)
    passing = network.widest * min(hardware.eval_batch, max([1, work.others, *work.train]))
    fit = max(
        _training(plan, method, hardware, work, network, t) + (4 * n * (k - 1) if reordered else 0),
        passing if isinstance(method, Trained) else 4 * n,
        _statistics(plan, False) if reordered else 0,
    )
    testing = network.widest * min(hardware.eval_batch, max(work.test, default=0))
    evaluation = 8 * n + 4 * t + testing if any(work.test) else 0
    certificates = 16 * n + 4 * t + 2 * network.widest * IMAGES * (k + 2)
    return always + max(fit, evaluation, certificates)


def reorders(plan: Plan, method: Method, images: int) -> bool:
    """Whether a training begins with reordered copies of all sources but the first."""
    return isinstance(method, Distillation | FSMerge) and method.start == "matched" and matches(plan, images)


def _statistics(plan: Plan, whole: bool) -> int:
    """Of the correlations of all units, or of source 1's with all: sums of every place, and a few at the end."""
    k = len(plan.tasks)
    sums = [8 * (k if whole else 1) * k * plan.spaces[place.space].merged ** 2 for place in places(plan)]
    return sum(sums) + 3 * max(sums)


def _training(plan: Plan, method: Method, hardware: Hardware, work: Workload, network: Network, t: int) -> int:
    if not isinstance(method, Trained):
        if not method.uses_images:
            return 0
        inputs = len(plan.tasks) * sum(8 * space.merged**2 for space in plan.spaces.values())  # RegMean's Grams
        return max(_statistics(plan, method.name == "zipit"), inputs) + 8 * network.numbers
    n, k = network.numbers, len(plan.tasks)
    held = min(work.train, default=0) >= FEWEST_FOR_VALIDATION
    batch = method.images_per_step(work.seen)
    again = hardware.checkpointing and network.blocks > 0
    activations = batch * (network.inputs + network.block if again else network.kept)
    share = 1 / network.blocks if again else 1.0
    fold = 0.0
    if isinstance(method, FSMerge):
        thin = method.maps in ("low_rank", "diagonal")
        fold = share * (8 * n + (0 if thin else 4 * k * n))
    return int((20 if held else 16) * t + activations + fold)


def operations(plan: Plan, method: Method, work: Workload, network: Network) -> float:
    """Floating-point operations of a whole run: features, training, folds, evaluation."""
    k, images = len(plan.tasks), work.seen
    rows = k + (1 if method.name == "average" else 2)
    forward = float(network.operations)
    total = forward * sum(work.test) * rows + forward * IMAGES * (k + 2) * 2
    if method.uses_images:
        total += forward * images * (k if getattr(method, "targets", "own") == "all" else 1)
    if reorders(plan, method, images):
        total += forward * images * k
    if isinstance(method, Trained):
        batch = method.images_per_step(work.seen)
        step = 3 * forward * batch
        if method.view_options.fresh:  # the sources answer at every step
            step += forward * batch * (k if method.targets == "all" else 1)
        if isinstance(method, FSMerge):
            step += k * sum(_fold_operations(plan, name, method) for name in plan.roles)
        total += method.total_steps * step
    return total


def _fold_operations(plan: Plan, name: str, method: FSMerge) -> float:
    """Of one weight and source, forward and backward; docs/how-cost-grows.md counts them."""
    role = plan.roles[name]
    if not isinstance(role, Mapped) or role.read is None:
        return 0.0
    writes, reads = ([plan.spaces[p.space] for p in side[1]] for side in (role.write, role.read))
    out, into = sum(s.merged for s in writes), sum(s.merged for s in reads)
    if method.maps == "full":
        return out * into * (4.0 * reads[0].merged + 6.0 * writes[0].merged)
    ranks = [
        0 if method.maps == "diagonal" else _rank(s, method, plan.arch.features) for s in (reads[0], writes[0])
    ]
    return out * into * (10.0 * sum(ranks) + 8.0)


def throughput(device: torch.device) -> float:
    """Floating-point operations per second of a product of two matrices on `device`, measured for a moment."""
    matrix = torch.randn(PROBE_SIZE, PROBE_SIZE, device=device)
    matrix @ matrix
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < PROBE_SECONDS:
        product = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 1
    del product
    return 2.0 * PROBE_SIZE**3 * count / (time.perf_counter() - start)


def resident() -> int:
    """Resident memory of this process now, in bytes: after the imports, that is the interpreter and libraries."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return BASE
