"""A head of several layers gives the logits of its torch module, or is refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fsmerge_cli import load_merged, load_source, merge
from fsmerge_cli.common.errors import SourceError
from tests.support.heads import (
    HEAD,
    LAYOUTS,
    C,
    Cosine,
    D,
    linear,
    logits_agree,
    mlp_file,
    named,
    pruned,
    randomised,
    weight_norm,
    written,
)
from tests.support.third_party import PIXELS, random_weights
from tests.support.vits import TINY

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")

BATCH, LAYER = (
    f"'a': its head has a layer that is read as {n}Norm with eps 1e-05: head." for n in ("Batch", "Layer")
)
DROPOUT = "'a': its head starts with layers without tensors, which are taken as Dropout: head.{}"

READ: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "a linear layer": (linear, []),
    "without bias": (lambda: nn.Linear(D, C, bias=False), []),
    "Dropout, linear": (lambda: nn.Sequential(nn.Dropout(), linear()), [DROPOUT.format("0")]),
    "Identity, Dropout, linear": (
        lambda: nn.Sequential(nn.Identity(), nn.Dropout(), linear()),
        [DROPOUT.format("0, head.1")],
    ),
    "linear, Dropout": (lambda: nn.Sequential(linear(), nn.Dropout()), []),
    "a named linear layer": (lambda: named(fc=linear()), []),
    "BatchNorm, linear": (lambda: nn.Sequential(nn.BatchNorm1d(D), linear()), [BATCH + "0"]),
    "BatchNorm without affine, linear": (
        lambda: nn.Sequential(nn.BatchNorm1d(D, affine=False), linear()),
        [BATCH + "0"],
    ),
    "BatchNorm, linear without bias": (
        lambda: nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, C, bias=False)),
        [BATCH + "0"],
    ),
    "linear, BatchNorm": (
        lambda: nn.Sequential(linear(), nn.BatchNorm1d(C)),
        [BATCH + "1"],
    ),
    "linear without bias, BatchNorm": (
        lambda: nn.Sequential(nn.Linear(D, C, bias=False), nn.BatchNorm1d(C)),
        [BATCH + "1"],
    ),
    "BatchNorm, linear, BatchNorm": (
        lambda: nn.Sequential(nn.BatchNorm1d(D), linear(), nn.BatchNorm1d(C)),
        [BATCH + "0", BATCH + "2"],
    ),
    "Dropout, BatchNorm, linear": (
        lambda: nn.Sequential(nn.Dropout(), nn.BatchNorm1d(D), linear()),
        [DROPOUT.format("0"), BATCH + "1"],
    ),
    "two BatchNorms, linear": (
        lambda: nn.Sequential(nn.BatchNorm1d(D), nn.BatchNorm1d(D), linear()),
        [BATCH + "0", BATCH + "1"],
    ),
    "named BatchNorm, linear": (
        lambda: named(bn=nn.BatchNorm1d(D), fc=linear()),
        [BATCH + "bn"],
    ),
    "LayerNorm, linear": (
        lambda: nn.Sequential(nn.LayerNorm(D), linear()),
        [LAYER + "0"],
    ),
    "named LayerNorm, linear": (
        lambda: named(norm=nn.LayerNorm(D), fc=linear()),
        [LAYER + "norm"],
    ),
    "LayerNorm, BatchNorm, linear": (
        lambda: nn.Sequential(nn.LayerNorm(D), nn.BatchNorm1d(D), linear()),
        [LAYER + "0", BATCH + "1"],
    ),
    "weight norm": (lambda: weight_norm(True), []),
    "weight norm of the columns": (lambda: weight_norm(True, 1), []),
    "weight norm of the whole": (lambda: weight_norm(True, None), []),
    "weight norm as a parametrisation": (lambda: weight_norm(False), []),
    "Dropout, weight norm": (lambda: nn.Sequential(nn.Dropout(), weight_norm(False)), [DROPOUT.format("0")]),
    "BatchNorm, weight norm": (lambda: nn.Sequential(nn.BatchNorm1d(D), weight_norm(True)), [BATCH + "0"]),
}

KIND = "it has tensors of another kind of layer"
TWO = "it has 2 linear layers, and what lies between them is not in the file"
INSIDE = "inside it are layers without tensors, perhaps activations"
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "two linear layers": (
        lambda: nn.Sequential(nn.Linear(D, D), linear()),
        f"{TWO} (head.0.bias, head.0.weight, head.1.bias, head.1.weight)",
    ),
    "two linear layers and ReLU": (
        lambda: nn.Sequential(nn.Linear(D, 7), nn.ReLU(), nn.Linear(7, C)),
        f"{TWO} (head.0.bias, head.0.weight, head.2.bias, head.2.weight)",
    ),
    "two named linear layers": (
        lambda: named(fc1=nn.Linear(D, D, bias=False), fc2=linear()),
        f"{TWO} (head.fc1.weight, head.fc2.bias, head.fc2.weight)",
    ),
    "BatchNorm, ReLU, linear": (
        lambda: nn.Sequential(nn.BatchNorm1d(D), nn.ReLU(), linear()),
        f"{INSIDE} (head.1)",
    ),
    "linear, Tanh, BatchNorm": (
        lambda: nn.Sequential(linear(), nn.Tanh(), nn.BatchNorm1d(C)),
        f"{INSIDE} (head.1)",
    ),
    "nested layers": (
        lambda: nn.Sequential(nn.Sequential(nn.BatchNorm1d(D), nn.ReLU()), linear()),
        "what lies between its layers is not in the file (head.0.0, head.1)",
    ),
    "linear, LayerNorm": (
        lambda: nn.Sequential(linear(), nn.LayerNorm(C)),
        "its layers do not fit together (head.1)",
    ),
    "BatchNorm, LayerNorm, linear": (
        lambda: nn.Sequential(nn.BatchNorm1d(D), nn.LayerNorm(D), linear()),
        "its layers do not fit together (head.0)",
    ),
    "named norms of one width": (
        lambda: named(norm=nn.LayerNorm(D), bn=nn.BatchNorm1d(D), fc=linear()),
        "the order of its layers is not in the file (head.bn, head.fc, head.norm)",
    ),
    "LayerNorm without bias": (
        lambda: nn.Sequential(nn.LayerNorm(D, bias=False), linear()),
        f"{KIND} (head.0.weight)",
    ),
    "a cosine with a scale": (lambda: Cosine(scale=True), f"{KIND} (head.scale, head.weight)"),
    "spectral norm": (
        lambda: nn.utils.spectral_norm(linear()),
        f"{KIND} (head.bias, head.weight_orig, head.weight_u, head.weight_v)",
    ),
    "spectral norm as a parametrisation": (
        lambda: nn.utils.parametrizations.spectral_norm(linear()),
        f"{KIND} (head.bias, head.parametrizations.weight.0._u, head.parametrizations.weight.0._v, "
        "head.parametrizations.weight.original)",
    ),
    "pruned": (
        pruned,
        f"{KIND} (head.bias, head.weight_mask, head.weight_orig)",
    ),
    "PReLU, linear": (lambda: nn.Sequential(nn.PReLU(), linear()), f"{KIND} (head.0.weight)"),
}


@pytest.mark.parametrize("case", READ)
def test_the_head_of_a_file_gives_the_logits_of_its_module(case: str, tmp_path: Path) -> None:
    build, notes = READ[case]
    head = randomised(build())
    entry, _ = written("mlp", head, tmp_path)
    found = load_source(entry)
    assert logits_agree(found, head)
    assert [*found.notes] == notes


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["BatchNorm, linear", "LayerNorm, linear", "Dropout, linear", "weight norm"])
def test_a_head_is_read_alike_in_every_layout(case: str, layout: str, tmp_path: Path) -> None:
    build, notes = READ[case]
    head = randomised(build())
    entry, name = written(layout, head, tmp_path)
    found = load_source(entry)
    assert logits_agree(found, head)
    assert [*found.notes] == [note.replace("head.", f"{name}.") for note in notes]


@pytest.mark.parametrize("case", REFUSED)
def test_a_head_that_is_not_linear_is_refused_by_name(case: str, tmp_path: Path) -> None:
    build, why = REFUSED[case]
    entry, _ = written("mlp", randomised(build()), tmp_path)
    with pytest.raises(SourceError) as error:
        load_source(entry)
    assert str(error.value) == (
        f"source 'a': {entry['checkpoint']}: the head 'head' is not a linear classifier: {why}. A head is read if "
        "it is one linear layer, with BatchNorm around it or one LayerNorm before it at most. `fsmerge finetune "
        "model.checkpoint=... training.steps=0` trains such a head on this backbone; without these tensors in the "
        "file the source is merged without a head."
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["two linear layers", "a cosine with a scale", "BatchNorm, ReLU, linear"])
def test_a_head_that_is_not_linear_is_refused_in_every_layout(case: str, layout: str, tmp_path: Path) -> None:
    build, why = REFUSED[case]
    entry, name = written(layout, randomised(build()), tmp_path)
    with pytest.raises(SourceError) as error:
        load_source(entry)
    assert f"the head '{name}' is not a linear classifier: {why.replace('head.', f'{name}.')}. " in str(
        error.value
    )


def folder_of(folder: Path, heads: dict[str, Tensor], **model: Tensor) -> dict[str, Any]:
    """The entry of a folder with heads.safetensors that fsmerge did not write."""
    entry = mlp_file(folder, **model)
    Path(entry["checkpoint"]).rename(folder / "model.safetensors")
    save_file(heads, folder / "heads.safetensors")
    return {**entry, "checkpoint": str(folder)}


def test_heads_in_a_file_of_their_own_are_read_by_the_same_rules(tmp_path: Path) -> None:
    head = randomised(nn.Sequential(nn.BatchNorm1d(D), linear()))
    state = {f"pets.{name}": tensor for name, tensor in head.state_dict().items()}
    assert logits_agree(load_source(folder_of(tmp_path, state)), head)
    for tensors, complaint in (
        ({"pets.weight": torch.ones(C, D), "pets.scale": torch.ones(1)}, "the head 'pets' is not a linear"),
        (
            {"pets.0.weight": torch.ones(D, D), "pets.1.weight": torch.ones(C, D)},
            "the head 'pets' is not a linear classifier: it has 2 linear layers",
        ),
        (
            {"weight": torch.ones(C, D)},
            "heads.safetensors holds weight without the name of a head. Call its tensors",
        ),
        (
            {"pets.gamma": torch.ones(C, D)},
            "the head 'pets' is not a linear classifier: it has tensors of another",
        ),
    ):
        with pytest.raises(SourceError) as error:
            load_source(folder_of(tmp_path, tensors))
        assert complaint in str(error.value)
    found = load_source(folder_of(tmp_path, {"pets.weight": torch.ones(C, D)}, **HEAD))
    assert found.notes == ("'a': the heads are those in heads.safetensors; not used: head.bias, head.weight",)


def test_the_head_of_a_module_is_read_by_its_layers() -> None:
    """Dropout, eps and activations are known where the module is given."""
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=C, **TINY)
    model = random_weights(model, 1)
    for head, expected in (
        (nn.Sequential(nn.Dropout(), linear()), None),
        (nn.Sequential(nn.BatchNorm1d(D, eps=0.5), nn.Dropout(), linear()), None),
        (nn.Sequential(nn.LayerNorm(D, eps=0.5), linear()), None),
        (weight_norm(False), None),
        (nn.Sequential(nn.ReLU(), linear()), "it contains ReLU (head.0)"),
        (nn.Sequential(nn.BatchNorm1d(D), nn.GELU(), linear()), "it contains GELU (head.1)"),
        (Cosine(scale=False), "it is a Cosine, not a Linear (head)"),
        (nn.Sequential(nn.GroupNorm(3, D), linear()), "it is a GroupNorm, not a LayerNorm (head.0)"),
    ):
        model.head = randomised(head)
        entry = {"name": "a", "module": model, **PIXELS}
        if expected is None:
            found = load_source(entry)
            assert logits_agree(found, head)
            assert found.notes == ()
        else:
            with pytest.raises(SourceError) as error:
                load_source(entry)
            assert f"is not a linear classifier: {expected}. " in str(error.value)


@pytest.mark.parametrize("method", ["average", "regmean"])
def test_a_head_with_layer_norm_is_merged_and_written(method: str, tmp_path: Path) -> None:
    """The certificates hold, and the written model and the code on its card give the logits of the merged one."""
    heads = {name: randomised(nn.Sequential(nn.LayerNorm(D), linear()), seed) for seed, name in enumerate("ab")}
    entries = []
    for name, head in heads.items():
        (tmp_path / name).mkdir()
        state = {f"head.{n}": t for n, t in head.state_dict().items()}
        entries.append({**mlp_file(tmp_path / name, **state), "name": name})
    images = {"name": "generated", "images_per_task": 64, "validation": 0.0}
    merge(entries, method=method, data=None if method == "average" else images, output=tmp_path / "out")
    written = load_merged(tmp_path / "out")
    pixels = torch.rand(4, 1, 4, 4)
    for name, head in heads.items():
        own = written.heads[name]
        assert own.projector is not None
        with torch.no_grad():
            expected = head(written.backbone(pixels) @ own.projector.T)
            assert torch.allclose(written.logits(pixels, name), expected, atol=1e-4)
    card = (tmp_path / "out/merged/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("torch.rand(1, 1, 4, 4)", "PIXELS")
    names: dict[str, Any] = {"PIXELS": pixels}
    with contextlib.chdir(tmp_path / "out/merged"):
        exec(code, names)
    assert torch.allclose(names["logits"], written.logits(pixels, "a"), atol=1e-5)
