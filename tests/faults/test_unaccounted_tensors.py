"""Every tensor of a source is used, or named in a note because it cannot matter, or refuses the source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fsmerge_cli import check, load_merged, load_source
from fsmerge_cli.common.errors import MismatchError, SourceError
from fsmerge_cli.runs.finetune_request import load_start, request
from tests.support.heads import (
    HEAD,
    C,
    D,
    entry_of,
    mlp_file,
    vit_file,
)
from tests.support.third_party import hugging_face, vit_arch

NORMS = {f"blocks.{i}.{n}": torch.ones(D) for i in range(2) for n in ("ls1.gamma", "ls2.gamma")}
NOTE = "'a': not used, without effect on the features: "
UNKNOWN = (
    "{0} does not match its architecture: it has unknown tensors: {1}. "
    "Check its config.json, or pass model.arch=..."
)


@pytest.mark.full
@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        (NORMS, "blocks.0.ls1.gamma, blocks.0.ls2.gamma, blocks.1.ls1.gamma, ..."),
        (
            {f"blocks.0.attn.{n}_norm.weight": torch.ones(4) for n in "qk"},
            "blocks.0.attn.k_norm.weight, blocks.0.attn.q_norm.weight",
        ),
        ({"reg_token": torch.ones(1, 2, D)}, "reg_token"),
        ({"fc_norm.weight": torch.ones(D), "fc_norm.bias": torch.ones(D)}, "fc_norm.bias, fc_norm.weight"),
        ({"pre_logits.fc.weight": torch.ones(D, D)}, "pre_logits.fc.weight"),
        ({"head_dist.weight": torch.ones(C, D)}, "head_dist.weight"),
        ({"blocks.2.norm1.weight": torch.ones(D)}, "blocks.2.norm1.weight"),
        ({"classifier.weight": torch.ones(C, D)}, "classifier.weight"),
        ({"norm_pre.weight": torch.ones(D)}, "norm_pre.weight"),
        ({"temperature": torch.ones(())}, "temperature"),
    ],
)
def test_a_tensor_that_the_backbone_lacks_is_refused_everywhere(
    tensors: dict[str, Tensor], found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = vit_file(tmp_path, **HEAD, **tensors)
    expected = UNKNOWN.format(entry["checkpoint"], found)
    readers: list[Callable[[], object]] = [
        lambda: load_source(entry),
        lambda: load_merged(entry["checkpoint"], {"arch": entry["arch"]}),
        lambda: load_start(
            request(
                {**entry_without_name(entry), "labels": ["x", "y"]}, "digits", {}, "cpu", 0, False, False, "60s"
            )
        ),
    ]
    for read in readers:
        with pytest.raises(SourceError) as error:
            read()
        assert str(error.value) == expected
    with pytest.raises(MismatchError) as mismatch:
        check([entry, {**entry, "name": "b"}])
    assert mismatch.value.reasons[0].startswith("'a' has unknown tensors ")


def entry_without_name(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "name"}


@pytest.mark.parametrize(
    ("tensors", "listed"),
    [
        ({"mask_token": torch.ones(1, 1, D)}, "mask_token"),
        ({"position_ids": torch.arange(5)[None]}, "position_ids"),
        ({"total_ops": torch.ones(1), "blocks.0.total_params": torch.ones(1)}, "blocks.0.total_params, total_ops"),
        ({"decoder_embed.weight": torch.ones(D, D)}, "decoder_embed.weight"),
        ({"criterion.weight": torch.ones(C)}, "criterion.weight"),
        (
            {f"decoder_blocks.{i}.norm1.bias": torch.ones(D) for i in range(5)},
            "decoder_blocks.0.norm1.bias, decoder_blocks.1.norm1.bias, decoder_blocks.2.norm1.bias and 2 more",
        ),
    ],
)
def test_a_tensor_that_cannot_matter_is_a_note(tensors: dict[str, Tensor], listed: str, tmp_path: Path) -> None:
    found = load_source(vit_file(tmp_path, **HEAD, **tensors))
    assert found.notes == (f"{NOTE}{listed}",)
    assert found.head is not None
    assert torch.equal(found.head.weight, HEAD["head.weight"])


BESIDE = (
    "source 'a': {0}: next to the head '{1}' are tensors that may act between the features and the logits: {2}. "
    "Save only the backbone and the head if they do not; if they do, train one linear head instead (`fsmerge "
    "finetune model.checkpoint=... training.steps=0`)."
)


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({"net.norm.weight": torch.ones(D), "net.norm.bias": torch.ones(D)}, "net.norm.bias, net.norm.weight"),
        (
            {f"net.bn.running_{n}": torch.ones(D) for n in ("mean", "var")},
            "net.bn.running_mean, net.bn.running_var",
        ),
        ({"net.neck.weight": torch.ones(D, D), "net.neck.bias": torch.ones(D)}, "net.neck.weight"),
        ({"net.neck.0.weight": torch.ones(4, D), "net.neck.2.weight": torch.ones(D, 4)}, "net.neck.2.weight"),
        ({"net.scale": torch.ones(())}, "net.scale"),
        ({"net.logit_scale": torch.ones(1)}, "net.logit_scale"),
        ({"net.confusion.weight": torch.ones(3, C)}, "net.confusion.weight"),
        ({"net.prior": torch.ones(C)}, "net.prior"),
        ({"net.gate.gamma": torch.ones(D)}, "net.gate.gamma"),
        ({"net.pool.query": torch.ones(1, 1, D)}, "net.pool.query"),
        ({"net.neck.weight": torch.ones(D, 7, 3)}, "net.neck.weight"),
        ({"net.scale": torch.ones(1, 1)}, "net.scale"),
    ],
)
def test_a_tensor_next_to_the_head_that_may_matter_is_refused(
    tensors: dict[str, Tensor], found: str, tmp_path: Path
) -> None:
    head = {f"net.{name}": tensor for name, tensor in HEAD.items()}
    entry = mlp_file(tmp_path, "net.backbone.", **head, **tensors)
    with pytest.raises(SourceError) as error:
        load_source(entry)
    assert str(error.value) == BESIDE.format(entry["checkpoint"], "head", found)


@pytest.mark.parametrize(
    "tensors",
    [
        {"criterion.weight": torch.ones(C)},
        {"arcface_loss.weight": torch.ones(C, D)},
        {"projection.weight": torch.ones(4, D), "projection.bias": torch.ones(4)},
        {"optimizer.momentum": torch.ones(D)},
    ],
)
def test_a_tensor_next_to_the_head_that_cannot_matter_is_a_note(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    entry = mlp_file(tmp_path, "backbone.", **HEAD, **tensors)
    listed = ", ".join(sorted(tensors))
    assert load_source(entry).notes == (f"'a': the weights under 'backbone.' were used; ignored: {listed}",)


def test_the_other_of_two_heads_is_refused_only_where_both_may_form_a_chain(tmp_path: Path) -> None:
    other = {"fc.weight": torch.ones(C, D), "fc.bias": torch.ones(C)}
    entry = mlp_file(tmp_path, "backbone.", **HEAD, **other)
    assert torch.equal(load_source({**entry, "head": "fc"}).head.weight, other["fc.weight"])  # type: ignore[union-attr]
    entry = mlp_file(tmp_path, "backbone.", **HEAD, **{"fc.weight": torch.ones(D, D), "fc.bias": torch.ones(D)})
    with pytest.raises(SourceError) as error:
        load_source({**entry, "head": "head"})
    assert str(error.value) == BESIDE.format(entry["checkpoint"], "head", "fc.weight")


@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize("name", ["mean", "pixel_mean", "normalize.mean"])
def test_a_model_that_normalises_its_input_needs_mean_and_std(name: str, prefix: str, tmp_path: Path) -> None:
    std = name.replace("mean", "std")
    entry = mlp_file(tmp_path, prefix, **{name: torch.ones(1, 1, 1, 1), std: torch.ones(1, 1, 1, 1)})
    stated = {key: entry.pop(key) for key in ("mean", "std")}
    with pytest.raises(SourceError) as error:
        load_source(entry)
    assert str(error.value) == (
        f"source 'a': {entry['checkpoint']}: the model normalises its own input ({name}, {std}). Pass the same "
        "values for pixels in 0..1: models.sources.N.mean=[...] and std=[...]."
    )
    assert load_source({**entry, **stated}).notes[-1].endswith(f": {name}, {std}")


@pytest.mark.full
def test_a_pooler_is_used_by_no_head_or_refused(tmp_path: Path) -> None:
    tensors = {f"vit.{n}": t for n, t in hugging_face(1, head=False).state_dict().items()}
    entry = entry_of(tmp_path, tensors, vit_arch())
    pooler = "pooler.dense.bias, pooler.dense.weight"
    assert load_source(entry).notes == (
        f"'a': the features are those before the pooler, which is not used: {pooler}",
    )
    head = {name.replace("head", "classifier"): tensor for name, tensor in HEAD.items()}
    entry = entry_of(tmp_path, {**tensors, **head}, vit_arch())
    with pytest.raises(SourceError) as error:
        load_source(entry)
    assert str(error.value) == (
        f"source 'a': {entry['checkpoint']}: there is a head and a pooler ({pooler}), and whether the head reads "
        "the pooler is not in the file. Remove pooler.* from the file if the head reads the class token; "
        "otherwise train another head: fsmerge finetune model.checkpoint=... training.steps=0"
    )
