"""The files of weights of a checkpoint: one file, or shards with an index; found in a folder by their names."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from fsmerge_cli.checkpoints.files import file_sha256, read_tensors
from fsmerge_cli.checkpoints.formats import READ, foreign, kind_of
from fsmerge_cli.checkpoints.key_tables import ADAPTER
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.foreign_files import UnreadableError, read_json_object
from fsmerge_cli.common.safe_pickle import read_pickled
from fsmerge_cli.common.shown import brief, few, shown

INDEX = ".index.json"
NAMES = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Names that libraries give to the weights in a folder; the first that exists is read."""

SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")
OTHERS = re.compile(
    r"(heads|correct)\.safetensors|\..*|"
    r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|trainer_state|adapter_model)[._-].*|"
    r"(bf16_)?zero_pp_rank_.*"
)
"""Files with the suffix of weights that libraries write beside them."""

LOOKED_AT = 500
"""How many entries of a folder without weights are looked at for a hint."""


@dataclass(frozen=True)
class Weights:
    """The files of weights of one checkpoint.

    path: the checkpoint. files: in order. index: name of a tensor -> its file (None: all are in the one file).
    unread: names of other files of weights in the same folder.
    """

    path: Path
    files: tuple[Path, ...]
    index: Mapping[str, Path] | None = None
    unread: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.files)

    def notes(self, name: str) -> tuple[str, ...]:
        """A note for the source `name` on files that were not read; empty if there are none."""
        if not self.unread:
            return ()
        others = f"{few(self.unread)} in the same folder {_are(self.unread, 'was')} not"
        return (f"'{name}': {self.files[0].name} was read, {others}",)

    def sha256(self) -> str:
        """SHA-256 of the file, or over the names and hashes of the shards."""
        if len(self.files) == 1 and self.index is None:
            return file_sha256(self.files[0])
        lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()

    def read(self, where: str, headers: bool = False) -> dict[str, Tensor]:
        """All tensors by their names in the files; headers: on the `meta` device. Raises SourceError."""
        named = {file: file == self.path or where.endswith(f"/{file.name}") for file in self.files}
        inside = {file: where if named[file] else f"{where}: {file.name}" for file in self.files}
        found = {file: read_tensors(file, inside[file], headers)[0] for file in self.files}
        if self.index is None:
            return found[self.files[0]]
        _check_index(self.index, found, where)
        return {name: found[file][name] for name, file in self.index.items()}

    def slices(self, stack: ExitStack) -> Callable[[str], Any]:
        """Access to the tensors by name, for slicing; a legacy file has no header and is read entirely."""
        readers: dict[Path, Callable[[str], Any]] = {}

        def read(name: str) -> Any:
            file = self.files[0] if self.index is None else self.index[name]
            if file not in readers:
                legacy = kind_of(file, str(file)) == "pickle"
                readers[file] = (
                    read_pickled(file, str(file)).__getitem__
                    if legacy
                    else stack.enter_context(safe_open(file, framework="pt")).get_slice
                )
            return readers[file](name)

        return read


def model_in(path: Path) -> Path:
    """The folder merged/ of a run's folder; any other path is returned unchanged."""
    merged = path / "merged"
    own = any((path / name).is_file() for name in NAMES)
    return merged if (merged / NAMES[0]).is_file() and not own else path


def locate(path: Path, where: str) -> Weights:
    """The files of weights of a checkpoint, a file or a folder. Raises SourceError.

    In a folder, the first of NAMES; without one, the only file that looks like weights.
    """
    if not path.is_dir():
        if SHARD.search(path.name):
            raise SourceError(
                f"{where} is one of several shards. Pass their folder, or the file that ends in {INDEX}."
            )
        return _of(path, path, where) if path.exists() else Weights(path, (path,))
    own = [name for name in NAMES if os.path.lexists(path / name)]
    others = sorted(file.name for file in path.iterdir() if _looks_like_weights(file) and file.name not in NAMES)
    shards = [name for name in others if SHARD.search(name)]
    others = [name for name in others if name not in shards]
    if own:
        return _of(path, path / own[0], where, (*own[1:], *others))
    if len(others) == 1:
        return _of(path, path / others[0], where)
    if others:
        raise SourceError(
            f"{where} holds {len(others)} files of weights: {few(others)}. Pass one of them: "
            f"models.sources.N.checkpoint={path / others[0]}"
        )
    raise SourceError(f"{where} {_nothing_in(path, shards)}")


