"""Problems of a network and its permuted copies, for methods that find the permutations."""

from __future__ import annotations

from dataclasses import replace

import torch

from fsmerge_cli.alignment.permutation import permute, random_permutations
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import network
from tests.support.resnets import resnet_source
from tests.support.sources import mlp_source, random_images
from tests.support.vits import vit_source


def source_of(kind: str, seed: int = 1) -> Source:
    """A source by its kind: mlp, mlp with batch norm, resnet, or a variant of a ViT."""
    if kind.startswith("mlp"):
        norm = "batch" if "batch" in kind else "none"
        return mlp_source(f"s{seed}", [12, 9, 10], seed, activation="tanh", norm=norm)
    return resnet_source("bottleneck", seed) if kind == "resnet" else vit_source(kind, seed)


def problem_of(*sources: Source) -> Problem:
    """60 images per source."""
    found = list(sources)
    return Problem(compile_plan(found), found, random_images(len(found), 60, found[0].arch.input_size))


def shuffled(first: Source, copies: int) -> Problem:
    """A source and copies of it with units in another order."""
    plan = compile_plan([first, replace(first, name="copy")])
    orders = [random_permutations(plan, 0, torch.Generator().manual_seed(7 + i)) for i in range(copies)]
    others = [replace(first, name=f"c{i}", weights=permute(plan, first.weights, p)) for i, p in enumerate(orders)]
    return problem_of(first, *others)


def assert_the_function_of_all(problem: Problem, solution: Solution) -> None:
    """The merged model has the features of every source."""
    merged = problem.plan.skeleton()
    merged.load_state_dict(dict(solution.weights), assign=True)
    pixels = problem.images.images
    for own, U in zip(problem.sources, solution.projectors):
        torch.testing.assert_close(merged(pixels) @ U.T, network(own)(pixels), rtol=2e-3, atol=2e-3)
