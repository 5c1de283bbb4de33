"""Embedding models of texts: folders of sentence-transformers in and out, with the real library's embeddings."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli import load_merged, load_source, merge
from fsmerge_cli.checkpoints.load import assemble
from fsmerge_cli.checkpoints.open import open_checkpoint
from fsmerge_cli.common.errors import MismatchError, SourceError
from fsmerge_cli.common.wording import WORD
from fsmerge_cli.models.source_spec import SourceSpec
from tests.support.embedding_models import DATA, TEXTS, embeddings, features, stored, tokens
from tests.support.encoders import sentence_pair


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("mode", "kinds"), [("mean_tokens", ("Normalize",)), ("cls_token", ())])
def test_a_folder_has_the_embeddings_of_the_library(mode: str, kinds: tuple[str, ...], tmp_path: Path) -> None:
    source = load_source(stored(tmp_path / "a", 1, mode, kinds))
    what = "the mean of the tokens" if mode == "mean_tokens" else "the first token"
    assert f"'source': its features are {what}, as its modules.json states (sentence-transformers)" in source.notes
    torch.testing.assert_close(features(source), embeddings(tmp_path / "a"), rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_what_the_library_saves_now_is_read_from_the_folder_and_from_the_file(tmp_path: Path) -> None:
    library: Any = pytest.importorskip("sentence_transformers")
    library.SentenceTransformer(str(stored(tmp_path / "old", 1)), device="cpu").save(str(tmp_path / "new"))
    expected = embeddings(tmp_path / "old")
    for path in (tmp_path / "new", tmp_path / "new/model.safetensors", tmp_path / "old/model.safetensors"):
        torch.testing.assert_close(features(load_source(path)), expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_is_trained_from_the_encoder_whatever_its_modules_are(tmp_path: Path) -> None:
    folder = stored(tmp_path / "a", 1, "max_tokens", ("Dense",))
    spec = SourceSpec("a", checkpoint=str(folder))
    start = assemble(spec, open_checkpoint(spec), skip_head=True)
    assert (start.arch.pooler, start.arch.pooling) == (True, "first")


@pytest.mark.parametrize("pooled", [False, True])
def test_the_pretrained_weights_of_both_kinds_of_sources_are_such_a_folder(pooled: bool, tmp_path: Path) -> None:
    folder = stored(tmp_path / "base", 1)
    sources: list[Any] = [load_source(stored(tmp_path / name, 1), name=name) for name in "ab"]
    if pooled:
        spec = SourceSpec("a", checkpoint=str(folder))
        start = assemble(spec, open_checkpoint(spec), skip_head=True)
        sources = [replace(start, name=name) for name in "ab"]
    merged = merge(sources, method="task_arithmetic", base=folder, data=DATA)
    for name, tensor in merged.solution.weights.items():
        torch.testing.assert_close(tensor, sources[0].weights[name])


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_two_embedding_models_become_folders_of_the_library(tmp_path: Path) -> None:
    folders = [stored(tmp_path / name, seed) for seed, name in enumerate("ab", 1)]
    entries = [{"name": folder.name, "checkpoint": str(folder)} for folder in folders]
    merge(entries, method={"name": "fs_closed_form", "views": 0}, data=DATA, output=tmp_path / "out")
    evaluation = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert {own["status"] for own in evaluation["certificates"].values()} <= {"holds", "not applicable"}
    assert evaluation["certificates"]["tasks"]["status"] == "holds"
    model = load_merged(tmp_path / "out")
    read = tokens(load_source(folders[0]).preprocessing)
    for name in "ab":
        expected = torch.nn.functional.normalize(model.features(read, name))
        torch.testing.assert_close(embeddings(tmp_path / f"out/tasks/{name}"), expected, rtol=1e-3, atol=1e-4)


VISIBLE = re.compile(r"<style>.*?</style>|<pre.*?</pre>|<code>.*?</code>|<[^>]*>|```.*?```|`[^`]*`", re.DOTALL)
"""What is no text for a reader."""


@pytest.mark.full
@pytest.mark.parametrize("headless", [True, False])
def test_report_and_card_of_texts_have_no_images(headless: bool, tmp_path: Path) -> None:
    entries = sentence_pair(tmp_path, "BERT")
    if headless:
        entries = [{"name": name, "checkpoint": str(stored(tmp_path / name, n))} for n, name in enumerate("ab", 1)]
    data = DATA if headless else {"name": "sentences", "images_per_task": 20}
    merge(entries, method="average", data=data, output=tmp_path / "out")
    for name in ("report.html", "merged/README.md"):
        text = VISIBLE.sub(" ", (tmp_path / "out" / name).read_text())
        assert WORD.findall(text) == [], name
    card = (tmp_path / "out/merged/README.md").read_text()
    used = 'SentenceTransformer("tasks/a")' if headless else 'pipeline("text-classification", model="tasks/topic")'
    assert used in card


@pytest.mark.parametrize(
    ("mode", "kinds", "message"),
    [
        (
            "max_tokens",
            (),
            "its Pooling of sentence-transformers is 'max_tokens'. Read are the mean of the tokens (mean) and the "
            "first token (cls).",
        ),
        (
            "mean_tokens",
            ("Normalize", "Dense"),
            "has the modules Transformer, Pooling, Normalize, Dense of sentence-transformers. Read are a "
            "Transformer, a Pooling, any number of Dense and a Normalize, in this order.",
        ),
    ],
)
def test_other_modules_are_refused(mode: str, kinds: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        load_source(stored(tmp_path / "a", 1, mode, kinds))
    assert str(error.value).endswith(message)


def test_models_of_unlike_pooling_are_refused(tmp_path: Path) -> None:
    folders = [stored(tmp_path / name, 1, mode) for name, mode in (("a", "mean_tokens"), ("b", "cls_token"))]
    reason = "features: 'a' has the mean of the tokens, 'b' has the first token"
    with pytest.raises(MismatchError, match=reason):
        merge([load_source(folder, name=folder.name) for folder in folders], method="average", data=DATA)


@pytest.mark.full
def test_the_shortest_limit_of_the_sources_is_that_of_the_written_folders(tmp_path: Path) -> None:
    folders = [stored(tmp_path / name, seed) for seed, name in enumerate("ab", 1)]
    (folders[1] / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')
    sources = [load_source(folder, name=folder.name) for folder in folders]
    assert [own.preprocessing.longest for own in sources] == [64, 7]
    result = merge(sources, method="regmean", data=TEXTS * 2, output=tmp_path / "out")
    assert "texts are cut to 7 tokens, the smallest limit of the sources: 'a' 64, 'b' 7" in result.notes
    for task in "ab":
        stated = json.loads((tmp_path / "out/tasks" / task / "sentence_bert_config.json").read_text())
        assert stated == {"max_seq_length": 7, "do_lower_case": False}


def test_a_limit_that_is_no_number_is_refused(tmp_path: Path) -> None:
    folder = stored(tmp_path / "a", 1)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": "long"}')
    with pytest.raises(SourceError) as error:
        load_source(folder)
    assert str(error.value) == (
        f"source 'source': {folder}: max_seq_length in sentence_bert_config.json should be a number of tokens, is "
        "'long'."
    )
