"""Views of texts: what is hidden, what is joined, and what stays."""

from __future__ import annotations

import pytest
import torch

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.inputs import IDS, MASK, SPECIAL, NamedTensors, stack
from fsmerge_cli.data.text.augment import MASK_TOKEN, augmentation, hide, joined, new_views
from fsmerge_cli.data.text.grammar import KINDS, sentence
from fsmerge_cli.data.text.sentences import Sentences
from fsmerge_cli.data.text.tokens import ToTokens


def batch(count: int = 60) -> NamedTensors:
    read = ToTokens(Sentences.tokenization().state, 64, 2)
    found = stack([read(sentence("topic", "food", i, "train")) for i in range(count)])
    assert isinstance(found, NamedTensors)
    return found


def test_only_plain_tokens_are_hidden_or_replaced_and_no_more_than_the_share() -> None:
    texts = batch()
    found = hide(texts, torch.Generator().manual_seed(0))
    changed = found.tensors[IDS] != texts.tensors[IDS]
    assert not bool(changed[(texts.mask == 0) | (texts.tensors[SPECIAL] == 1)].any())
    share = changed.sum() / (texts.mask.sum() - texts.tensors[SPECIAL].sum())
    assert 0.08 < share < 0.2
    hidden = found.tensors[IDS][changed] == texts.facts[MASK_TOKEN]
    assert 0.3 < hidden.float().mean() < 0.7
    assert torch.equal(found.mask, texts.mask)


def test_a_joined_text_keeps_its_first_half_and_ends_as_the_other_one() -> None:
    texts = batch()
    found, other = joined(texts, 1.0, torch.Generator().manual_seed(0))
    mixed = (other != torch.arange(len(other))).nonzero().flatten()
    assert len(mixed) > 30
    for row in mixed.tolist():
        own, end, new = (t.tensors[IDS][r] for t, r in ((texts, row), (texts, int(other[row])), (found, row)))
        half = int(texts.mask[row].sum() + 1) // 2
        assert torch.equal(new[:half], own[:half])
        start = next(i for i in range(len(new)) if torch.equal(new[i:], end[i:]))
        assert torch.equal(new[:start], own[:start])
        assert torch.equal(found.mask[row, half:], texts.mask[int(other[row]), half:])


def test_views_depend_only_on_the_seed_and_the_step() -> None:
    texts = batch(8)
    views = [new_views(texts, "strong", 0.5, 1, step)[0].tensors[IDS] for step in (3, 3, 4)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    same, other = new_views(texts, "none", 0.0, 1, 3)
    assert same is texts
    assert other.tolist() == list(range(8))


def test_an_augmentation_of_images_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="augment=shift is an augmentation of images, and these sources read texts"
    ):
        augmentation("shift")


@pytest.mark.parametrize("kind", KINDS)
def test_the_sentences_of_every_label_differ_between_splits(kind: str) -> None:
    labels = KINDS[kind]
    assert len({sentence(kind, label, 0, "train") for label in labels}) == len(labels)
    train, test = ([sentence(kind, labels[0], i, split) for i in range(50)] for split in ("train", "test"))
    assert len({*train} & {*test}) < 10


def test_no_word_of_the_sentences_is_unknown_or_in_pieces() -> None:
    read = ToTokens(Sentences.tokenization().state, 64, 2)
    for kind, labels in KINDS.items():
        for i in range(100):
            text = sentence(kind, labels[i % len(labels)], i, "train")
            tokens = read(text)
            words = text.replace("!", " !").replace(".", " .").split()
            assert int(tokens.tensors[MASK].sum()) == len(words) + 2
            assert 1 not in tokens.tensors[IDS].tolist()
