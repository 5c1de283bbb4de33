"""Slow references of the methods of task vectors, for three tasks: entry by entry, or by another decomposition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fsmerge_cli.common.seeding import generator
from fsmerge_cli.methods import Problem
from tests.support.widen_reference import widen

Vector = Mapping[str, Tensor]
Reference = Callable[[Sequence[Vector], Problem], dict[str, Tensor]]


def trimmed(vector: Vector, density: float) -> dict[str, Tensor]:
    size = sum(t.numel() for t in vector.values())
    ordered = sorted((abs(float(x)) for t in vector.values() for x in t.flatten()), reverse=True)
    least = ordered[round(density * size) - 1]
    return {n: torch.where(t.abs() >= least * (1 - 1e-6), t, 0.0) for n, t in vector.items()}


def each_entry(vectors: Sequence[Vector], rule: Callable[[list[float]], float]) -> dict[str, Tensor]:
    found = {}
    for n, first in vectors[0].items():
        columns = zip(*(v[n].flatten().tolist() for v in vectors))
        found[n] = torch.tensor([rule(list(own)) for own in columns], dtype=torch.float64).reshape(first.shape)
    return found


def elect(own: list[float]) -> float:
    same = [x for x in own if x * sum(own) > 0]
    return sum(same) / len(same) if same else 0.0


def ties(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    return each_entry([trimmed(v, 0.2) for v in vectors], elect)


def model_stock(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    found, k = {}, len(vectors)
    for n in vectors[0]:
        own = [v[n].flatten() for v in vectors]
        pairs = [(i, j) for i in range(k) for j in range(i)]
        a = sum(float(torch.cosine_similarity(own[i], own[j], 0)) for i, j in pairs) / len(pairs)
        share = k * max(a, 0) / (1 + (k - 1) * max(a, 0))
        found[n] = share * sum(v[n] for v in vectors) / k
    return found


def breadcrumbs(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    masked = []
    for vector in vectors:
        masked.append({})
        for n, t in vector.items():
            size = t.numel()
            order = sorted(range(size), key=lambda i, t=t: abs(float(t.flatten()[i])))
            kept = order[int(0.85 * size) : int(0.993 * size)]
            masked[-1][n] = torch.stack([x if i in kept else 0 * x for i, x in enumerate(t.flatten())]).reshape(
                t.shape
            )
    return each_entry(masked, lambda own: 0.3 * sum(own))


def lines(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    depth = {"0": 0.0, "1": 0.5, "2": 1.0}
    return {n: (1 / 3 + 0.5 * depth[n[2]]) * sum(v[n] for v in vectors) for n in vectors[0]}


def della(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    pruned = []
    for task, vector in zip(given.plan.tasks, vectors):
        own = {}
        for n, t in vector.items():
            random = torch.rand(t.shape, generator=generator(given.seed, "della", task, n))
            table = t if t.ndim > 1 else t[None]
            kept = []
            for row, draws in zip(table, random.reshape(table.shape)):
                size = len(row)
                rank = [sum(abs(y) > abs(x) for y in row.tolist()) for x in row.tolist()]
                p = [0.7 - 0.1 + 0.2 * r / size for r in rank]
                kept.append([float(x) / (1 - q) if u >= q else 0.0 for x, q, u in zip(row, p, draws.tolist())])
            own[n] = torch.tensor(kept, dtype=torch.float64).reshape(t.shape)
        pruned.append(own)
    return each_entry(pruned, elect)


def dare(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    kept = [
        {n: t * (torch.rand(t.shape, generator=generator(0, "dare", task, n)) >= 0.9) for n, t in vector.items()}
        for task, vector in zip(given.plan.tasks, vectors)
    ]
    return each_entry(kept, lambda own: 0.4 * sum(own) / (1 - 0.9))


def powers(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric matrix, from its eigenvalues."""
    values, basis = torch.linalg.eigh(matrix)
    return basis * values.clamp(min=0) ** exponent @ basis.T


