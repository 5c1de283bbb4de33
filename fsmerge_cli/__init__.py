"""fsmerge: merge trained networks of the same architecture into one network of the original size.

    from fsmerge_cli import merge
    result = merge("digits_mlp_pair", method="fs_merge")

Names are imported on first use, so that `fsmerge --help` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsmerge_cli.checkpoints.api import load_source
    from fsmerge_cli.models.source import Source
    from fsmerge_cli.models.source_spec import SourceSpec
    from fsmerge_cli.runs.check import check
    from fsmerge_cli.runs.compressed import load_compressed
    from fsmerge_cli.runs.curve import curve
    from fsmerge_cli.runs.curve_result import Curve
    from fsmerge_cli.runs.evaluate import evaluate
    from fsmerge_cli.runs.finetune import finetune
    from fsmerge_cli.runs.finetuned import Finetuned
    from fsmerge_cli.runs.merge import merge
    from fsmerge_cli.runs.merged import Merged, load_merged
    from fsmerge_cli.runs.predict import Prediction
    from fsmerge_cli.runs.reevaluation import Reevaluation
    from fsmerge_cli.runs.register import register
    from fsmerge_cli.runs.result import MergeResult

__version__ = "0.1.0"

_HOMES = {
    "Curve": "runs.curve_result",
    "Finetuned": "runs.finetuned",
    "MergeResult": "runs.result",
    "Merged": "runs.merged",
    "Prediction": "runs.predict",
    "Reevaluation": "runs.reevaluation",
    "Source": "models.source",
    "SourceSpec": "models.source_spec",
    "check": "runs.check",
    "curve": "runs.curve",
    "evaluate": "runs.evaluate",
    "finetune": "runs.finetune",
    "load_compressed": "runs.compressed",
    "load_merged": "runs.merged",
    "load_source": "checkpoints.api",
    "merge": "runs.merge",
    "register": "runs.register",
}

__all__ = [
    "Curve",
    "Finetuned",
    "MergeResult",
    "Merged",
    "Prediction",
    "Reevaluation",
    "Source",
    "SourceSpec",
    "__version__",
    "check",
    "curve",
    "evaluate",
    "finetune",
    "load_compressed",
    "load_merged",
    "load_source",
    "merge",
    "register",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fsmerge_cli.{_HOMES[name]}"), name)
