"""Hugging Face's `datasets`: the splits of a local folder, or of a data set on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsmerge_cli.common.errors import DataError, first_line, from_cache
from fsmerge_cli.common.foreign_files import UnreadableError, read_text
from fsmerge_cli.common.shown import shown

HUB_SECONDS = 10.0
"""How long the hub may take to answer whether it has a data set."""


def splits_of(path: str, config_name: str | None, name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """All splits by name, and notes. name: of the data set in fsmerge, for messages. Raises DataError."""
    with _library(name) as datasets:
        try:
            found, notes = _load(datasets, path, config_name, name)
        except DataError as error:
            raise DataError(f"data={name}: {shown(path)} cannot be loaded: {error}.") from None
        except Exception as error:  # its readers raise errors of many types
            local = Path(path).expanduser().exists() or isinstance(error, FileNotFoundError)
            hint = "Pass another data.path=PATH" if local else "Without network access, pass a local path"
            own = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
            cause = first_line(own if isinstance(own, Exception) else error)
            raise DataError(f"data={name}: {shown(path)} cannot be loaded ({cause}). {hint}.") from None
    return {str(split): own for split, own in found.items()}, notes


@contextmanager
def _library(name: str) -> Iterator[Any]:
    """Hugging Face's datasets, with its progress bars and log messages turned off."""
    try:
        import datasets
    except ImportError:
        raise DataError(f"data={name} needs Hugging Face's datasets: pip install datasets") from None
    hidden = datasets.are_progress_bars_disabled()
    level = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        yield datasets
    finally:
        datasets.logging.set_verbosity(level)
        if not hidden:
            datasets.enable_progress_bars()


def _load(
    datasets: Any, path: str, config_name: str | None, name: str
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """All splits by name, and notes; a folder that save_to_disk wrote for one split is `train`."""
    folder = Path(path).expanduser()
    if (folder / "dataset_dict.json").is_file():
        return dict(datasets.load_from_disk(str(folder))), ()
    if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
        return {"train": datasets.load_from_disk(str(folder))}, ()
    if folder.exists():
        _refuse_addresses(folder)
        return dict(datasets.load_dataset(str(folder), config_name)), ()
    with _hub(datasets, path, name) as notes:
        return dict(datasets.load_dataset(path, config_name)), tuple(notes)


def _refuse_addresses(folder: Path) -> None:
    """Raise DataError where the README.md of a local data set names files elsewhere, which would be downloaded."""
    try:
        content = read_text(folder / "README.md").lstrip() if (folder / "README.md").is_file() else ""
    except UnreadableError:  # which the library reports
        return
    head = content.split("\n---", 1)[0] if content.startswith("---") else ""
    if found := ADDRESS.search(head):
        raise DataError(
            f"its README.md names an address among its files, {shown(found[1])}. Download these files into the "
            "folder, and remove data_files from README.md"
        )


ADDRESS = re.compile(r"(?m)data_(?:files|dir)\b[\s\S]*?(\w+://[^\s\"',\]]*)")


@contextmanager
def _hub(datasets: Any, path: str, name: str) -> Iterator[list[str]]:
    """Ask the hub once; inside, where it does not answer, only what was downloaded before is read, with a note.

    The library itself would ask again for half a minute. Raises FileNotFoundError for an unknown name.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    notes: list[str] = []
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(path, timeout=HUB_SECONDS)
    except GatedRepoError:
        pass  # which the library explains
    except (RepositoryNotFoundError, HFValidationError):
        raise FileNotFoundError("no such folder, and no public data set of this name on the hub") from None
    except Exception as error:  # no network: errors of many types
        notes.append(f"data={name}: {from_cache(shown(path), error)}")
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield notes
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