def _of(path: Path, file: Path, where: str, unread: tuple[str, ...] = ()) -> Weights:
    if not file.name.endswith(INDEX):
        return Weights(path, (file,), unread=unread)
    index = _read_index(file, where if file == path else f"{where}: {file.name}")
    return Weights(path, tuple(dict.fromkeys(index.values())), index, unread)


def _read_index(file: Path, where: str) -> dict[str, Path]:
    """Name of a tensor -> its file beside the index. Raises SourceError."""
    try:
        names = {str(name): str(shard) for name, shard in read_json_object(file)["weight_map"].items()}
    except UnreadableError as error:
        raise SourceError(f"{where} cannot be read: {error.why}. {error.remedy or 'Download it again.'}") from None
    except (KeyError, AttributeError):
        names = {}
    if not names:
        raise SourceError(
            f"{where} should contain weight_map, an object from the name of each tensor to its file. Download it "
            "again."
        )
    files = list(dict.fromkeys(names.values()))
    if outside := [name for name in files if Path(name).name != name or name in ("", ".", "..")]:
        raise SourceError(f"{where} names a file outside its folder: {brief(outside[0])}. Download it again.")
    if missing := [name for name in files if not (file.parent / name).is_file()]:
        raise SourceError(
            f"{where} names {len(files)} files, of which {len(missing)} {_are(missing)} missing: {few(missing)}. "
            "Download them again."
        )
    return {name: file.parent / shard for name, shard in names.items()}


def _check_index(index: Mapping[str, Path], found: Mapping[Path, Mapping[str, Tensor]], where: str) -> None:
    """Raise SourceError where index and shards list different tensors."""
    absent = [name for name, file in index.items() if name not in found[file]]
    extra = [name for tensors in found.values() for name in tensors if name not in index]
    if absent or extra:
        texts = [f"names tensors that its files do not have: {few(absent)}"] if absent else []
        texts += [f"does not name tensors that its files have: {few(extra)}"] if extra else []
        raise SourceError(
            f"{where}: the index of the shards {', and '.join(texts)}. They come from different saves: download "
            "the folder again."
        )


def _looks_like_weights(file: Path) -> bool:
    name = file.name.lower()
    return name.endswith((*READ, ".pth.tar", ".pt.tar")) and not OTHERS.fullmatch(name) and file.is_file()


def _nothing_in(path: Path, shards: Sequence[str]) -> str:
    """Why a folder has no weights, and what to do."""
    if shards:
        return f"holds shards ({few(shards)}) without their index, a file that ends in {INDEX}. Download it too."
    if (path / "adapter_config.json").is_file():
        return f"holds {ADAPTER[0]}. {ADAPTER[1]}"
    known = sorted((file.name, found) for file in islice(path.iterdir(), LOOKED_AT) if (found := foreign(file)))
    if known:
        name, (title, remedy) = known[0]
        return f"holds no weights that can be read: {shown(name)} is {title}. {remedy}"
    if below := _below(path):
        return f"holds no weights, but folders below it do: {few(below)}. Pass one of them."
    return (
        f"holds no weights ({NAMES[0]}, {NAMES[2]}, or another file of weights), and no merged/ of a run. Pass "
        "another folder, or a file."
    )


def _below(path: Path) -> list[str]:
    """Folders with weights up to two levels below `path`, among the first ones: the tree may be a whole disk."""
    near = _folders(path)
    far = islice((inner for folder in near for inner in _folders(folder)), LOOKED_AT)
    return sorted(str(f) for f in (*near, *far) if any(os.path.lexists(f / name) for name in NAMES))


def _folders(path: Path) -> list[Path]:
    try:
        return [file for file in islice(path.iterdir(), LOOKED_AT) if file.is_dir()]
    except OSError:
        return []


def _are(names: Sequence[str], singular: str = "is") -> str:
    return singular if len(names) == 1 else {"is": "are", "was": "were"}[singular]
