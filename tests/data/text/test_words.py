"""Words with tags: which token stands for a word, and how files hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.inputs import READ
from fsmerge_cli.data.base import Task
from fsmerge_cli.data.text.files import Columns, rows_of
from fsmerge_cli.data.text.in_memory import TextsInMemory
from fsmerge_cli.data.text.sentences import Sentences
from fsmerge_cli.data.text.text import Texts
from fsmerge_cli.data.text.tokens import ToTokens
from fsmerge_cli.data.text.words import Words

READER = ToTokens(Sentences.tokenization().state, 64, 2, words=True)
TASK = Task("ner", ("O", "PER"))
NOTE = (
    "task 'ner': the tag of a word is that of its first token, which is learned and measured; its other tokens "
    "have none"
)
ROWS = [{"tokens": ["Anna", "baked", "a", "cake", "."], "tags": ["PER", "O", "O", "O", "O"]}]


def byte_level() -> str:
    """A byte-level BPE without merges: every character is a token, a space the start of the next one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE({token: row for row, token in enumerate(alphabet)}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.post_processor = processors.ByteLevel(trim_offsets=False)
    found: str = own.to_str()
    return found


def metaspace() -> str:
    """Words as SentencePiece marks them, whose token includes the space before."""
    vocab: list[tuple[str, float]] = [("<unk>", 0.0), ("▁", -9.0), *((f"▁{w}", -1.0) for w in ("a", "no", "go"))]
    own = Tokenizer(models.Unigram([*vocab, *((c, -5.0) for c in "abgno")], 0, False))
    own.normalizer, own.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    found: str = own.to_str()
    return found


@pytest.mark.parametrize("state", [byte_level(), metaspace()], ids=["byte-level", "metaspace"])
def test_the_first_token_of_a_word_is_read_where_tokens_begin_with_a_space(state: str) -> None:
    words = Words(("no", "goban", "a"))
    reader = ToTokens(state, 64, 2, words=True)
    (encoding,) = reader._encoded([words], None)
    read = reader(words).tensors[READ].tolist()
    assert reader.word_numbers(words) == [0, 1, 2]
    starts = [start for own, (start, _) in zip(read, encoding.offsets) if own]
    text = str(words)
    assert [start + text[start:].startswith(" ") for start in starts] == [0, 3, 9]


@pytest.mark.parametrize("trimmed", [True, False])
def test_a_token_that_is_the_space_before_a_word_is_its_first_one(trimmed: bool) -> None:
    """As transformers numbers the words that it gets one by one."""
    own = Tokenizer.from_str(byte_level())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    own.post_processor = processors.ByteLevel(trim_offsets=trimmed)
    words = Words(("漢", "ab", "漢", "ab"))
    read = ToTokens(own.to_str(), 64, 2, words=True)(words).tensors[READ].tolist()
    numbers = own.encode([*words.words], is_pretokenized=True).word_ids
    assert [place for place, one in enumerate(read) if one] == [numbers.index(word) for word in range(4)]


def test_the_first_piece_of_a_word_is_read_and_its_punctuation_is_none_of_its_own() -> None:
    words = Words(("unbelievable", "don't", "cake"))
    (encoding,) = READER._encoded([words], None)
    read = READER(words).tensors[READ].tolist()
    assert [token for token, own in zip(encoding.tokens, read) if own] == ["u", "d", "cake"]
    assert READER("unbelievable don't cake").tensors[READ].tolist() == read  # white space separates words
    assert ToTokens(READER.state, 64, 2)(words).tensors.keys() == READER(words).tensors.keys() - {READ}


def test_a_word_that_is_cut_off_or_leaves_no_token_has_no_label() -> None:
    rows = [{"tokens": ["Anna", "", "baked", "cake"], "tags": ["PER", "O", "O", "PER"]}]
    found = TextsInMemory(content=rows, max_length=4).build("train", TASK, READER)
    assert found is not None
    assert found.transform.word_numbers(found.read(0)[0]) == [0, 2]  # type: ignore[attr-defined]
    assert (found.labels(0), found.only([0]).labels(0)) == ([1, 0], [1, 0])
    assert int(found[0][0].tensors[READ].sum()) == 2


def test_words_without_a_tag_and_with_a_tag_of_another_task_have_no_class() -> None:
    rows = [{"tokens": ["a", "b", "c", "d", "e"], "tags": ["PER", None, "LOC", -100, "O"]}]
    found = TextsInMemory(content=rows).build("train", TASK, READER)
    assert found is not None
    assert found.labels(0) == [1, -1, -1, -1, 0]
    assert found.notes == ("task 'ner': 3 of 5 words have none of its labels: not used", NOTE)


def saved(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, ROWS)))
    elif name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    else:
        pairs = zip(ROWS[0]["tokens"], ROWS[0]["tags"])
        path.write_text("-DOCSTART- -X- O\n\n" + "\n".join(f"{word} NN {tag}" for word, tag in pairs) + "\n\n")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.conll"])
