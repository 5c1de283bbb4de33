"""The definition of an architecture family, and the compilation of its table for one model."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures.ports import (
    FIXED,
    Axis,
    HeadSpace,
    Norm,
    Port,
    Role,
    Spec,
    Stack,
    compile_role,
    ports_of,
)
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.wording import Word


class Arch(Protocol):
    """The options of one architecture: a frozen dataclass with at least input size and feature width."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height, width of the input image (pixels)."""

    @property
    def features(self) -> int:
        """Width of the returned features (units)."""


@dataclass(frozen=True)
class Table:
    """The specification of one model.

    tensors: tensor name -> axes. `{i}` stands for a layer, `{i-1}` for the one before, `{last}` for the last.
    features: what task heads read, the port of the features, or one for each of their equal parts (the features of
    several tokens side by side), all of one space. heads: the spaces that consist of attention heads.
    """

    tensors: Mapping[str, Spec]
    features: Axis
    heads: Mapping[str, HeadSpace] = field(default_factory=dict)


Kind = Literal["image", "text"]

Sample = Callable[[Any, int, torch.Generator | None], Inputs]


def random_pixels(arch: Any, count: int, random: torch.Generator | None) -> Tensor:
    """Images [count, C, H, W] of random pixels in 0..1; without a generator on the meta device."""
    if random is None:
        return torch.empty(count, *arch.input_size, device="meta")
    return torch.rand(count, *arch.input_size, generator=random)


@dataclass(frozen=True)
class Folding:
    """How the files of a family differ from its networks in memory: BatchNorm in a convolution, or fused layers.

    read: options, tensors of a file -> weights in memory; what does not fit is returned unchanged. write: options,
    weights in memory, and by convolution the mean and variance [C] of its output without bias (none: 0 and 1) ->
    tensors of a file, of the same function. norms: names of the convolutions with a BatchNorm behind them, in the
    order of the forward pass.
    """

    read: Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]
    write: Callable[[Any, Mapping[str, Tensor], Mapping[str, tuple[Tensor, Tensor]]], dict[str, Tensor]]
    norms: Callable[[Any], Sequence[str]] = lambda arch: ()


def plain_pixels(arch: Any) -> dict[str, Any]:
    """Keys of pretrained_cfg for a network of one image size that takes pixels in 0..1."""
    channels = arch.input_size[0]
    return {"fixed_input_size": True, "mean": [0.0] * channels, "std": [1.0] * channels}


Library = Literal["timm", "transformers", "plain"]
"""Whose layout files have; plain: torch and safetensors."""

Classifier = Callable[[Any, Mapping[str, Tensor], Tensor, Tensor], tuple[dict[str, Any], dict[str, Tensor]]]

Resample = Callable[[Any, Mapping[str, Tensor], tuple[int, int], str], tuple[Any, dict[str, Tensor]]]


