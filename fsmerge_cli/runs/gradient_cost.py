"""Cost of the methods that need gradients of the merged model or of the sources, but train no weights."""

from __future__ import annotations

from fsmerge_cli.methods.base import Method
from fsmerge_cli.methods.fisher import Fisher
from fsmerge_cli.methods.task_vectors.coefficients import Tuned
from fsmerge_cli.methods.task_vectors.concrete import Concrete
from fsmerge_cli.methods.task_vectors.expert_merging import ExpertMerging
from fsmerge_cli.methods.task_vectors.fw_merging import FWMerging


def memory(method: Method, parameters: int, k: int, stored: int) -> int | None:
    """Bytes beside the sources and the base; None for another method. stored: by the forward pass of one image.

    Coefficients by descent: the base, k task vectors, the merged network and its gradient in fp32, the activations
    of all tasks; of Concrete also the mask, its logits and what Adam keeps of them. Frank-Wolfe: a network and its
    gradient, the activations of one task. Fisher: k sums in fp64, weights, gradients.
    """
    if isinstance(method, Tuned):
        copies = k + 3 + 6 * isinstance(method, Concrete)
        return 4 * parameters * copies + k * method.batch_size * stored
    if isinstance(method, FWMerging):
        return 8 * parameters + method.batch_size * stored
    if isinstance(method, Fisher):
        return parameters * (8 * k + 8) + stored
    return None


def operations(method: Method, forward: float, k: int, images: int) -> float:
    """Floating-point operations, forward and backward. forward: of one image; images: of all tasks."""
    if isinstance(method, Tuned):
        steps = method.steps + (2 * method.mask_steps if isinstance(method, Concrete) else 0)
        passes = 4 if isinstance(method, ExpertMerging) else 3  # with the source's own
        return passes * forward * steps * method.batch_size * k
    if isinstance(method, FWMerging):
        return 4 * forward * method.steps * method.batch_size * k  # with the source's own pass
    if isinstance(method, Fisher):
        return forward * images * (1 + 2 * method.labels)
    return 0.0
