"""Regularisation of a supervised training: mixed images, RandAugment, dropped parts, averaged weights.

Of timm and torchvision; here they are only made to depend on nothing but the seed and the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.inputs import Inputs, pixels_of
from fsmerge_cli.common.seeding import derive, seeded
from fsmerge_cli.training.finetuning_options import TrainingOptions

RANDAUGMENT_OPERATIONS = 2


def randaugmented(pixels: Tensor, magnitude: int, seed: int, step: int) -> Tensor:
    """Images in 0..1 [n, C, H, W] after RandAugment, sampled for each image; they depend only on (seed, step).

    torchvision's own operations on 8-bit images, so the result has 256 levels.
    """
    from torchvision.transforms import v2  # slow to import

    transform = v2.RandAugment(num_ops=RANDAUGMENT_OPERATIONS, magnitude=magnitude)
    levels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
    with seeded(derive(seed, "randaugment", step), pixels):
        found = torch.stack([transform(image) for image in levels])
    return found.to(pixels.dtype) / 255


def mixed_with_labels(
    inputs: Inputs, classes: Tensor, count: int, options: TrainingOptions, seed: int, step: int
) -> tuple[Inputs, Tensor]:
    """A batch of images after mixup or CutMix, with its targets [n, count]; depends only on (seed, step).

    Without either the batch itself, also of texts, with its classes [n].
    """
    from torchvision.transforms import v2

    kinds: list[Any] = []
    if options.mixup:
        kinds.append(v2.MixUp(alpha=options.mixup, num_classes=count))
    if options.cutmix:
        kinds.append(v2.CutMix(alpha=options.cutmix, num_classes=count))
    if not kinds:
        return inputs, classes
    pixels = pixels_of(inputs)
    with seeded(derive(seed, "mix labels", step), pixels):
        mixed: tuple[Tensor, Tensor] = v2.RandomChoice(kinds)(pixels, classes)
    return mixed


def drop_parts(backbone: nn.Module, options: TrainingOptions) -> None:
    """Add stochastic depth and dropped patches to a ViT, in place. Raises ConfigError for other architectures."""
    wanted = [f"training.{n}" for n in ("stochastic_depth", "patch_drop") if getattr(options, n)]
    if not wanted:
        return
    from timm.layers.drop import DropPath
    from timm.layers.patch_dropout import PatchDropout
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(backbone, VisionTransformer):
        raise ConfigError(f"{' and '.join(wanted)}: only vision transformers have such parts. Leave it out.")
    model: Any = backbone
    last = len(model.blocks) - 1
    if options.stochastic_depth and not last:
        raise ConfigError(
            "training.stochastic_depth: the first block is never skipped, and this model has only one. "
            "Leave it out."
        )
    for number, block in enumerate(model.blocks):
        rate = options.stochastic_depth * number / last if last else 0.0
        block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
    if options.patch_drop:
        model.patch_drop = PatchDropout(options.patch_drop, num_prefix_tokens=model.num_prefix_tokens)


def keep_all_patches(backbone: Any) -> None:
    """End the dropping of patches, in place."""
    if hasattr(backbone, "patch_drop"):
        backbone.patch_drop = nn.Identity()


class MovingAverage:
    """The exponential moving average of a module's weights (timm's ModelEmaV3, with its warm-up of the decay)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        from timm.utils.model_ema import ModelEmaV3

        self._module, self._ema = module, ModelEmaV3(module, decay=decay, use_warmup=True)

    def update(self, step: int) -> None:
        """Add the module's weights after `step` (from 0)."""
        self._ema.update(self._module, step=step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module has the averaged weights inside."""
        own = {name: tensor.detach().clone() for name, tensor in self._module.state_dict().items()}
        self._module.load_state_dict(self._ema.module.state_dict())
        try:
            yield
        finally:
            self._module.load_state_dict(own)

    def load(self) -> None:
        """Give the module the averaged weights for good."""
        self._module.load_state_dict(self._ema.module.state_dict())

    def tensors(self) -> dict[str, Tensor]:
        """The average, by name, for a snapshot."""
        return {f"{EMA}{name}": tensor for name, tensor in self._ema.module.state_dict().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the result of `tensors()`."""
        self._ema.module.load_state_dict({name.removeprefix(EMA): t for name, t in tensors.items()})


EMA = "ema."
"""Prefix of the tensors of the average in a snapshot."""
