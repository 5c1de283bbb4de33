"""The base class of the methods without a training that reset the statistics of layers."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence

from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.alignment.channels import reset_layers, with_reset, with_reset_of_clusters
from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.common.options import FORBID, Flag
from fsmerge_cli.methods.base import Method
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.training.problem import Problem, Solution


@dataclass(frozen=True, config=FORBID)
class Resets(Method, ABC):
    """Abstract: the options of all methods without a training that reset the statistics of layers (REPAIR).

    reset_batchnorm: scale and shift the channels of every convolution of a network with BatchNorm, so that its
    output has the mean and standard deviation that those of the sources have in the mean, on the images of all
    tasks (REPAIR, arXiv 2211.08403). Nothing is reset without images, or where the sources have no convolutions
    with BatchNorm. repair: do the same with the layers without a norm that write hidden units (of an MLP, a VGG,
    or the MLPs of a transformer), whose weight and bias hold the scale and the shift; it needs images.
    """

    reset_batchnorm: Flag = True
    repair: Flag = False

    @property
    def needs_images(self) -> bool:
        """Also for `repair`."""
        return super().needs_images or self.repair

    def layers_to_reset(self, plan: Plan) -> tuple[str, ...]:
        """The layers that these options reset. Raises ConfigError where `repair` has none."""
        if self.repair and not reset_layers(plan, batchnorm=False, others=True):
            raise ConfigError(
                "method.repair=true resets the statistics of hidden layers with a bias and without a norm, and "
                "these networks have none. Pass method.repair=false."
            )
        return reset_layers(plan, self.reset_batchnorm, self.repair)

    def resets(self, problem: Problem) -> bool:
        """Whether anything is reset: there are such layers, and images."""
        return len(problem.images) > 0 and bool(self.layers_to_reset(problem.plan))

    def reset(self, problem: Problem, solution: Solution, shares: Sequence[float]) -> Solution:
        """The solution with the statistics of the mean of the sources with these shares (of mean 1)."""
        self._require_images(problem)
        return with_reset(problem, solution, shares, self.layers_to_reset(problem.plan))

    def reset_of_clusters(
        self, problem: Problem, solution: Solution, merge: Mapping[str, Sequence[Tensor]]
    ) -> Solution:
        """The solution with the statistics of the means M_i of the sources, by space and source."""
        self._require_images(problem)
        return with_reset_of_clusters(problem, solution, merge, self.layers_to_reset(problem.plan))

    def _require_images(self, problem: Problem) -> None:
        if self.repair and not len(problem.images):
            raise DataError(
                "method.repair=true needs unlabelled images of the tasks. Pass data=... with data.images_per_task "
                "of 1 or more, or method.repair=false."
            )
