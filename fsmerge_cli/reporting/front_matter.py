"""The front matter of a model card: what the Hugging Face hub reads about a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]

HUB = re.compile(r"(?:hf[-_]hub:|https?://huggingface\.co/)?([\w.-]+/[\w.-]+)$")
"""The name of a model of the hub, with the prefixes that timm takes."""

UNKNOWN = "unknown"
"""The hub's word for a licence that is not stated."""

HUB_LIBRARIES = {"plain": "pytorch"}
"""Names on the hub that differ from those of `Family.library`."""


def hub_task(inputs: str, heads: bool, pooling: str = "first") -> str:
    """The task of a model as the hub calls it, which is also the name of transformers' pipeline."""
    if inputs == "text":
        of_what = "token" if pooling == "tokens" else "text"
        return f"{of_what}-classification" if heads else "feature-extraction"
    return "image-classification" if heads else "image-feature-extraction"


def front_matter(evaluation: Values, library: str, kind: str = "image-classification") -> str:
    """YAML between two lines of dashes. library: of the family (`Family.library`). kind: see `hub_task`."""
    from huggingface_hub import ModelCardData

    options, bases = evaluation["config"], base_models(evaluation["config"])
    results = _results(evaluation, kind)
    data = ModelCardData(
        library_name=HUB_LIBRARIES.get(library, library),
        pipeline_tag=kind,
        license=(options.get("output") or {}).get("license") or UNKNOWN,
        tags=["merge", "fsmerge", evaluation["method"]],
        base_model=bases or None,
        base_model_relation="merge" if bases else None,
        model_name=" + ".join(map(plain, evaluation["tasks"])) if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def plain(name: str) -> str:
    """A name without what some page could take for markup: front matter is not escaped everywhere.

    >>> plain("cats & <b>dogs</b>")
    'cats - -b-dogs--b-'
    """
    return re.sub(r"[^\w .,:+()-]|(?<![^\W_])_|_(?![^\W_])|(?<=[wW])\.", "-", name)


def base_models(options: Values) -> list[str]:
    """The sources that come from the hub, by their names there, in order."""
    found = []
    for source in (options.get("models") or {}).get("sources") or ():
        arch, checkpoint = source.get("arch"), source.get("checkpoint")
        if isinstance(checkpoint, str) and (match := re.match(r"hf[-_]hub:(.+)", checkpoint)):
            found.append(match[1])
        elif checkpoint is None and source.get("recipe") is None and isinstance(arch, str):
            match = HUB.match(arch)
            found.append(match[1] if match else f"timm/{arch}")
    return list(dict.fromkeys(found))


def _results(evaluation: Values, kind: str) -> list[Any]:
    """The accuracies of the merged model on labelled test images, as the hub lists them."""
    from huggingface_hub import EvalResult

    merged = evaluation["rows"].get("merged", {"tasks": {}})
    return [
        EvalResult(
            task_type=kind,
            dataset_type=plain(task),
            dataset_name=plain(task),
            metric_type="accuracy",
            metric_name="top-1 accuracy",
            metric_value=round(found["top1"], 4),
        )
        for task, found in merged["tasks"].items()
    ] + [
        EvalResult(
            task_type=kind,
            dataset_type=plain(task),
            dataset_name=plain(task),
            metric_type="pearsonr",
            metric_name="Pearson correlation",
            metric_value=round(found["pearson"], 4),
        )
        for task, found in merged.get("numbers", {}).items()
        if found["pearson"] is not None
    ]
