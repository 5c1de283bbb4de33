"""One entry of `models.sources`: the description of a trained model."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.options import (
    FORBID,
    BatchSize,
    Count,
    FiniteFloat,
    Flag,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Text,
)

Reads = Literal["pooled", "tokens", "both"]

MATCH: Literal["match"] = "match"
"""Value of `depth`: that of the deepest source."""

LONGEST_NAME = 80
"""Maximal number of characters of a task name, which is part of file names."""


@dataclass(frozen=True, config=FORBID)
class Recipe:
    """How an embedded source is trained on first use.

    data: name of the data set. seed: of initialisation and batches. steps, batch_size (images), lr, weight_decay:
    of AdamW with a one-cycle schedule. start: keys of another entry with a recipe, whose weights are fine-tuned
    (null: random weights).
    """

    data: Text
    seed: Count
    steps: Positive = 800
    batch_size: BatchSize = 64
    lr: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 1e-2
    start: dict[str, Any] | None = None


@dataclass(frozen=True, config=FORBID)
class SourceSpec:
    """One entry of `models.sources`.

    name: the task's name. arch: a timm name, or `{family: ..., options}`; null uses that of the checkpoint.
    checkpoint: a folder (config.json + model.safetensors [+ heads.safetensors]) or a file of weights; null with a
    timm name uses the hub's weights. head: name of the head inside the checkpoint; null uses the only one (in a
    merged folder: all, each as a separate task). labels: class names in the order of the head's rows; or a file of
    them (.txt, one per line, or .json), `data` for the names of the class folders sorted as text, `data_numeric`
    for those sorted as numbers, or the name of a label set of the recipe's data set; null uses those of the
    checkpoint; of a source without a head the classes of its images, which a linear probe is to tell (null: no
    probe). mean, std: per channel, of the normalisation that the source was trained with (pixels in 0..1); null
    uses the checkpoint's. normalize: whether the head is applied to features of unit length (as in CLIP); null
    uses the checkpoint's. recipe: how to train the source if there is no checkpoint. prefix: of the tensors in a
    file that contains several models. ema: true uses exponentially averaged weights, false ordinary ones, null
    ordinary ones if there are any. input_size: height and width (pixels; one number for a square) to which the
    position embeddings are resampled, which is not exact; null keeps the source's own. depth: number of blocks of
    a vision transformer, which gets further ones that change nothing, to be as deep as the others (match: as the
    deepest source); null keeps its own. reads: what of a vision transformer counts in trainings and in the closed
    form: its pooled features (pooled, what null stands for), its patch tokens (tokens) or both. base: where
    `checkpoint` is a LoRA adapter of PEFT, the model that it was trained on (a folder, a file or a timm name with
    weights); null: it is no adapter. tokenizer: of a text encoder, the folder of its tokenizer, in Python also a
    tokenizer of transformers or of the library tokenizers; null: beside the weights. module: only in Python, a
    torch module instead of a checkpoint; it is never changed. loaded: only in Python, what `load_source` returned,
    with no other key but the name.
    """

    name: Text
    arch: Text | dict[str, Any] | None = None
    checkpoint: Text | None = None
    head: Text | None = None
    labels: Text | tuple[Text, ...] | None = None
    mean: tuple[FiniteFloat, ...] | None = None
    std: tuple[FiniteFloat, ...] | None = None
    normalize: Flag | None = None
    recipe: Recipe | None = None
    prefix: Text | None = None
    ema: Flag | None = None
    input_size: Positive | tuple[Positive, Positive] | None = None
    depth: Positive | Literal["match"] | None = None
    reads: Reads | None = None
    base: Text | None = None
    tokenizer: Any = None
    module: Any = None
    loaded: Any = None

    def __post_init__(self) -> None:
        """Validate the name, which is used in folder and tensor names and on the terminal, and the module."""
        plain = self.name.isprintable() and not set(self.name) & set("/\\") and self.name == self.name.strip()
        if not plain or not 0 < len(self.name) <= LONGEST_NAME or self.name.startswith("."):
            raise ValueError(
                f"the task name {self.name[: 2 * LONGEST_NAME]!r} cannot be used: it becomes part of file and "
                f"tensor names. Pass models.sources.N.name=... of 1 to {LONGEST_NAME} printable characters, "
                "without / and \\, not starting with a dot, without spaces at either end."
            )
        if self.base is not None and self.checkpoint is None:
            raise ValueError(
                f"source '{self.name}' has a base but no checkpoint. Pass the folder of the adapter as its "
                "checkpoint, or remove the base."
            )
        if self.tokenizer is not None and not (isinstance(self.tokenizer, str) or _is_tokenizer(self.tokenizer)):
            raise ValueError(
                f"source '{self.name}': tokenizer should be a folder, or in Python a tokenizer of transformers or "
                f"of the library tokenizers, not {str(self.tokenizer)[:80]!r}."
            )
        if self.loaded is not None:
            self._check_loaded()
        if self.module is None:
            return
        if not hasattr(self.module, "state_dict"):
            raise ValueError(
                f"source '{self.name}': module has to be a torch module, passed from Python, not "
                f"{str(self.module)[:80]!r}. Pass a path: models.sources.N.checkpoint=..."
            )
        if self.checkpoint is not None:
            raise ValueError(f"source '{self.name}' has both a checkpoint and a module. Remove one of them.")

    def _check_loaded(self) -> None:
        if not all(hasattr(self.loaded, part) for part in ("family", "arch", "weights", "origin")):
            raise ValueError(
                f"source '{self.name}': loaded has to be what load_source returned, not {str(self.loaded)[:80]!r}."
            )
        others = [own.name for own in fields(self) if own.name not in ("name", "loaded")]
        if given := [name for name in others if getattr(self, name) is not None]:
            raise ValueError(
                f"source '{self.name}' is loaded already, so {given[0]} has no effect. Pass it to load_source."
            )

    @property
    def tokenizer_path(self) -> str | None:
        """The folder of the tokenizer, where it is given as one."""
        return self.tokenizer if isinstance(self.tokenizer, str) else None

    def options(self) -> dict[str, Any]:
        """The entry as plain values; a module is represented by its class, a loaded source by its origin."""
        found = asdict(replace(self, module=None, loaded=None, tokenizer=self.tokenizer_path))
        if self.tokenizer is not None and self.tokenizer_path is None:
            found["tokenizer"] = type(self.tokenizer).__qualname__
        plain = {name: value for name, value in found.items() if name not in ("module", "loaded")}
        if self.loaded is not None:
            return {**plain, "loaded": self.loaded.origin}
        return plain if self.module is None else {**plain, "module": type(self.module).__qualname__}


def _is_tokenizer(value: Any) -> bool:
    return hasattr(value, "save_pretrained") or hasattr(value, "to_str")
