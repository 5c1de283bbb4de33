"""fsmerge: merge trained networks of one architecture into one network of the original size.

    from fsmerge_cli import merge
    result = merge("digits_mlp_pair", method="fs_merge")

Names are imported on first use, so that `fsmerge --help` does not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsmerge_cli.finetuned import Finetuned
    from fsmerge_cli.finetuning import finetune
    from fsmerge_cli.loading import load_source
    from fsmerge_cli.merged import Merged, load_merged
    from fsmerge_cli.pipeline import check, merge
    from fsmerge_cli.reevaluate import Reevaluation, evaluate
    from fsmerge_cli.result import MergeResult
    from fsmerge_cli.sources import Source, SourceSpec

__version__ = "0.1.0"

_HOMES = {
    "Finetuned": "finetuned",
    "MergeResult": "result",
    "Merged": "merged",
    "Reevaluation": "reevaluate",
    "Source": "sources",
    "SourceSpec": "sources",
    "check": "pipeline",
    "evaluate": "reevaluate",
    "finetune": "finetuning",
    "load_merged": "merged",
    "load_source": "loading",
    "merge": "pipeline",
}

__all__ = [
    "Finetuned",
    "MergeResult",
    "Merged",
    "Reevaluation",
    "Source",
    "SourceSpec",
    "__version__",
    "check",
    "evaluate",
    "finetune",
    "load_merged",
    "load_source",
    "merge",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fsmerge_cli.{_HOMES[name]}"), name)
