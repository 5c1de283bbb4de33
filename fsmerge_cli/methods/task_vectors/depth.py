"""How deep in the network a tensor lies."""

from __future__ import annotations

from fsmerge_cli.models.plan import Plan


def layers(plan: Plan) -> dict[str, int]:
    """The index of the layer (block) of every tensor. What is before the first or after the last belongs to it."""
    module = plan.skeleton()
    blocks = list(plan.family.layers(module))
    found: dict[str, int] = {}
    reached = 0
    for name, part in module.named_modules():
        inside = next((i for i, block in enumerate(blocks) if name == block or name.startswith(f"{block}.")), None)
        own = reached if inside is None else inside
        if inside is not None:
            reached = inside + 1
        for tensor in (*part._parameters, *part._buffers):
            found[f"{name}.{tensor}" if name else tensor] = min(own, max(0, len(blocks) - 1))
    return found


def depths(plan: Plan) -> dict[str, float]:
    """The depth of every tensor, 0 for the first layer and 1 for the last; 1 where there is only one."""
    index = layers(plan)
    last = max(index.values(), default=0)
    return {name: place / last if last else 1.0 for name, place in index.items()}
