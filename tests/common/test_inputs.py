"""Inputs of several named tensors behave as one tensor: rows, joins, parts, padding."""

from __future__ import annotations

import torch
from torch import Tensor

from fsmerge_cli.common.inputs import (
    MASK,
    NamedTensors,
    content,
    in_use,
    join,
    named,
    split,
    stack,
    used_rows,
)


def text(*ids: int) -> NamedTensors:
    tokens = torch.tensor(ids)
    return NamedTensors({"input_ids": tokens, MASK: torch.ones_like(tokens)}, {"mask_token": 9})


def ids(inputs: object) -> list[list[int]]:
    assert isinstance(inputs, NamedTensors)
    return inputs.tensors["input_ids"].tolist()


def test_shorter_inputs_are_padded_to_the_longest() -> None:
    both = stack([text(1, 2, 3), text(4)])
    assert ids(both) == [[1, 2, 3], [4, 0, 0]]
    assert isinstance(both, NamedTensors)
    assert both.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    joined = join([both, stack([text(5, 6, 7, 8)])])
    assert ids(joined) == [[1, 2, 3, 0], [4, 0, 0, 0], [5, 6, 7, 8]]
    assert isinstance(joined, NamedTensors)
    assert joined.facts == {"mask_token": 9}


def test_rows_parts_and_counts_are_those_of_one_tensor() -> None:
    three = stack([text(1, 2), text(3), text(4, 5)])
    assert isinstance(three, NamedTensors)
    assert len(three) == 3
    assert ids(three[torch.tensor([2, 0])]) == [[4, 5], [1, 2]]
    assert ids(three[torch.tensor([False, True, False])]) == [[3, 0]]
    assert [ids(part) for part in split(three, 2)] == [[[1, 2], [3, 0]], [[4, 5]]]
    assert [row.tensors["input_ids"].tolist() for row in three] == [[1, 2], [3, 0], [4, 5]]
    assert three.nbytes == 2 * 3 * 2 * 8
    assert three.to("cpu", torch.float64).tensors["input_ids"].dtype == torch.int64


def test_images_stay_the_same_tensor_without_a_copy() -> None:
    pixels = torch.rand(3, 1, 2, 2)
    assert named(pixels)["pixels"] is pixels
    assert all(part.data_ptr() >= pixels.data_ptr() for part in split(pixels, 2) if isinstance(part, Tensor))
    assert in_use(pixels) is None
    assert content(pixels[0]) == pixels[0].numpy().tobytes()


def test_padding_is_no_part_of_an_input() -> None:
    both = stack([text(1, 2, 3), text(4)])
    assert isinstance(both, NamedTensors)
    assert content(both[1]) == content(text(4))
    assert ids(both[1:].trimmed()) == [[4]]
    used = in_use(both)
    activations = torch.arange(12.0).reshape(2, 3, 2)
    assert used_rows(activations, used).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    pooled = torch.rand(2, 5)
    assert torch.equal(used_rows(pooled, used), pooled)
