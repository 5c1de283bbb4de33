"""Cost estimates from models without weights: peak memory on the CPU, operations and seconds.

The peak is the largest of three phases. All of them hold the interpreter with its libraries, the sources (k
networks of n parameters, 4 bytes each; a mapped file counts once it is read), the images and their stored
features:

- training: t trainable parameters with gradient and two moments of AdamW (16 t; the one moment and the products of
  Muon need no more), a copy of the best step (4 t, with a validation share), and the activations that the network
  stores for the backward pass (counted on the meta device, times the batch; with checkpointing those of one block
  and the inputs of all blocks). FS-Merge adds the folded weights and their gradient (8 n; with checkpointing those
  of one block) and, for maps that are multiplied out, W U of each source (4 k n).
- evaluation: the average and the merged model (8 n), the maps (4 t), and the activations of one layer for a batch
  of `hardware.eval_batch` images.
- certificates: the merged model in fp32 and in fp64 (12 n), its file (4 n), the maps (4 t), and in fp64 one layer
  of all sources concatenated between the maps.

The closed form has a module of its own (`closed_form_cost`).

LATER is the measured size of what a merge imports and a check does not, and of the buffers of its first products.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fsmerge_cli.alignment.matching import can_match
from fsmerge_cli.alignment.statistics import places
from fsmerge_cli.architectures.ports import Mapped, Unit
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.data.draw import MIN_FOR_VALIDATION
from fsmerge_cli.evaluation.certificates import IMAGES
from fsmerge_cli.methods.base import Method, Trained
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation
from fsmerge_cli.methods.starts import REORDERED, training_before
from fsmerge_cli.methods.straight_through import StraightThrough
from fsmerge_cli.models.plan import Plan, Space
from fsmerge_cli.runs import closed_form_cost, gradient_cost

BASE = 700_000_000
"""Bytes of the interpreter and the libraries, on systems that do not report them."""

LATER = 140_000_000
"""Bytes of what is imported and allocated only while a merge runs, measured with the digits MLPs."""

PROBE_SIZE, PROBE_SECONDS = 768, 0.1


@dataclass(frozen=True)
class Workload:
    """Images per task that a merge may use, test images per task, and auxiliary unlabelled images."""

    train: tuple[int, ...]
    test: tuple[int, ...]
    auxiliary: int = 0

    @property
    def images(self) -> int:
        """All images that a merge may use."""
        return sum(self.train) + self.auxiliary


@dataclass(frozen=True)
class Network:
    """One network of the merged size.

    parameters: their number. stored: bytes that the forward pass stores for the gradient, per image; block: the
    part of the largest block; inputs: bytes of the inputs of all blocks. widest: bytes per image of the input and
    output of the widest layer. operations: of a forward pass of one image. blocks: their number.
    """

    parameters: int
    stored: int
    block: int
    inputs: int
    widest: int
    operations: int
    blocks: int


def measure(plan: Plan) -> Network:
    """Measure a network of the merged size on the meta device, where nothing is computed."""
    module = plan.skeleton().requires_grad_(True)
    names = list(plan.family.blocks(module))
    own = {p.untyped_storage()._cdata for p in [*module.parameters(), *module.buffers()]}
    image = plan.family.sample(plan.arch, 1, None)
    sizes: list[int] = []
    block: list[tuple[int, int]] = []  # of every block: bytes stored before it, bytes of its input
    stored: dict[int, Tensor] = {}

    def store(tensor: Tensor) -> Tensor:
        # Fused attention stores no [tokens, tokens] map, but torch computes it on the meta device.
        square = tensor.ndim > 2 and tensor.shape[-1] == tensor.shape[-2]
        if not square and tensor.untyped_storage()._cdata not in own:
            stored[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def total() -> int:
        return sum(t.untyped_storage().nbytes() for t in stored.values())

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.append(args[0].nbytes + output.nbytes)

    def record_block(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        block.append((total(), args[0].nbytes))

    hooks = [m.register_forward_hook(record) for m in module.modules() if not list(m.children())]
    hooks += [module.get_submodule(name).register_forward_pre_hook(record_block) for name in names]
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(store, lambda t: t):
        module(image)
    for hook in hooks:
        hook.remove()
    ends = [start for start, _ in block[1:]] + [total()]
    return Network(
        parameters=sum(p.numel() for p in module.parameters()),
        stored=total(),
        block=max((end - start for (start, _), end in zip(block, ends)), default=0),
        inputs=sum(size for _, size in block),
        widest=max(sizes),
        operations=counter.get_total_flops(),
        blocks=len(names),
    )


def trainable_parameters(plan: Plan, method: Method, network: Network) -> int:
    """The number of trainable parameters: a student with its projectors, or the maps of all ports."""
    k = len(plan.tasks)
    if isinstance(method, Distillation):
        projectors = sum(own.features * plan.arch.features for own in plan.source_archs)
        return network.parameters + (projectors if method.projector == "linear" else 0)
    if isinstance(method, StraightThrough):
        return (k - 1) * network.parameters
    if not isinstance(method, FSMerge):
        return 0
    spaces = [plan.spaces[port.space] for port in [*plan.writes, *plan.reads]]
    maps = sum(_map_parameters(space, i, method, plan.width) for space in spaces for i in range(k))
    state: Mapping[str, Tensor] = plan.skeleton().state_dict()
    return maps + sum(state[name].numel() for name, role in plan.roles.items() if isinstance(role, Unit))


def _map_parameters(space: Space, source: int, method: FSMerge, features: int) -> int:
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
    """Peak resident memory in bytes of a merge on the CPU, with its evaluation and certificates.

    sources: bytes of each source in memory. Within 30 % of the measured peak in the tests; see the module
    docstring.
    """
    solved, method = closed_form_cost.parts(method)
    n, k, t = network.parameters, len(plan.tasks), trainable_parameters(plan, method, network)
    images = work.images
    pixels = images * plan.family.sample(plan.arch, 1, None).nbytes
    target_rows = images * k if isinstance(method, Trained) and method.targets == "all" else images
    features = 4 * target_rows * plan.outputs if isinstance(method, Trained) else 0
    constant = resident() + LATER + sum(sources) + pixels + features + (4 * n if method.uses_base else 0)
    permuted = permutes_sources(plan, method, images)
    capture = network.widest * min(hardware.eval_batch, max([1, work.auxiliary, *work.train]))
    before = training_before(method) or method
    fit = max(
        _training(plan, before, hardware, work, network, trainable_parameters(plan, before, network)),
        _training(plan, method, hardware, work, network, t) + (4 * n * (k - 1) if permuted else 0),
        capture if isinstance(method, Trained) else 4 * n,
        closed_form_cost.memory_of(plan, solved, images, n, hardware.eval_batch) if solved else 0,
        _statistics(plan, False) if permuted else 0,
    )
    test_activations = network.widest * min(hardware.eval_batch, max(work.test, default=0))
    evaluation = 8 * n + 4 * t + test_activations if any(work.test) else 0
    certificates = 16 * n + 4 * t + 2 * network.widest * IMAGES * (k + 2)
    return constant + max(fit, evaluation, certificates)


def permutes_sources(plan: Plan, method: Method, images: int) -> bool:
    """Whether a training starts from permuted copies of all sources but the first."""
    return getattr(method, "start", "") in REORDERED and can_match(plan, images)


def _statistics(plan: Plan, whole: bool) -> int:
    """Bytes of the running sums for correlations of activations, and of temporary copies of the largest.

    whole: between all pairs of sources; else only of source 1 with every source.
    """
    k = len(plan.tasks)
    sums = [8 * (k if whole else 1) * k * plan.spaces[place.space].merged ** 2 for place in places(plan)]
    return sum(sums) + 3 * max(sums)


def _training(plan: Plan, method: Method, hardware: Hardware, work: Workload, network: Network, t: int) -> int:
    if not isinstance(method, Trained):
        needed = gradient_cost.memory(method, network.parameters, len(plan.tasks), network.stored)
        if needed is not None:
            return needed
        if not method.needs_images or isinstance(method, FSClosedForm):
            return 0
        inputs = len(plan.tasks) * sum(8 * space.merged**2 for space in plan.spaces.values())  # RegMean's Grams
        return max(_statistics(plan, method.name in ("zipit", "cca")), inputs) + 8 * network.parameters
    n, k = network.parameters, len(plan.tasks)
    has_validation = min(work.train, default=0) >= MIN_FOR_VALIDATION
    batch = method.images_per_step(work.images)
    recompute = hardware.checkpointing and network.blocks > 0
    activations = batch * (network.inputs + network.block if recompute else network.stored)
    share = 1 / network.blocks if recompute else 1.0
    fold = 0.0
    if isinstance(method, FSMerge):
        low_rank = method.maps in ("low_rank", "diagonal")
        fold = share * (8 * n + (0 if low_rank else 4 * k * n))
    return int((20 if has_validation else 16) * t + activations + fold)


def operations(plan: Plan, method: Method, work: Workload, network: Network) -> float:
    """Floating-point operations of a whole run: teacher features, training, folds, evaluation."""
    solved, method = closed_form_cost.parts(method)
    k, images = len(plan.tasks), work.images
    rows = k + (1 if method.name == "average" else 2)
    forward = float(network.operations)
    total = forward * sum(work.test) * rows + forward * IMAGES * (k + 2) * 2
    if method.needs_images:
        total += forward * images * (k if getattr(method, "targets", "own") == "all" else 1)
    if permutes_sources(plan, method, images):
        total += forward * images * k
    if solved:
        total += closed_form_cost.operations_of(plan, solved, images, forward)
    total += gradient_cost.operations(method, forward, k, images)
    if isinstance(method, Trained):
        batch = method.images_per_step(work.images)
        step = 3 * forward * batch
        if method.view_options.fresh:  # the teachers run at every step
            step += forward * batch * (k if method.targets == "all" else 1)
        if isinstance(method, FSMerge):
            step += k * sum(_fold_operations(plan, name, method) for name in plan.roles)
        total += method.total_steps * step
    if before := training_before(method):
        total += operations(plan, before, replace(work, test=(0,) * len(work.test)), network)
    return total


def _fold_operations(plan: Plan, name: str, method: FSMerge) -> float:
    """Operations of the fold of one weight of one source, forward and backward; see docs/how-cost-grows.md."""
    role = plan.roles[name]
    if not isinstance(role, Mapped) or role.read is None:
        return 0.0
    writes, reads = ([plan.spaces[p.space] for p in side[1]] for side in (role.write, role.read))
    out, into = sum(s.merged for s in writes), sum(s.merged for s in reads)
    if method.maps == "full":
        return out * into * (4.0 * reads[0].merged + 6.0 * writes[0].merged)
    ranks = [0 if method.maps == "diagonal" else _rank(s, method, plan.width) for s in (reads[0], writes[0])]
    return out * into * (10.0 * sum(ranks) + 8.0)


def throughput(device: torch.device) -> float:
    """Floating-point operations per second of a matrix product on `device`, measured for PROBE_SECONDS."""
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
    """Resident memory of this process in bytes: after the imports, that of the interpreter and libraries."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return BASE
