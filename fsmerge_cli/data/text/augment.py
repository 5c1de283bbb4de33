"""Augmentation and mixing of texts: hidden and replaced tokens, and texts that are cut and joined."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.inputs import IDS, SPECIAL, Inputs, NamedTensors
from fsmerge_cli.common.seeding import derive, generator

MASK_TOKEN = "mask_token"
"""Name of the fact that is the number of [MASK]."""

LARGEST_SHARE = 0.3
"""Largest share of a text's tokens that `strong` hides or replaces."""

KNOWN = ("none", "strong")


def require_known(name: str, key: str = "augment") -> None:
    """Raise ConfigError for an augmentation of images."""
    if name not in KNOWN:
        raise ConfigError(
            f"{key}={name} is an augmentation of images, and these sources read texts. Pass {key}=none, "
            f"or {key}=strong (a random share of the tokens is hidden or replaced)."
        )


def augmentation(name: str) -> Callable[[Inputs], Inputs]:
    """The augmentation `name` of one text; it uses torch's global generator. Raises ConfigError for others."""
    require_known(name)

    def hidden(item: Inputs) -> Inputs:
        if name == "none" or isinstance(item, Tensor):
            return item
        seed = int(torch.randint(2**62, ()))
        return hide(item[None], torch.Generator().manual_seed(seed))[0]

    return hidden


def new_views(
    texts: NamedTensors, augment: str, mixup: float, seed: int, step: int
) -> tuple[NamedTensors, Tensor]:
    """New views of one step's batch, and the row that is joined to each one [n] (its own: none)."""
    require_known(augment)
    if augment != "none":
        texts = hide(texts, generator(seed, "augment", step))
    if mixup:
        return joined(texts, mixup, generator(seed, "mix", derive(seed, step)))
    return texts, torch.arange(len(texts))


def hide(texts: NamedTensors, random: torch.Generator) -> NamedTensors:
    """A random share of each text's tokens, up to LARGEST_SHARE, as [MASK] or as a token of another text.

    [CLS], [SEP] and padding stay. A tokenizer without [MASK] gets only replaced tokens.
    """
    ids = texts.tensors[IDS]
    plain = (texts.mask != 0) & (texts.tensors[SPECIAL] == 0)
    share = LARGEST_SHARE * torch.rand(len(ids), 1, generator=random)
    kind = torch.rand(ids.shape, generator=random)
    other = torch.rand(ids.shape, generator=random)
    share, kind, other = (own.to(ids.device) for own in (share, kind, other))
    pool = ids[plain]
    if not len(pool):
        return texts
    replaced = pool[(other * len(pool)).long().clamp(max=len(pool) - 1)]
    mask_token = texts.facts.get(MASK_TOKEN)
    changed = replaced if mask_token is None else torch.where(kind < share / 2, mask_token, replaced)
    return texts.replaced({IDS: torch.where(plain & (kind < share), changed, ids)})


def joined(texts: NamedTensors, share: float, random: torch.Generator) -> tuple[NamedTensors, Tensor]:
    """A share of the texts ends as another one of the batch does, and the rows of these [n].

    Every text keeps at least its first half, and takes the rest of the other text from the same position on; a
    text whose half is longer than the other one stays as it is. No label is mixed: the sources are run on the
    joined text. This is CutMix (arXiv 1905.04899) of texts.
    """
    n, length = texts.mask.shape
    other = torch.randperm(n, generator=random)
    chosen = torch.rand(n, generator=random) < share
    part = 0.5 + torch.rand(n, generator=random) / 2
    lengths = (texts.mask != 0).sum(1).cpu()
    start = (part * lengths).ceil().long()
    chosen &= start < lengths[other]
    other = torch.where(chosen, other, torch.arange(n))
    place, begin = other.to(texts.device), start.to(texts.device)
    later = torch.arange(length, device=texts.device)[None] >= begin[:, None]
    mixed = {name: torch.where(later, tensor[place], tensor) for name, tensor in texts.tensors.items()}
    return texts.replaced(mixed), other