def in_matrices(vectors: Sequence[Vector], rule: Callable[[list[Tensor]], Tensor]) -> dict[str, Tensor]:
    """The rule for the matrices between two layers, the mean for all other tensors."""
    two = ("fc1.weight", "fc2.weight")
    return {
        n: rule([v[n] for v in vectors]) if n in two else sum(v[n] for v in vectors) / len(vectors)
        for n in vectors[0]
    }


def iso_c(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    def rule(
        own: list[Tensor],
    ) -> Tensor:  # U V^T = (M M^T)^(-1/2) M, and the singular values sum to tr (M M^T)^(1/2)
        total = torch.stack(own).sum(0)
        gram = total @ total.T
        return powers(gram, 0.5).trace() / len(gram) * powers(gram, -0.5) @ total

    return in_matrices(vectors, rule)


def tsv(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    def rule(own: list[Tensor]) -> Tensor:  # five rows and three tasks: the strongest direction of each
        right = torch.stack([torch.linalg.eigh(t.T @ t)[1][:, -1] for t in own], 1)
        left = torch.stack([t @ v for t, v in zip(own, right.T)], 1)
        values = left.norm(dim=0)
        left = left / values
        return left @ powers(left.T @ left, -0.5) @ values.diag() @ powers(right.T @ right, -0.5) @ right.T

    return in_matrices(vectors, rule)


def wudi(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    def rule(own: list[Tensor]) -> Tensor:
        m = torch.stack(own).sum(0).requires_grad_(True)
        adam = torch.optim.Adam([m], lr=1e-5)
        for _ in range(300):
            adam.zero_grad()
            torch.stack([((m - t) @ t.T).square().sum() / t.square().sum() for t in own]).sum().backward()
            adam.step()
        assert not torch.equal(m, torch.stack(own).sum(0))
        return m.detach()

    return in_matrices(vectors, rule)


def pcb(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    flat = [torch.cat([t.flatten() for t in v.values()]) for v in vectors]
    k, size = len(flat), len(flat[0])

    def scaled(product: Tensor) -> Tensor:
        return (product - product.min()) / (product.max() - product.min())

    balances = []
    for own in flat:
        between = torch.stack([scaled(own * other).softmax(0) for other in flat]).sum(0)
        balance = (k * scaled(own * own)).softmax(0) * between
        least = balance.sort(descending=True).values[round(0.2 * size) - 1]
        balances.append(torch.where(balance >= least * (1 - 1e-6), balance, 0.0))
    total = torch.stack(balances).sum(0)
    merged = sum(b * own for b, own in zip(balances, flat)) / torch.where(total > 0, total, 1.0)
    parts = torch.as_tensor(merged).split([t.numel() for t in vectors[0].values()])
    return {n: part.reshape(t.shape) for part, (n, t) in zip(parts, vectors[0].items())}


def selfless(own: list[float]) -> float:
    total = sum(own)
    return 0.4 * total if sum(abs(x) >= 0.4 * abs(total - x) for x in own) >= 2 else 0.0


def opcm(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    """With the merged task vector and its factor after every task, as in the paper."""
    merged, factor = dict(vectors[0]), 1.0
    for count, vector in enumerate(vectors[1:], 2):
        added = {}
        for n, t in vector.items():
            added[n] = t
            if n in ("fc1.weight", "fc2.weight"):
                U, values, Vh = torch.linalg.svd(merged[n], full_matrices=True)
                strongest = next(r for r in range(1, 6) if values[:r].sum() >= 0.5 * values.sum())
                added[n] = torch.zeros_like(t)
                for i, u in enumerate(U.T):
                    for j, v in enumerate(Vh):
                        if i != j and (i >= strongest or j >= strongest):
                            added[n] = added[n] + (t * torch.outer(u, v)).sum() * torch.outer(u, v)
        total = {n: factor * merged[n] + added[n] for n in merged}
        mean = sum(length(v) for v in vectors[:count]) / count
        factor = length(total) / mean
        merged = {n: t / factor for n, t in total.items()}
    return merged


def length(vector: Vector) -> float:
    return sum(float(t.square().sum()) for t in vector.values()) ** 0.5


def fw_merging(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    """Every network as a product of matrices in fp64; the fixture has three ReLU layers."""
    assert given.base is not None
    base = {n: t.double() for n, t in given.base.weights.items()}
    draws = [generator(given.seed, "fw_merging", task) for task in given.plan.tasks]

    def logits(weights: Mapping[str, Tensor], images: Tensor, i: int) -> Tensor:
        found, head = images.flatten(1), given.sources[i].head
        for layer in range(3):
            found = (found @ weights[f"fc{layer}.weight"].T + weights[f"fc{layer}.bias"]).relu()
        assert head is not None
        assert head.bias is not None
        return found @ head.weight.double().T + head.bias.double()

    merged = {n: base[n] + sum(v[n] for v in vectors) / 3 for n in base}
    for step in range(10):
        weights = {n: t.clone().requires_grad_(True) for n, t in merged.items()}
        for i, random in enumerate(draws):
            images = given.task_images(i)
            rows = torch.randint(len(images), (100,), generator=random)
            taken = images[rows].double()
            own = logits({n: base[n] + vectors[i][n] for n in base}, taken, i).softmax(1).detach()
            (-(own * logits(weights, taken, i).log_softmax(1)).sum() / 100).backward()
        for n, t in weights.items():
            assert t.grad is not None
            best = min(vectors, key=lambda v: float(((base[n] + v[n]) * t.grad).sum()))
            merged[n] = merged[n] + 2 / (step + 3) * (base[n] + best[n] - merged[n])
    return {n: t - base[n] for n, t in merged.items()}


def doge(vectors: Sequence[Vector], given: Problem) -> dict[str, Tensor]:
    """Six rows or more make one shared direction; the second layer has five, and none."""
    kept = [trimmed(v, 0.3) for v in vectors]
    found = {n: torch.as_tensor(sum(v[n] for v in vectors)) / 3 for n in vectors[0]}
    for n in ("fc1.weight", "fc2.weight"):
        own = [v[n] for v in vectors]
        scales = [0.07 / float(t.norm()) for t in own]
        rank = min(own[0].shape)
        left = torch.cat([torch.linalg.svd(t)[0][:, : rank // 3] for t in own], 1)
        basis = torch.linalg.svd(left)[0][:, : rank // 6]
        d = torch.zeros_like(own[0]).requires_grad_(True)
        adam = torch.optim.Adam([d], lr=1e-4)
        for _ in range(400):
            adam.zero_grad()
            merged = sum(scale * (t + d) for scale, t in zip(scales, own))
            torch.stack([(t * (t - merged)).sum(1).square().sum() for t in own]).sum().backward()
            assert d.grad is not None
            d.grad -= basis @ basis.T @ d.grad
            adam.step()
        parts = [scale * (t + d.detach()) * (mask[n] != 0) for scale, t, mask in zip(scales, own, kept)]
        found[n] = torch.as_tensor(sum(parts))
    return found


REFERENCES: dict[str, Reference] = {
    "task_arithmetic": lambda vectors, given: each_entry(vectors, lambda own: 0.4 * sum(own)),
    "ties": ties,
    "model_stock": model_stock,
    "breadcrumbs": breadcrumbs,
    "lines": lines,
    "della": della,
    "dare": dare,
    "iso_c": iso_c,
    "opcm": opcm,
    "doge": doge,
    "fw_merging": fw_merging,
    "tsv": tsv,
    "wudi": wudi,
    "widen": widen,
    "pcb": pcb,
    "consensus": lambda vectors, given: each_entry(vectors, selfless),
    "magnitude": lambda vectors, given: each_entry([trimmed(v, 0.2) for v in vectors], lambda own: 0.4 * sum(own)),
}