def test_words_and_tags_are_read_from_files(name: str, tmp_path: Path) -> None:
    data = Texts(train=str(saved(tmp_path, name)), test_share=0.0)
    found = data.build("train", TASK, READER)
    assert found is not None
    assert found.read(0)[0] == Words(("Anna", "baked", "a", "cake", "."))
    assert (found.labels(0), found.labelled) == ([1, 0, 0, 0, 0], True)
    assert data.classes(TASK) == ("O", "PER")
    plain = data.build("train", Task("x", None), ToTokens(READER.state, 64, 2))
    assert plain is not None
    assert plain.read(0) == ("Anna baked a cake .", -1)


@pytest.mark.full
def test_tags_of_a_data_set_of_hugging_face_have_their_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["O", "PER"])
    features = datasets.Features(
        {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": datasets.Sequence(names)}
    )
    own = datasets.Dataset.from_dict({"tokens": [["Anna", "left"]], "ner_tags": [[1, 0]]}, features=features)
    own.to_parquet(tmp_path / "a.parquet")
    for data in (TextsInMemory(content=own), Texts(train=str(tmp_path / "a.parquet"))):
        found: Any = data.build("train", TASK, READER)
        assert found.labels(0) == [1, 0]


WRONG: dict[str, tuple[Any, str]] = {
    "fewer tags": (
        [{"tokens": ["a", "b"], "tags": ["O"]}],
        "there are 2 words and 1 tags. Repair the file: every word has one.",
    ),
    "a word that is a number": (
        [{"tokens": ["a", 3], "tags": ["O", "O"]}],
        "the words should be a list of strings, are ['a', 3].",
    ),
    "one tag": (
        [{"tokens": ["a", "b"], "tags": "O"}],
        "the tags should be a list of names or whole numbers, one per word, are 'O'.",
    ),
    "a pair": (
        [{"premise": "a", "hypothesis": "b"}],
        "these sources read words, each with its own features, and ('a', 'b') is no text. Pass a text, or its "
        "words.",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_are_no_words_with_tags_is_refused_with_its_place(kind: str, tmp_path: Path) -> None:
    rows, message = WRONG[kind]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError) as error:
        Texts(train=str(path), test_share=0.0).build("train", TASK, READER)
    assert str(error.value) == f"{path}:1: {message}"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("# sent_id = 1\n1\tAnna\tPROPN\n", 1),
        ("1\tAnna\tPROPN\n2\tbaked\tVERB\n\n", 3),
        ("#begin document (x); part 000\nx 0 0 Anna PER\n", 1),
    ],
)
def test_other_kinds_of_conll_are_refused(content: str, line: int, tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text(content)
    with pytest.raises(DataError) as error:
        rows_of(tmp_path / "a.conll", Columns())
    assert str(error.value) == (
        f"{tmp_path}/a.conll, line {line}: this looks like CoNLL-U or CoNLL-2012, whose first column is no word. "
        "Write a word per line, its tag last, and a blank line behind every sentence."
    )


def test_words_that_are_numbers_are_words(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("1 O\n2 O\n\n1 CD O\n\n# O\nx O\n")
    rows = rows_of(tmp_path / "a.conll", Columns())
    assert [str(row.text) for row in rows] == ["1 2", "1", "# x"]


def test_a_line_of_conll_without_a_tag_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("Anna PER\nbaked\n")
    with pytest.raises(DataError) as error:
        Texts(train=str(path)).build("train", TASK, READER)
    assert str(error.value) == (
        f"{path}, line 2: there is one column, and a line should be a word and its tag, with white space between. "
        "Repair the file."
    )


def test_labels_of_whole_texts_are_not_those_of_words() -> None:
    found = TextsInMemory(content=[{"text": "anna left", "label": "good"}]).build("train", TASK, READER)
    assert found is not None
    assert (found.labels(0), found.labelled) == ([-1, -1], False)
    assert found.notes == (
        "task 'ner': 1 of 1 texts have one label, and its source predicts a tag for every word: these labels are "
        "not used",
    )
