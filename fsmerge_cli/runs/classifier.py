"""`classifier/`: one ordinary model with the heads of all tasks, which timm and transformers run as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fsmerge_cli.checkpoints.dtype import to_dtype
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.inputs import pixels_of
from fsmerge_cli.evaluation.certificates import (
    ROUNDING,
    TOLERANCE,
    Certificate,
    Certifier,
    double_head,
    network,
    relative_error,
)
from fsmerge_cli.models.head import Head, joint_classifier, joint_labels
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.preprocessing import Preprocessing
from fsmerge_cli.training.problem import Solution

FOLDER = "classifier"


def why_no_classifier(plan: Plan, heads: Mapping[str, Head]) -> str | None:
    """The reason why there is no classifier/; None if there can be one."""
    if not heads:
        return "the sources have no classifier heads"
    if plan.family.classifier is None:
        return f"timm has no model of the family {plan.family.name}"
    if joint_classifier(heads) is None:
        return "a head normalises its features, so that it is not one linear layer"
    return None


def write_classifier(
    folder: Path,
    plan: Plan,
    preprocessing: Preprocessing,
    solution: Solution,
    heads: Mapping[str, Head],
    dtype: str,
) -> None:
    """Write config.json and model.safetensors of the whole model, in timm's layout.

    heads: whose labels follow each other in this order. dtype: of the tensors.
    """
    linear, build = joint_classifier(heads), plan.family.classifier
    if linear is None or build is None:
        raise ValueError(why_no_classifier(plan, heads))
    stated, tensors = build(plan.arch, {n: t.cpu() for n, t in solution.tensors(plan).items()}, *linear)
    config = model_config(plan.family, plan.arch, preprocessing, dtype)
    channels, classes = stated["model_args"]["in_chans"], len(linear[0])
    own = {**config["pretrained_cfg"], "num_classes": classes}
    own |= {key: own[key] if len(own[key]) == channels else own[key] * channels for key in ("mean", "std")}
    own["input_size"] = [channels, *own["input_size"][1:]]
    content = {
        **config,
        **stated,
        "num_classes": classes,
        "label_names": joint_labels(heads),
        "pretrained_cfg": own,
    }
    content.pop("projection", None)
    write_model(folder, content, to_dtype(tensors, dtype), {}, {})


def classifier_certificate(certifier: Certifier, folder: Path) -> Certificate:
    """The written classifier compared with the heads of all tasks on the merged features."""
    import json

    import timm

    what = "logits of the written classifier = all heads with their temperatures on the merged features"
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    args = {**config["model_args"], "num_classes": config["num_classes"]}
    tensors = load_file(folder / "model.safetensors")
    with torch.device("meta"):
        module = timm.create_model(config["architecture"], pretrained=False, **args)
    if any(name not in tensors for name, _ in module.named_buffers()):  # rotary positions, which are in no file
        with torch.random.fork_rng(devices=[]):
            module = timm.create_model(config["architecture"], pretrained=False, **args)
    cast = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    module.load_state_dict(cast, assign=True)
    pixels = pixels_of(certifier.pixels).double()
    own = pixels.expand(-1, args["in_chans"], -1, -1) if pixels.shape[1] == 1 else pixels
    mean, std = (
        torch.tensor(config["pretrained_cfg"][key], dtype=torch.float64).reshape(-1, 1, 1)
        for key in ("mean", "std")
    )
    with torch.no_grad():
        features = network(certifier.plan, certifier.solution.weights)(pixels)
        expected = torch.cat([double_head(head).joint_logits(features) for head in certifier.heads.values()], 1)
        error = relative_error(module.eval()((own - mean) / std), expected)
    return Certificate("classifier", what, error, TOLERANCE if certifier.dtype == "float32" else ROUNDING)
