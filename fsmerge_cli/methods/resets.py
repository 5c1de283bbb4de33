"""The base class of the methods without a training that reset the statistics of BatchNorm."""

from __future__ import annotations

from abc import ABC

from pydantic.dataclasses import dataclass

from fsmerge_cli.common.options import FORBID, Flag
from fsmerge_cli.methods.base import Method


@dataclass(frozen=True, config=FORBID)
class Resets(Method, ABC):
    """Abstract: the option of all methods without a training for networks with BatchNorm.

    reset_batchnorm: scale and shift the channels of every convolution of such a network, so that its output has
    the mean and standard deviation that those of the sources have in the mean, on the images of all tasks (REPAIR,
    arXiv 2211.08403). Nothing is reset without images, or where the sources have no convolutions with BatchNorm.
    """

    reset_batchnorm: Flag = True
