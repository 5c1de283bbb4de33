"""The SuperNet in its folded form: the trainable object of FS-Merge.

Between M, the frozen W_i and U there is no non-linearity, so `forward` folds once and runs ONE ordinary
network of the merged size, instead of k networks side by side. Skeleton and sources are not its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.func import functional_call

from fsmerge_cli.fold import fold
from fsmerge_cli.maps import MergeMaps
from fsmerge_cli.plan import Plan
from fsmerge_cli.training import Student


class SuperNet(Student):
    """Maps around frozen source weights; images [n, C, H, W] -> merged features [n, d']."""

    def __init__(self, plan: Plan, maps: MergeMaps, weights: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.maps = maps
        self.plan = plan
        # Held in tuples, out of sight of nn.Module: only maps and per-unit vectors are parameters.
        self._weights = tuple(weights)
        self._skeleton = (plan.skeleton(),)

    def forward(self, images: Tensor) -> Tensor:
        """Merged features z' of a batch."""
        folded = fold(self.plan, self.maps, self._weights)
        features: Tensor = functional_call(self._skeleton[0], folded, (images,))
        return features

    def readout(self, features: Tensor, source: int) -> Tensor:
        """The merged model's estimate of one source's features, U_out,i z': [n, d'] -> [n, d_i]."""
        estimate: Tensor = self.maps.read(self.plan.features, source)(features)
        return estimate
