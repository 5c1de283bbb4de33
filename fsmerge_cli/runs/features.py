"""The features of the sources without a head: the file of their projectors, and its certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fsmerge_cli.checkpoints.projectors import FILE, of_headless, read_projectors, stored
from fsmerge_cli.common.atomic import write_tensors
from fsmerge_cli.evaluation.certificates import (
    ROUNDING,
    TOLERANCE,
    Certificate,
    Certifier,
    network,
    relative_error,
)
from fsmerge_cli.evaluation.tokens import TokenAgreement
from fsmerge_cli.runs.merged import load_merged


def write_projectors(
    folder: Path, certifier: Certifier, tokens: Mapping[str, TokenAgreement]
) -> list[Callable[[], Certificate]]:
    """Write projectors.safetensors into the folder of the model, if a source has no head; its certificate.

    tokens: with the token projectors of these sources. They may have heads, which contain their own projectors.
    """
    projectors = of_headless(certifier.sources, certifier.solution.projectors)
    own = {name: (found.weight, found.bias, found.grid) for name, found in tokens.items()}
    if not projectors and not own:
        return []
    write_tensors(folder / FILE, stored(projectors, own), {"format": "pt"})
    return [lambda: _certificate(certifier, folder)] if projectors else []


def _certificate(certifier: Certifier, folder: Path) -> Certificate:
    """The features that the written files give for each of these sources, compared with the projected ones."""
    exact = network(certifier.plan, certifier.solution.weights)(certifier.pixels.double())
    expected = of_headless(certifier.sources, certifier.solution.projectors)
    read, errors = read_projectors(folder), []
    found = load_merged(folder)
    for name, U in expected.items():
        same = name in read and read[name].shape == U.shape
        features = found.features(certifier.pixels, name) if same else None
        error = float("inf") if features is None else relative_error(features, exact @ U.double().T)
        errors.append(error)
    what = "features of the written files for each source without a head = projected features of the merged model"
    return Certificate("features", what, max(errors), TOLERANCE if certifier.dtype == "float32" else ROUNDING)
