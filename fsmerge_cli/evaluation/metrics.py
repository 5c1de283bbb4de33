"""Metrics of predictions and of feature similarity. Shapes: n images, c classes, d units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from fsmerge_cli.common.hardware import double

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""Half-width of the normal interval at that level, in standard errors."""

BINS = 15
"""Number of equally wide bins of the expected calibration error (Guo et al., arXiv 1706.04599)."""

LOG_T = (-4.0, 4.0)
"""Bounds of the log temperature."""


def interval(correct: int, count: int) -> tuple[float, float]:
    """Wilson interval of the share correct / count at the level CONFIDENCE (Wilson 1927, JASA 22).

    The shares p with |correct / count - p| <= Z sqrt(p (1 - p) / count). scipy.stats has it too, but takes half a
    second to import.
    """
    share = correct / count
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * math.sqrt(share * (1 - share) / count + (Z / (2 * count)) ** 2) / (1 + Z**2 / count)
    return middle - half if correct else 0.0, middle + half if correct < count else 1.0


def top(logits: Tensor, label: Tensor, k: int) -> float:
    """Share of images whose label [n] is among the k largest logits [n, c]."""
    return (logits.topk(k, dim=1).indices == label[:, None]).any(1).double().mean().item()


def pearson(x: Tensor, y: Tensor) -> float | None:
    """Pearson's correlation of values [n]; None where one of them is constant."""
    a, b = (own.double() - own.double().mean() for own in (x, y))
    scale = (a.square().sum() * b.square().sum()).sqrt().item()
    return max(-1.0, min(1.0, (a @ b).item() / scale)) if scale > 0 else None


def spearman(x: Tensor, y: Tensor) -> float | None:
    """Spearman's rank correlation of values [n], Pearson's of the ranks; equal values have their mean rank."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: Tensor) -> Tensor:
    _, place, count = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = count.cumsum(0) - (count - 1) / 2
    return ranks[place]


def calibration_error(logits: Tensor, label: Tensor) -> float:
    """Expected calibration error of the softmax of logits [n, c]: |confidence - accuracy|, mean over images."""
    _, confidence, correct = calibration_bins(logits, label)
    return ((confidence - correct).abs().sum() / len(label)).item()


def calibration_bins(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By bin of the confidence, each [BINS]: number of images, sum of the confidences, correct predictions.

    logits [n, c], label [n]. The bins are open on the left.
    """
    confidence, prediction = logits.double().softmax(1).max(1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    sums = [
        torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, own)
        for own in (confidence, (prediction == label).double())
    ]
    return torch.bincount(bins, minlength=BINS), sums[0], sums[1]


def temperatures(logits: Sequence[Tensor], task: Tensor) -> list[float]:
    """One temperature per head that makes the heads comparable, from unlabelled images of known tasks.

    logits: of every head on the same images, [n, c_i]. task [n]: index of the head of each image's task. Minimises
    the cross-entropy of the task under a softmax over the heads' largest log-probabilities, which decide the joint
    prediction. 1.0 for heads without images.
    """
    if len(logits) < 2 or len(task) == 0:
        return [1.0] * len(logits)
    exact = [a.double() for a in logits]
    seen = torch.bincount(task, minlength=len(exact)) > 0

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        log_t = torch.tensor(values, dtype=torch.double, requires_grad=True)
        scaled = [(a / t.exp()).log_softmax(1).max(1).values for a, t in zip(exact, log_t)]
        # The small penalty bounds the temperature of a head that is always correct.
        value = F.cross_entropy(torch.stack(scaled, 1), task) + 1e-3 * log_t.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        gradient = torch.where(seen, log_t.grad if log_t.grad is not None else 0.0, 0.0)
        return value.item(), gradient.numpy()

    found = minimize(loss, np.zeros(len(exact)), jac=True, method="L-BFGS-B", bounds=[LOG_T] * len(exact))
    return [float(np.exp(value)) for value in found.x]


def matched_temperatures(logits: Sequence[Tensor], reference: Sequence[Tensor]) -> list[float]:
    """One temperature per head that makes it as confident as its source, from images of unknown tasks.

    logits, reference: of every head and of its source on the same images, [n, c_i]. Minimises the mean of
    KL(softmax(reference) || softmax(logits / T)), which is convex in 1 / T: temperature scaling (Guo et al., arXiv
    1706.04599, section 4.2) with the source's predictions instead of labels. 1.0 for heads without images.
    """
    return [
        _matched_temperature(a.double(), b.double().softmax(1)) if len(a) else 1.0
        for a, b in zip(logits, reference)
    ]


def _matched_temperature(logits: Tensor, probabilities: Tensor) -> float:
    def loss(log_t: float) -> float:
        # KL plus a constant; the penalty is for constant logits, which no temperature changes.
        return F.cross_entropy(logits / math.exp(log_t), probabilities).item() + 1e-6 * log_t**2

    return math.exp(minimize_scalar(loss, bounds=LOG_T, method="bounded").x)


@dataclass
class FeatureSimilarity:
    """Similarity of two feature sets x [m, d], y [m, e], from running sums over rows, in fp64.

    cka: linear centred kernel alignment (Kornblith et al., arXiv 1905.00414); 1 if y is a rotated and scaled x.
    cosine, error: mean cosine similarity of rows, and squared error relative to the variance of y; None if d and e
    differ.
    """

    _sums: dict[str, Tensor] = field(default_factory=dict)
    _rows: int = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add some rows."""
        x, y = double(x), double(y)
        parts = {"xx": x.T @ x, "yy": y.T @ y, "xy": x.T @ y, "x": x.sum(0), "y": y.sum(0)}
        if x.shape == y.shape:
            parts |= {"cosine": F.cosine_similarity(x, y).sum(), "error": (x - y).square().sum()}
        self._sums = {name: self._sums.get(name, 0) + part for name, part in parts.items()}
        self._rows += len(x)

    def values(self) -> dict[str, float | None]:
        """The three metrics; None where undefined."""
        s, n = self._sums, self._rows
        if n == 0:
            return {"cka": None, "cosine": None, "error": None}
        xx = s["xx"] - torch.outer(s["x"], s["x"]) / n
        yy = s["yy"] - torch.outer(s["y"], s["y"]) / n
        xy = s["xy"] - torch.outer(s["x"], s["y"]) / n
        scale = (xx.norm() * yy.norm()).item()
        variance = yy.trace().item()
        same = "cosine" in s
        return {
            "cka": xy.square().sum().item() / scale if scale > 0 else None,
            "cosine": s["cosine"].item() / n if same else None,
            "error": s["error"].item() / variance if same and variance > 0 else None,
        }
