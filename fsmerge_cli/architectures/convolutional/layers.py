"""Layers of convolutional networks that act on every unit alone."""

from __future__ import annotations

from torch import nn

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Tanh)
"""Activations that act on every unit alone, with the same function; ReLU6 is a Hardtanh."""

POOLINGS = ("avg", "fast", "fastavg", "max", "fastmax", "avgmax")
"""Poolings whose output has one unit per channel."""
