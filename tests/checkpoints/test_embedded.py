from __future__ import annotations

import inspect
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fsmerge_cli.architectures import SPECS
from fsmerge_cli.checkpoints import embedded
from fsmerge_cli.checkpoints.embedded import content_key, ensure_trained
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.common.cache import cache_folder
from fsmerge_cli.common.errors import SourceError, UserError
from fsmerge_cli.common.progress import Event, silent
from fsmerge_cli.data import DATASETS
from fsmerge_cli.data.base import Task, ToPixels
from fsmerge_cli.data.images.digits import Digits
from fsmerge_cli.models.source_spec import Recipe, SourceSpec
from fsmerge_cli.training.teachers import network

SPEC = SourceSpec(
    "tiny",
    arch={"family": "mlp", "input_size": (1, 8, 8), "widths": (6,)},
    labels=("0", "1", "2"),
    recipe=Recipe("digits", seed=1, steps=3),
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads are slower for networks this small
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sources that were trained, in order."""
    names: list[str] = []
    fit: Callable[..., Any] = embedded.fit_classifier

    def counted(*args: Any) -> Any:
        names.append(args[6])
        return fit(*args)

    monkeypatch.setattr(embedded, "fit_classifier", counted)
    return names


def entry() -> Path:
    return cache_folder() / "sources" / content_key(SPEC)


def test_a_source_is_trained_once_and_then_cached(trainings: list[str]) -> None:
    first = ensure_trained(SPEC, silent)
    assert first == replace(SPEC, checkpoint=str(entry()))
    before = {path.name: path.read_bytes() for path in entry().iterdir()}
    assert set(before) == {".fsmerge.json", "config.json", "model.safetensors", "heads.safetensors", "seal.json"}
    assert ensure_trained(SPEC, silent) == first
    assert trainings == ["tiny"]
    assert {path.name: path.read_bytes() for path in entry().iterdir()} == before


def test_training_again_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Path(str(ensure_trained(SPEC, silent).checkpoint))
    monkeypatch.setenv("FSMERGE_CACHE", str(tmp_path / "other"))
    torch.manual_seed(1234)  # the global generator has no effect
    two = Path(str(ensure_trained(SPEC, silent).checkpoint))
    assert one != two
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


def test_training_does_not_change_the_global_generator() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    ensure_trained(SPEC, silent)
    assert torch.equal(torch.rand(3), expected)


def test_every_step_is_reported() -> None:
    events: list[Event] = []
    ensure_trained(SPEC, events.append)
    assert [(e.phase, e.done, e.total) for e in events] == [("train source tiny", n, 3) for n in (1, 2, 3)]
    assert all(set(e.values) == {"loss"} for e in events)


@pytest.mark.parametrize(
    "changed",
    [
        replace(SPEC, name="other"),
        replace(SPEC, labels=("0", "1")),
        replace(SPEC, labels=("2", "1", "0")),
        replace(SPEC, arch={**(SPEC.arch or {}), "widths": (7,)}),
        replace(SPEC, arch={**(SPEC.arch or {}), "activation": "tanh"}),
        *(
            replace(SPEC, recipe=replace(SPEC.recipe or Recipe("", 0), **{key: value}))
            for key, value in {"seed": 2, "steps": 4, "batch_size": 32, "lr": 0.1, "weight_decay": 0.5}.items()
        ),
    ],
)
def test_the_key_changes_with_everything_that_the_weights_depend_on(changed: SourceSpec) -> None:
    assert content_key(SPEC) == content_key(replace(SPEC))
    assert content_key(changed) != content_key(SPEC)


def test_the_key_changes_with_the_code_and_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_key(SPEC)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0.0.0")
        assert content_key(SPEC) != before
    real = inspect.getsource
    for changed in (embedded.fit_classifier, SPECS["mlp"].build, sys.modules[Digits.__module__]):
        with monkeypatch.context() as patch:
            patch.setattr(inspect, "getsource", lambda part, c=changed: real(part) + ("#" if part is c else ""))
            assert content_key(SPEC) != before
    assert content_key(SPEC) == before


def test_the_key_ignores_options_that_do_not_affect_training() -> None:
    assert content_key(replace(SPEC, mean=(0.5,), std=(0.5,), head="tiny")) == content_key(SPEC)


@pytest.mark.parametrize("name", ["model.safetensors", "heads.safetensors", "config.json"])
def test_an_entry_that_was_tampered_with_is_trained_again(name: str, trainings: list[str]) -> None:
    ensure_trained(SPEC, silent)
    good = (entry() / name).read_bytes()
    (entry() / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    ensure_trained(SPEC, silent)
    assert trainings == ["tiny", "tiny"]
    assert (entry() / name).read_bytes() == good


@pytest.mark.parametrize("name", ["model.safetensors", "heads.safetensors", "config.json", "seal.json"])
def test_an_entry_with_a_missing_file_is_trained_again(name: str, trainings: list[str]) -> None:
    ensure_trained(SPEC, silent)
    good = (entry() / name).read_bytes()
    (entry() / name).unlink()
    ensure_trained(SPEC, silent)
    assert trainings == ["tiny", "tiny"]
    assert (entry() / name).read_bytes() == good


@pytest.mark.full
@pytest.mark.parametrize("seal", ["", "not json", "[]", "{}", '{"sha256": null}'])
def test_an_entry_with_a_broken_seal_is_trained_again(seal: str, trainings: list[str]) -> None:
    ensure_trained(SPEC, silent)
    (entry() / "seal.json").write_text(seal)
    ensure_trained(SPEC, silent)
    assert trainings == ["tiny", "tiny"]
    assert ensure_trained(SPEC, silent).checkpoint == str(entry())
    assert trainings == ["tiny", "tiny"]


def test_a_training_that_fails_leaves_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(embedded, "fit_classifier", broken)
    with pytest.raises(RuntimeError, match=r"^boom$"):
        ensure_trained(SPEC, silent)
    assert not entry().exists()


def test_two_threads_share_one_training(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    fit: Callable[..., Any] = embedded.fit_classifier

    def slow(*args: Any) -> Any:
        names.append(args[6])
        time.sleep(0.3)
        return fit(*args)

    monkeypatch.setattr(embedded, "fit_classifier", slow)
    found: list[SourceSpec] = []
    threads = [threading.Thread(target=lambda: found.append(ensure_trained(SPEC, silent))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == ["tiny"]
    assert [spec.checkpoint for spec in found] == [str(entry())] * 3


def test_a_cache_entry_is_read_as_a_checkpoint() -> None:
    source = load(ensure_trained(SPEC, silent))
    stored = load_file(entry() / "model.safetensors")
    assert source.weights.keys() == stored.keys()
    assert all(torch.equal(source.weights[name], stored[name]) for name in stored)
    assert source.labels == SPEC.labels
    assert load(SourceSpec("mine", checkpoint=str(entry()))).labels == SPEC.labels
    assert json.loads((entry() / "config.json").read_text())["architecture"] == "mlp"


def test_a_trained_source_classifies_its_task() -> None:
    spec = replace(SPEC, recipe=Recipe("digits", seed=1, steps=200))
    source = load(ensure_trained(spec, silent))
    images = Digits().build("test", Task(spec.name, spec.labels), ToPixels((1, 8, 8)))
    pixels = torch.stack([images[i][0] for i in range(len(images))])
    labels = torch.tensor([images[i][1] for i in range(len(images))])
    assert source.head is not None
    predictions = source.head(network(source)(pixels)).argmax(1)
    assert (predictions == labels).float().mean() > 0.9


def test_a_source_with_a_checkpoint_or_without_a_recipe_is_unchanged(trainings: list[str], tmp_path: Path) -> None:
    for spec in (replace(SPEC, checkpoint="mine"), replace(SPEC, recipe=None)):
        assert ensure_trained(spec, silent) is spec
    assert trainings == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": None}, "source 'tiny': a recipe also needs arch and labels."),
        ({"arch": None}, "source 'tiny': a recipe also needs arch and labels."),
    ],
)
def test_a_recipe_without_arch_or_labels_is_refused(changed: dict[str, None], message: str) -> None:
    with pytest.raises(SourceError) as error:
        ensure_trained(replace(SPEC, **changed), silent)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"arch": {"family": "mpl"}},
            "source 'tiny': unknown arch.family 'mpl'. Did you mean 'mlp'? "
            f"Available: {', '.join(sorted(SPECS))}.",
        ),
        (
            {"arch": {"family": "mlp", "widths": (6,)}},
            "source 'tiny': arch.input_size is missing.",
        ),
        (
            {"recipe": Recipe("digit", 0)},
            "source 'tiny': recipe.data: unknown data set 'digit'. Did you mean 'digits'? "
            f"Available: {', '.join(sorted(DATASETS))}.",
        ),
    ],
)
def test_a_recipe_with_unknown_names_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        ensure_trained(replace(SPEC, **changed), silent)
    assert str(error.value) == message


def test_the_cache_folder_is_that_of_the_variable_or_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FSMERGE_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "home/mine"
    monkeypatch.delenv("FSMERGE_CACHE")
    assert cache_folder().name == "fsmerge"
