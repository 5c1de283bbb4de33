"""The tokenizer beside a text model: its files, and its normal form."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from fsmerge_cli.checkpoints.files import readable
from fsmerge_cli.checkpoints.tokenizer_config import require_no_contradiction
from fsmerge_cli.common.errors import SourceError, first_line
from fsmerge_cli.common.foreign_files import UnreadableError, lines_of, read_text
from fsmerge_cli.common.shown import brief, shown
from fsmerge_cli.data.text.tokens import vocabulary_size
from fsmerge_cli.models.tokenization import Side, Tokenization

STATE, CONFIG, VOCABULARY, ADDED = "tokenizer.json", "tokenizer_config.json", "vocab.txt", "added_tokens.json"

FILES = (STATE, CONFIG, "special_tokens_map.json", VOCABULARY, "vocab.json", "merges.txt", ADDED)
"""The files of a tokenizer that are passed on with a merged model."""

PRIVATE = ("name_or_path", "tokenizer_file", "special_tokens_map_file", "auto_map")
"""Keys of tokenizer_config.json that name paths of a machine, or code; they are not passed on."""

MAX_LENGTH = 100_000
"""From here on `model_max_length` means that there is no limit."""

SAVE = (
    "Save it beside the weights: transformers' AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER) writes "
    f"{STATE}."
)


def of_adapter(base: Tokenization, path: Path, where: str, chosen: bool) -> Tokenization:
    """The tokenizer of an adapter at `path`: its own, or that of its base. Raises SourceError where they differ.

    chosen: another one is given, so that it does not matter.
    """
    own = read_tokenizer(path, where)
    if not own.state or chosen:
        return base
    if base.state and (found := base.difference(own)):
        raise SourceError(
            f"{where}: of its tokenizer and that of its base {found}. Pass the folder of the one that it was "
            "trained with: models.sources.N.tokenizer=FOLDER"
        )
    return own


def read_tokenizer(path: Path, where: str) -> Tokenization:
    """The tokenizer in a folder, or beside a file. Raises SourceError; without a tokenizer an empty one."""
    folder = path if path.is_dir() else path.parent
    files = {name: _content(folder / name, where) for name in FILES if os.path.lexists(folder / name)}
    stated = _stated(files, where)
    longest = stated.get("model_max_length")
    limit = longest if isinstance(longest, int) and 0 < longest < MAX_LENGTH else MAX_LENGTH
    side = stated.get("truncation_side", "right")
    if side not in get_args(Side):
        raise SourceError(f"{where}: truncation_side in {CONFIG} should be right or left, is {brief(side)}.")
    if STATE in files:
        state = normal_form(files[STATE], where)
        require_no_contradiction(json.loads(state), stated, where)
        return Tokenization(state, {**files, **_public(files, stated)}, limit, side)
    if VOCABULARY in files and "merges.txt" not in files:
        if files.get(ADDED, b"{}").strip() not in (b"{}", b""):
            raise SourceError(f"{where}: {ADDED} adds tokens to {VOCABULARY}, and there is no {STATE}. {SAVE}")
        state = _word_pieces(files[VOCABULARY], stated, where)
        require_no_contradiction(json.loads(state), stated, where)
        return Tokenization(state, {**files, **_public(files, stated), STATE: state.encode()}, limit, side)
    return Tokenization(longest=limit)


def given_tokenizer(value: Any, where: str) -> Tokenization:
    """The tokenizer in a folder, or of a Python object of transformers or of `tokenizers`. Raises SourceError."""
    if isinstance(value, str):
        found = read_tokenizer(readable(value, where), where)
        require_tokenizer(found, f"{where}: {shown(value)}")
        return found
    with tempfile.TemporaryDirectory() as folder:
        if hasattr(value, "save_pretrained"):
            value.save_pretrained(folder)
        else:
            (Path(folder) / STATE).write_text(value.to_str(), encoding="utf-8")
        found = read_tokenizer(Path(folder), where)
    require_tokenizer(found, f"{where}: {type(value).__name__}")
    return found


def require_tokenizer(found: Tokenization, where: str) -> None:
    """Raise SourceError where there is none."""
    if not found.state:
        raise SourceError(f"{where} has no tokenizer ({STATE}, or {VOCABULARY} of BERT). {SAVE}")


def require_vocabulary(found: Tokenization, rows: int, where: str) -> None:
    """Raise SourceError where the table of words has fewer rows than the tokenizer has tokens."""
    if (size := vocabulary_size(found.state)) > rows:
        raise SourceError(
            f"{where}: its tokenizer has {size} tokens, and the table of words {rows} rows (vocab_size). Put the "
            "tokenizer of this model beside the weights."
        )


def tokenizers_library() -> Any:
    """The library `tokenizers`. Raises SourceError where it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise SourceError(
            "text models need the package tokenizers, which is not installed: pip install 'fsmerge[text]'"
        ) from None
    return tokenizers


