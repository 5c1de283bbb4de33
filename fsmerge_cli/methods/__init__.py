"""Ways from sources to a merged model. To add one: one file here, one line below, one YAML in configs/method."""

from __future__ import annotations

from fsmerge_cli.methods.average import Average
from fsmerge_cli.methods.base import Method, Problem, Solution
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation

METHODS: dict[str, type[Method]] = {
    "average": Average,
    "fs_merge": FSMerge,
    "kd": Distillation,
}

__all__ = ["METHODS", "Method", "Problem", "Solution"]