@dataclass(frozen=True, repr=False)
class Family:
    """An architecture family; every field is a value or a function of the options (`arch`).

    name: key in SPECS. arch: the dataclass of its options. build: an ordinary module without a task head, inputs
    (images [n, C, H, W]) -> features [n, d]. resize: options, width, heads -> options of the merged model. table:
    the specification, for an instance (on the meta device). entry: name of the first module, whose input are
    pixels. signature: properties that have to be equal in all sources, by the name used in messages. config:
    `architecture` and `model_args` of config.json. parse: name, given options, the checkpoint's config.json and
    the location for messages -> options. snippet: Python that loads a merged model without this package and
    computes `logits` of `images`; it contains the given lines, which define `head` from `heads`. head: name of
    the task head's module inside a checkpoint; None if that module belongs to the backbone. refuse: reasons why a
    model cannot be merged. heads: number of attention heads. own_heads: of the spaces that have another number, by
    name. positions: name of the position embeddings, into
    which a constant shift can be folded if the entry has no bias, and their first patch row. blocks: names of the
    modules of an instance whose activations can be recomputed in the backward pass. pooling: name of the module of
    attention pooling. tokens: name of the module whose output [n, T, d] are the tokens before the pooling, and the
    number of those before the patches. grid: rows and columns of the patches of an instance. layers: names of the
    modules, in order, whose outputs ([n, ..., d], or feature maps [n, d, h, w]) are the features of each layer.
    adapt: changes to an instance after `build`. describe: a third-party instance -> options (None: another family,
    or not inferable). resample: options, weights, (height, width) and location for messages -> options and weights
    for that image size (None: not possible). deepen: options, number of blocks -> options with so many (None: its
    blocks do not add to a stream unchanged). classifier: options, weights, weight and bias of a classifier ->
    `architecture` and `model_args` of a config.json and the tensors of the whole model, as timm runs it (None: it
    has no such model). kind: of input that it reads. post_norm: whether its blocks normalise the residual stream
    after every sum. activated_features: whether features with a space of their own lie behind an activation.
    unitwise_stream: whether operations on single units act on the stream (an activation behind
    every sum, or every layer where there is none; depthwise convolutions), so that a merged unit is one of a
    source. sums: the last layers of the residual blocks of an instance whose output is added to the stream
    unchanged, and the module whose input is that sum, or the block whose output it is. widths: the present
    widths as a list that `resize` takes (None: it takes one number). sample:
    options, number and generator -> random inputs (without a generator on the meta device). folding: where its
    files differ from its networks in memory (None: nowhere). normalise: options, mean and std per channel ->
    options of a network that normalises pixels itself (None: both are folded into the first layer). pixels: keys
    of pretrained_cfg on the pixels that timm's model of the written file takes. library: whose layout its files
    have; with timm, `arch.name` is a name of it. writes_features: whether its files have heads that put out the
    features, because its network without classes has others in that library.
    """

    name: str
    arch: type[Any]
    build: Callable[[Any], nn.Module]
    resize: Callable[[Any, Any, Any], Any]
    table: Callable[[nn.Module], Table]
    entry: str
    signature: Callable[[Any], Mapping[str, Any]]
    config: Callable[[Any], dict[str, Any]]
    parse: Callable[[str, Mapping[str, Any], Mapping[str, Any], str], Any]
    snippet: Callable[[Any, str], str]
    head: Callable[[Any], str | None] = lambda arch: "head"
    refuse: Callable[[Any], Sequence[str]] = lambda arch: ()
    heads: Callable[[Any], int | None] = lambda arch: None
    own_heads: Callable[[Any], Mapping[str, int]] = lambda arch: {}
    positions: Callable[[Any], tuple[str, int] | None] = lambda arch: None
    blocks: Callable[[nn.Module], Sequence[str]] = lambda module: ()
    pooling: Callable[[nn.Module], str | None] = lambda module: None
    tokens: Callable[[nn.Module], tuple[str, int] | None] = lambda module: None
    grid: Callable[[nn.Module], tuple[int, int] | None] = lambda module: None
    layers: Callable[[nn.Module], Sequence[str]] = lambda module: ()
    adapt: Callable[[nn.Module, Any], nn.Module] = lambda module, arch: module
    describe: Callable[[nn.Module], Any] = lambda module: None
    resample: Resample | None = None
    deepen: Callable[[Any, int], Any] | None = None
    classifier: Classifier | None = None
    kind: Kind = "image"
    post_norm: bool = False
    activated_features: bool = False
    unitwise_stream: bool = False
    sums: Callable[[nn.Module], Mapping[str, str]] = lambda module: {}
    widths: Callable[[Any], tuple[int, ...] | None] = lambda arch: None
    sample: Sample = random_pixels
    folding: Folding | None = None
    normalise: Callable[[Any, tuple[float, ...], tuple[float, ...]], Any] | None = None
    pixels: Callable[[Any], dict[str, Any]] = plain_pixels
    library: Library = "plain"
    writes_features: Callable[[Any], bool] = lambda arch: False

    def __repr__(self) -> str:
        """Its name."""
        return f"Family({self.name})"

    def stated(self, arch: Any) -> dict[str, Any]:
        """What config.json states of `arch`: the architecture, and the pixels that timm's model takes."""
        return {**self.config(arch), **(self.pixels(arch) if self.kind == "image" else {})}

    def counted(self, arch: Any) -> Word:
        """What the counts of a test count: inputs, or the words of texts that are classified one by one."""
        of_words = self.kind == "text" and getattr(arch, "pooling", None) == "tokens"
        return "word" if of_words else self.kind

    def had_batchnorm(self, arch: Any) -> bool:
        """Whether its networks in memory have convolutions that contain a BatchNorm of the files."""
        return self.folding is not None and bool(self.folding.norms(arch))

    def from_file(self, arch: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights in memory of the tensors of a file."""
        return dict(tensors) if self.folding is None else self.folding.read(arch, tensors)

    def to_file(
        self, arch: Any, weights: Mapping[str, Tensor], statistics: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors of a file of the weights in memory; statistics: see `Folding`."""
        return dict(weights) if self.folding is None else self.folding.write(arch, weights, statistics)

    def skeleton(self, arch: Any) -> nn.Module:
        """The network of `arch` without weights (on the `meta` device), in evaluation mode."""
        key = self.name, repr(arch)
        if key not in _skeletons:
            if len(_skeletons) >= CACHED_SKELETONS:
                _skeletons.clear()
            with torch.device("meta"):
                _skeletons[key] = self.adapt(self.build(arch).eval(), arch)
        return copy.deepcopy(_skeletons[key])  # five times as fast as building it again


CACHED_SKELETONS = 32
"""Maximal number of cached skeletons; they have no weights."""

_skeletons: dict[tuple[str, str], nn.Module] = {}


@dataclass(frozen=True)
class Compiled:
    """A table compiled for one model: roles by tensor name, unknown names, ports of the features, head spaces."""

    roles: Mapping[str, Role]
    unknown: tuple[str, ...]
    features: tuple[Port, ...]
    heads: Mapping[str, HeadSpace]


def compile_table(table: Table, names: Sequence[str]) -> Compiled:
    """Fill in the indices of `table` for a model with the tensors `names`."""
    entries = {name: _find(table.tensors, name) for name in names}
    indices = [found[1] for found in entries.values() if found is not None and found[1] is not None]
    last = max(indices, default=0)
    roles: dict[str, Role] = {}
    unknown = []
    for name, found in entries.items():
        if found is None:
            unknown.append(name)
        else:
            roles[name] = compile_role(_fill(found[0], found[1], last))
    heads = {
        _format(space, i, last): replace(head, order=_format(head.order, i, last))
        for i in sorted(set(indices))
        for space, head in table.heads.items()
    }
    features = ports_of(_fill_axis(table.features, None, last))
    return Compiled(roles, tuple(unknown), features, heads)


def _find(tensors: Mapping[str, Spec], name: str) -> tuple[Spec, int | None] | None:
    if name in tensors:
        return tensors[name], None
    for template, spec in tensors.items():
        match = re.fullmatch(re.escape(template).replace(r"\{i\}", r"(\d+)"), name)
        if match and match.groups():
            return spec, int(match.group(1))
    return None


def _fill(spec: Spec, index: int | None, last: int) -> Spec:
    if isinstance(spec, Norm):
        return Norm(_format(spec.port, index, last), spec.fill, spec.trainable, spec.per_head)
    if isinstance(spec, tuple):
        return tuple(_fill_axis(axis, index, last) for axis in spec)
    return spec


def _fill_axis(axis: str | Stack, index: int | None, last: int) -> str | Stack:
    if isinstance(axis, Stack):
        return Stack(tuple(_format(port, index, last) for port in axis.ports))
    return axis if axis == FIXED else _format(axis, index, last)


def _format(text: str, index: int | None, last: int) -> str:
    values = {"last": str(last)}
    if index is not None:
        values |= {"i": str(index), "i-1": str(index - 1)}
    return text.format_map(values)
