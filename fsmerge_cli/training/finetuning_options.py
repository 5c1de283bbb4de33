"""The options of `fsmerge finetune`'s training."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.options import (
    FORBID,
    BatchSize,
    Count,
    Magnitude,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
)


@dataclass(frozen=True, config=FORBID)
class TrainingOptions:
    """Fields of the `training` group.

    head_steps: steps that train only the head, on features of the frozen backbone (0: none). steps: steps that
    train all weights (0: none, only the head is trained). head_lr, lr: peaks of their one-cycle schedules.
    batch_size: images per step. weight_decay: of the optimiser. label_smoothing: share of the target that is
    spread evenly over all classes. clip: largest norm of the gradient. patience: a phase ends early after this
    many validations (of 20 per phase) without improvement (null: never).

    The rest holds for the phase that trains all weights. anneal: shape of the schedule. warmup: share of the steps
    until the peak. optimizer: AdamW for all, or Muon (with matrix_lr) for all matrices of the backbone. mixup,
    cutmix: alpha of the beta distribution of each (arXiv 1710.09412, 1905.04899; 0: off; both: one of them at
    random per batch). randaugment: magnitude of RandAugment with two operations per image (arXiv 1909.13719; 0:
    off). stochastic_depth: share of the last block's branches that is skipped, growing linearly with the depth
    (arXiv 1603.09382). patch_drop: share of the patches that each image leaves out (arXiv 2208.07220), which makes
    steps of ViTs cheaper. plain_share: last share of the steps without mixup, cutmix, randaugment and patch_drop,
    from which on patience counts.
    ema: decay of the moving average of the weights that is validated and kept (null: none).
    """

    head_steps: Count = 300
    steps: Count = 2000
    head_lr: PositiveFloat = 1e-2
    lr: PositiveFloat = 1e-4
    batch_size: BatchSize = 64
    weight_decay: NonNegativeFloat = 0.05
    label_smoothing: Share = 0.1
    clip: PositiveFloat = 1.0
    patience: Positive | None = 5
    anneal: Literal["linear", "cosine"] = "linear"
    warmup: Share = 0.3
    optimizer: Literal["adamw", "muon"] = "adamw"
    matrix_lr: PositiveFloat = 0.02
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    randaugment: Magnitude = 0
    stochastic_depth: Share = 0.0
    patch_drop: Share = 0.0
    plain_share: Share = 0.0
    ema: Share | None = None

    def __post_init__(self) -> None:
        """Check that there is a step."""
        if not self.head_steps and not self.steps:
            raise ValueError("training.head_steps and training.steps are both 0. Give one of them, or both.")
