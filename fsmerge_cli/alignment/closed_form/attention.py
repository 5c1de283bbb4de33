"""Attention heads of smaller size: the best approximation of logits and of values at a given rank."""

from __future__ import annotations

import torch
from torch import Tensor

from fsmerge_cli.alignment.closed_form.moments import square_root


def reduced_logits(queries: Tensor, keys: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Maps A_q, A_k [size, d] of one head with (A_q q) . (A_k k) / sqrt(size) close to q . k / sqrt(d).

    queries: E[q q^T], [d, d]. keys: the same of keys, centred over each image, because a constant over all keys
    does not change the softmax. The mean squared error of the logits is smallest among all maps of that rank: it
    comes from the singular values of C_q^1/2 C_k^1/2 (Eckart-Young), which are the third result. Heads that do not
    shrink are kept exactly.
    """
    d = len(queries)
    scale = (size / d) ** 0.25
    root_q, inverse_q = square_root(queries)
    root_k, inverse_k = square_root(keys)
    left, values, right = torch.linalg.svd(root_q @ root_k)
    if size >= d:
        whole = scale * torch.eye(size, d, dtype=queries.dtype, device=queries.device)
        return whole, whole, values
    roots = scale * values[:size].sqrt()[:, None]
    return roots * (left.T[:size] @ inverse_q), roots * (right[:size] @ inverse_k), values


def reduced_values(outputs: Tensor, written: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A map E [size, d] of one head's values with the least error of what it writes, and the singular values.

    outputs: E[o o^T] of the head's output, [d, d]. written: [d', d], what the output projection writes into the
    merged stream. Reduced-rank regression: the directions of C_o^1/2 W^T.
    """
    d = len(outputs)
    root, inverse = square_root(outputs)
    left, values, _ = torch.linalg.svd(root @ written.T, full_matrices=False)
    if size >= d:
        return torch.eye(size, d, dtype=outputs.dtype, device=outputs.device), values
    if left.shape[1] < size:  # fewer units in the stream than in the head
        left = torch.cat([left, torch.zeros(d, size - left.shape[1], dtype=left.dtype, device=left.device)], 1)
    return left.T[:size] @ inverse, values
