"""Which methods apply to the sources of a merge, and which one to start with."""

from __future__ import annotations

from collections.abc import Sequence

from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.methods import METHODS
from fsmerge_cli.methods.closed_form_solution import unsolved
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.runs.request import Request

SHARED_INITIALISATION, DIFFERENT_INITIALISATION = 0.8, 0.2
"""Cosine to source 1's weights: from the first value averaging should work, up to the second it should fail."""

LARGE = 512
"""Width of the features from which full maps have too many parameters for a first try."""


def reason_against(name: str, plan: Plan, requested: Request) -> str | None:
    """Why a method does not apply to these sources; None: it applies."""
    try:
        method = METHODS[name]
    except ConfigError as error:  # of another package
        return str(error)
    if plan.distilled and name != "kd":
        return "the architectures differ"
    # Widths that the method chose (PLeaS), and its number of heads (the closed form), are not those of others.
    chosen = requested.method.width or requested.method.heads not in (None, "all")
    alike = plan.same_shape if chosen else plan.sources_alike
    if method.one_width and not alike:
        return "widths or numbers of heads differ"
    if method.uses_base and requested.base is None:
        return "needs the pretrained weights (models.base=...)"
    if issubclass(method, FSClosedForm) and (reason := unsolved(plan)):
        return reason
    if method.uses_images and requested.data is None:
        return "needs unlabelled images (data=...)"
    return None


def verdict(cosines: Sequence[float] | None) -> str | None:
    """What the cosines of the weights with those of source 1 indicate; None where they were not computed."""
    if cosines is None:
        return None
    if min(cosines) >= SHARED_INITIALISATION:
        return "the sources seem to share a pretrained initialisation: averaging should work"
    if min(cosines) <= DIFFERENT_INITIALISATION:
        return "the sources seem to share no pretrained initialisation: averaging is expected to fail"
    return "the sources may share a pretrained initialisation: compare averaging with a method that trains"


def recommend(plan: Plan, cosines: Sequence[float] | None, requested: Request, with_base: bool) -> tuple[str, str]:
    """The method to start with, as command-line arguments, and the reason.

    with_base: whether the pretrained weights are given, and seem to be those of the sources.
    """
    if plan.distilled:
        return (
            "method=kd method.start=first",
            "the architectures differ, and only their features can be distilled",
        )
    large = " method.maps=low_rank" if plan.width >= LARGE else ""  # full maps have too many parameters
    related = cosines is not None and min(cosines) >= SHARED_INITIALISATION
    if requested.data is not None and unsolved(plan) is None:
        trained = "kd_closed_form" if large else "fs_merge"
        why = f"least squares, without a training; with one: method={trained}"
        more = "; from the pretrained weights: method=tsv" if related and with_base and plan.same_shape else ""
        return "method=fs_closed_form", why + more
    if related:
        if with_base and plan.same_shape:
            return "method=tsv", "the sources share a pretrained initialisation, and models.base gives it"
        return "method=average", (
            "the sources seem to share a pretrained initialisation; with models.base=PATH, the pretrained "
            "weights, also method=tsv and other methods of task vectors"
        )
    if requested.data is None:
        return "method=average", "better methods need images: pass data=..."
    return f"method=fs_merge{large}", "there is no closed form for these sources"
