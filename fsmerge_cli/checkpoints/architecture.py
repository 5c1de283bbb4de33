"""The architecture of a checkpoint: from the entry, from its config.json, or from a module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fsmerge_cli.architectures import SPECS, Family, resolve
from fsmerge_cli.architectures.vit.arch import BASE
from fsmerge_cli.architectures.vit.family import stated_options
from fsmerge_cli.common.errors import SourceError, unknown
from fsmerge_cli.models.source_spec import SourceSpec


def infer_architecture(module: nn.Module, where: str) -> tuple[Family, Any]:
    """Family and options of a module from which they can be inferred."""
    for part in module.modules():
        for family in SPECS.values():
            try:
                arch = family.describe(part)
            except SourceError as error:
                raise SourceError(f"{where}: {error}") from None
            except (AttributeError, IndexError, KeyError, TypeError):
                raise SourceError(
                    f"{where}: this {type(part).__name__} has other parts than its class usually has (stem, "
                    "norms, blocks, shortcuts), so its options cannot be read from it. Pass a network without "
                    "such parts."
                ) from None
            if arch is not None:
                return family, arch
    raise SourceError(
        f"{where} does not specify its architecture. Also pass its arch, a timm name or "
        f"{{'family': ..., ...}} ({', '.join(sorted(SPECS))})."
    )


EPS = 1e-5
"""eps of the BatchNorms of timm's and torchvision's networks, and of those that are written."""


def with_usual_eps(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `module`, with running variances that give the same function with EPS: v + eps - EPS."""
    found = dict(tensors)
    for name, part in module.named_modules():
        variance = found.get(f"{name}.running_var")
        if isinstance(part, nn.BatchNorm2d) and part.eps != EPS and variance is not None:
            found[f"{name}.running_var"] = (variance.double() + (part.eps - EPS)).to(variance.dtype)
    return found


def with_own_eps(arch: Any, skeleton: nn.Module, module: nn.Module) -> Any:
    """The options given for a module of a vision transformer, with the eps of its LayerNorms where it has one."""
    if getattr(arch, "eps", 0) is not None:  # it is given, or no option
        return arch
    own, usual = (
        {part.eps for part in whole.modules() if isinstance(part, nn.LayerNorm)} for whole in (module, skeleton)
    )
    return arch if len(own) != 1 or own == usual else replace(arch, eps=own.pop())


def hub_name(spec: SourceSpec) -> str | None:
    """The timm name of an entry's hub weights (an architecture with a tag); None if `arch` is not such a name."""
    name = spec.arch if isinstance(spec.arch, str) else (spec.arch or {}).get("name")
    return name if isinstance(name, str) and "." in name else None


@dataclass(frozen=True)
class OpenEntry:
    """An entry without a name of an architecture ({family: vit, eps: 1e-5, args: {num_heads: 6}}).

    args: timm's arguments. options: other options of the family (eps, projection). The rest is read from the
    checkpoint.
    """

    args: Mapping[str, Any]
    options: Mapping[str, Any]


def open_entry(spec: SourceSpec, where: str) -> OpenEntry | None:
    """The arch of an entry that leaves its name open, else None. Raises SourceError for an unknown key."""
    if spec.module is not None:
        return None
    if spec.arch is None:
        return OpenEntry({}, {})
    if not isinstance(spec.arch, dict) or "name" in spec.arch or spec.arch.get("family") != "vit":
        return None
    given = {key: value for key, value in spec.arch.items() if key != "family"}
    if not isinstance(given.get("args", {}), Mapping):
        return None
    arch = stated_options({**given, "name": BASE}, f"{where}: arch")
    options = {key: getattr(arch, key) for key in given if key != "args"}
    return OpenEntry(arch.args, {key: value for key, value in options.items() if value is not None})


def architecture(spec: SourceSpec, config: Mapping[str, Any], where: str) -> tuple[Family, Any]:
    """Family and options, from the entry or from the checkpoint's config.json, which must not contradict it."""
    stated, given = config.get("architecture"), open_entry(spec, where)
    if (spec.arch is None or given is not None) and isinstance(stated, str):
        own = given or OpenEntry({}, {})
        args = {**(config.get("model_args") or {}), **own.args}
        return resolve(stated, args, {**config, **own.options, "model_args": args}, f"{where}: arch")
    if isinstance(spec.arch, str):
        _require_same(spec.arch.split(".")[0], stated, where)
        return resolve(spec.arch, {}, config, f"{where}: arch")
    if spec.arch is not None:
        # Options of another library's file that are not given in the entry.
        options = _projected(spec.arch, config)
        name = options.pop("family", None)
        options = {**({"eps": config["eps"]} if name in ("eva", "vit") and "eps" in config else {}), **options}
        if name is None:
            glued = any(":" in key for key in spec.arch)  # YAML reads {family:vit} as a key `family:vit`
            advice = "with a space after every colon in a YAML file." if glued else "or a timm name."
            raise SourceError(
                f"{where}: arch={spec.arch} has no family. Pass arch={{family: ..., ...}} "
                f"({', '.join(sorted(SPECS))}), {advice}"
            )
        if not isinstance(name, str) or name not in SPECS:
            raise SourceError(f"{where}: {unknown('arch.family', str(name), SPECS)}")
        if isinstance(options.get("name"), str):
            _require_same(options["name"].split(".")[0], stated, where)
        return resolve(name, options, {}, f"{where}: arch")
    raise SourceError(
        f"{where} does not specify its architecture. Put a config.json next to the weights or pass "
        "models.sources.N.arch=..., a timm name (vit_base_patch16_224) or {family: ..., ...} "
        f"({', '.join(sorted(SPECS))})."
    )


def _projected(options: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an entry, completed with the projection of the checkpoint."""
    if not config.get("projection") or "projection" in options:
        return dict(options)
    args = {"num_classes": config.get("num_classes"), **(options.get("args") or {})}
    return {**options, "projection": True, "args": args}


def _require_same(chosen: str, stated: Any, where: str) -> None:
    """A contradiction is refused, since shapes do not distinguish architectures (GELU or quick-GELU)."""
    if isinstance(stated, str) and stated != chosen:
        raise SourceError(
            f"{where} is a {stated} according to its config.json, but models.sources.N.arch is {chosen}. "
            "Pass models.sources.N.arch=null to use the architecture of the checkpoint."
        )
