"""`fsmerge push`: a finished run as a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fsmerge_cli.common.atomic import FINISHED
from fsmerge_cli.common.changed_files import changed
from fsmerge_cli.common.errors import ConfigError, FsmergeError, OutputError, first_line
from fsmerge_cli.common.own_files import LIST, listed_digests
from fsmerge_cli.common.shown import few, shown
from fsmerge_cli.reporting.model_card import WRITTEN_BY_US

CARD = "README.md"

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""user/name, or organisation/name."""

FOLDERS, TASKS = ("classifier", "merged"), "tasks"
REPORT = "report.html"
FILES = ("config.yaml", FINISHED, REPORT)
MODEL_FILES = ("config.json", "model.safetensors", "heads.safetensors", "projectors.safetensors")
"""What a run writes into its FOLDERS, beside the card."""

TEXTS = '<p class="text">'
"""How the report shows a text."""

EMPTY = (".gitattributes",)
"""What the hub writes into a new repository."""


def repository_files(run: Path) -> dict[str, Path]:
    """The files of the repository: path in it -> file of the run. Raises OutputError where it is no finished run.

    The whole model lies in the root, where timm (`hf-hub:`) and transformers look for it: that of classifier/, or
    the backbone where there is none.
    """
    card = run / "merged" / CARD
    if not (run / FINISHED).is_file() or not (run / "merged").is_dir():
        raise OutputError(
            f"{shown(run)} is no finished run (a folder with {FINISHED} and merged/). Give one that `fsmerge "
            "merge` wrote."
        )
    if not card.is_file():
        raise OutputError(
            f"{shown(run)} has no merged/{CARD}, the card that the hub shows. Restore it, or write another one "
            "with front matter (https://huggingface.co/docs/hub/model-cards)."
        )
    found = {CARD: card}
    root = next(run / name for name in FOLDERS if (run / name / "config.json").is_file())
    found |= {file.name: file for file in sorted(root.iterdir()) if file.is_file() and file.name != CARD}
    for folder in (*FOLDERS, TASKS):
        files = sorted((run / folder).rglob("*")) if (run / folder).is_dir() else []
        found |= {str(file.relative_to(run)): file for file in files if file.is_file() and file.name != CARD}
    found |= {name: run / name for name in FILES if (run / name).is_file()}
    _require_own_files(run, found.values())
    return found


def _require_own_files(run: Path, files: Iterable[Path]) -> None:
    """Raise OutputError for links, and for files that the run did not write: they may be private."""
    own = listed_digests(run)
    names = {str(file.relative_to(run)): file for file in files}
    foreign = [name for name, file in names.items() if file.is_symlink() or (own is not None and name not in own)]
    if foreign:
        raise OutputError(
            f"{shown(run)} holds files that the run did not write, and nothing was uploaded: "
            f"{few(sorted(foreign))}. Move them away; further files are added to the repository on the hub."
        )
    if wrong := changed(run, [*names]):
        raise OutputError(
            f"{shown(run)} holds files that were changed since the run wrote them, and nothing was uploaded: "
            f"{few(wrong)}. Restore them, or delete {LIST} in it to upload the folder as it is."
        )


def require_name(name: str) -> None:
    """Raise ConfigError for anything but user/name."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{shown(name)} is no name of a repository. Give USER/NAME, as on huggingface.co.")


def push(run: Path, name: str, *, private: bool = False, api: Any = None) -> str:
    """Upload a finished run in one commit; the address of the repository.

    A repository is created where there is none. One with files and without a card that fsmerge wrote is not
    touched, and neither is a public one with `private`. Files of an earlier run that this one does not have are
    removed. api: an `HfApi` (None: one with the user's own token). Raises OutputError and ConfigError.
    """
    require_name(name)
    files = repository_files(run)
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    hub = api or HfApi(library_name="fsmerge")
    try:
        url = hub.create_repo(name, private=private, exist_ok=True)
        if private and not hub.repo_info(name).private:
            raise OutputError(
                f"{name} exists and is public, and nothing was uploaded. Make it private in its settings on the "
                "hub, choose another name, or leave out --private."
            )
        present = hub.list_repo_files(name)
        _require_own(hub, name, present)
        ours = {f"{folder}/{file}" for folder in FOLDERS for file in MODEL_FILES}
        ours |= {path for path in present if path.startswith(f"{TASKS}/") and path.endswith(MODEL_FILES)}
        stale = sorted(ours.intersection(present) - files.keys())
        operations: list[CommitOperationAdd | CommitOperationDelete | CommitOperationCopy] = [
            *(CommitOperationAdd(path, str(file)) for path, file in files.items()),
            *(CommitOperationDelete(path) for path in stale),
        ]
        hub.create_commit(name, operations, commit_message="Merged model, by fsmerge")
    except LocalTokenNotFoundError:
        raise ConfigError("no token of the Hugging Face hub. Log in with: hf auth login") from None
    except FsmergeError:
        raise
    except (HfHubHTTPError, OSError) as error:
        why = first_line(error)
        raise OutputError(f"the hub refused {name}: {why}. Check its name, and your token.") from None
    except Exception as error:  # without a network: errors of many types
        raise OutputError(
            f"the hub cannot be reached for {name} ({first_line(error)}). Check the network, and run the command "
            "again."
        ) from None
    return str(url)


def _require_own(hub: Any, name: str, present: Sequence[str]) -> None:
    """Raise OutputError for a repository with files of somebody else."""
    if CARD in present:
        text = Path(hub.hf_hub_download(name, CARD)).read_text(encoding="utf-8", errors="replace")
        if WRITTEN_BY_US in text:
            return
        found = f"a {CARD} that fsmerge did not write"
    elif own := sorted(path for path in present if path not in EMPTY):
        found = f"files that fsmerge did not write ({few(own)})"
    else:
        return
    raise OutputError(
        f"{name} has {found}, and nothing was uploaded. Choose another name, or empty that repository first."
    )


def shown_inputs(files: Mapping[str, Path]) -> str | None:
    """What of the data the report among the files contains: images, texts, or None."""
    page = files[REPORT].read_text(encoding="utf-8", errors="replace") if REPORT in files else ""
    return "images" if "data:image/" in page else "texts" if TEXTS in page else None


def sizes(files: Mapping[str, Path]) -> list[tuple[str, int]]:
    """Path and bytes of every file."""
    return [(path, file.stat().st_size) for path, file in files.items()]
