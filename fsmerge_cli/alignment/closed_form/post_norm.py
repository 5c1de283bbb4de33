"""One branch of a post-norm block, x' = LN(x + F(x)): the norm comes behind the sum (BERT, arXiv 1810.04805)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.alignment.closed_form.branches import BranchSolver
from fsmerge_cli.alignment.closed_form.moments import Moments
from fsmerge_cli.alignment.closed_form.rows import spread_rows
from fsmerge_cli.alignment.closed_form.stream import along, factor
from fsmerge_cli.alignment.closed_form.streams import Further, Streams


class PostNormSolver(BranchSolver):
    """Solves one branch behind whose sum the stream is normalised.

    The merged stream stands for the normalised streams of the sources, t = sum_i R_i x_i with x_i = g_i n_i + b_i,
    where n_i is their sum y_i, normalised. Its norm has one weight and the bias sum_i R_i b_i + 1, the constant
    that intercepts go through. So the sum before the norm should have the direction of sum_i R_i g_i n_i. Its size
    is free for every token: the root mean square, over the sources, of the standard deviations of y_i relative to
    the size of g_i. Then F only has to write what the sources write where these are alike, and the units of g_i;
    copies of one such source are that source again.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._variances: dict[tuple[int, int], Tensor] = {}
        gains = [w[f"{self.branch.norm}.weight"].double() for w in self.assembly.weights]
        biases = [w[f"{self.branch.norm}.bias"].double() for w in self.assembly.weights]
        self._gains = [float(gain.square().mean().clamp(min=1e-24)) for gain in gains]
        self._bias = torch.stack([R @ bias for R, bias in zip(self.projection.maps, biases)]).sum(0)

    def _set_norm(self) -> None:
        """That before the readers belongs to the branch before."""

    def _behind(self, source: int, part: int, before: Tensor, written: Tensor) -> Tensor:
        total = before + self._scales[source].float() * written
        self._variances[source, part] = total.double().var(-1, correction=0).cpu()
        found: Tensor = self._blocks[source].get_submodule(self._norm)(total)
        return found.cpu()

    def _moved(self, mine: Tensor, further: Further) -> Tensor:
        found: Tensor = self._merged.get_submodule(self._norm)(super()._moved(mine, further))
        return found

    def _summed(self, after: Streams, part: int) -> Tensor:
        places = self.assembly.sources
        sizes = [self._variances[i, part].to(self.device) / self._gains[i] for i in places]
        size = torch.stack(sizes).mean(0).sqrt()[..., None]
        return (self._target(after, part) - self._bias) * size.float()

    def _write(self, before: Streams, after: Streams) -> None:
        super()._write(before, after)
        self._set_own_norm(before, after)

    def _set_own_norm(self, before: Streams, after: Streams) -> None:
        """The bias, and the weight that gives the merged stream the size of what it stands for."""
        sums, module = Moments(), str(self.branch.norm)
        with torch.inference_mode():
            for part, mine in enumerate(before.merged):
                total = super()._moved(mine.to(self.device), before.beside(part))
                centred = total - total.mean(-1, keepdim=True)
                unit = centred.double() / centred.double().square().mean(-1, keepdim=True).clamp(min=1e-24).sqrt()
                used = before.used(part, self.device)
                rows = along(unit, self._target(after, part) - self._bias)
                sums.add(rows, None, spread_rows(self.after, mine, used))
        self.assembly.assign(f"{module}.weight", factor(sums))
        self.assembly.assign(f"{module}.bias", self._bias + 1)

    def _difference(self, target: Tensor, mine: Tensor) -> Tensor:
        return (target - (mine - mine.mean(-1, keepdim=True))).square().sum(-1)