def normal_form(content: bytes, where: str) -> str:
    """The JSON of a tokenizer as the library reads it, without truncation and padding. Raises SourceError.

    The special tokens of BERT have one form, that of a template: transformers 5 writes no other.
    """
    library = tokenizers_library()
    try:
        found = library.Tokenizer.from_str(content.decode("utf-8"))
        found.no_padding()
        found.no_truncation()
        state = json.loads(found.to_str())
    except Exception as error:  # the library raises its own bare Exception
        raise SourceError(f"{where}: {STATE} cannot be read ({first_line(error)}). {SAVE}") from None
    if (state.get("post_processor") or {}).get("type") == "BertProcessing":
        state["post_processor"] = _template(*state["post_processor"]["cls"], *state["post_processor"]["sep"])
    return json.dumps(state, sort_keys=True)


def _template(cls: str, cls_number: int, sep: str, sep_number: int) -> dict[str, Any]:
    """`[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`, as the library writes a template."""

    def token(name: str, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": kind}}

    single = [token(cls, 0), {"Sequence": {"id": "A", "type_id": 0}}, token(sep, 0)]
    numbers = {cls: cls_number, sep: sep_number}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}, token(sep, 1)],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in numbers.items()},
    }


def _word_pieces(vocabulary: bytes, stated: Mapping[str, Any], where: str) -> str:
    """BERT's tokenizer from its vocab.txt, as transformers builds it."""
    tokenizers_library()
    from tokenizers import BertWordPieceTokenizer

    words = lines_of(vocabulary.decode("utf-8", "replace"))
    words = words[:-1] if words[-1] == "" else words
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in words]
    if missing:
        raise SourceError(f"{where}: {VOCABULARY} lacks {', '.join(missing)}. {SAVE}")
    found = BertWordPieceTokenizer(
        {word: row for row, word in enumerate(words)},
        lowercase=bool(stated.get("do_lower_case", True)),
        strip_accents=stated.get("strip_accents"),
        handle_chinese_chars=bool(stated.get("tokenize_chinese_chars", True)),
    )
    return normal_form(found.to_str().encode(), where)


def _content(file: Path, where: str) -> bytes:
    try:
        return read_text(file).encode()
    except UnreadableError as error:
        raise SourceError(f"{where}: {file.name} cannot be read: {error.why}. {SAVE}") from None


def _stated(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    if CONFIG not in files:
        return {}
    try:
        found = json.loads(files[CONFIG])
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SourceError(f"{where}: {CONFIG} should be a JSON object. {SAVE}")
    return found


def _public(files: Mapping[str, bytes], stated: Mapping[str, Any]) -> dict[str, bytes]:
    """tokenizer_config.json without what belongs to a machine."""
    if CONFIG not in files:
        return {}
    kept = {key: value for key, value in stated.items() if key not in PRIVATE}
    return {CONFIG: json.dumps(kept, indent=2, ensure_ascii=False).encode()}
