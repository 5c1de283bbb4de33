"""`fsmerge push`: a finished run as a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsmerge_cli.common.atomic import FINISHED
from fsmerge_cli.common.errors import ConfigError, OutputError, first_line
from fsmerge_cli.common.shown import shown
from fsmerge_cli.reporting.model_card import WRITTEN_BY_US

CARD = "README.md"

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""user/name, or organisation/name."""

FOLDERS = ("classifier", "merged")
FILES = ("config.yaml", FINISHED, "report.html")


def repository_files(run: Path) -> dict[str, Path]:
    """The files of the repository: path in it -> file of the run. Raises OutputError where it is no finished run.

    The whole model lies in the root, where timm (`hf-hub:`) and transformers look for it: that of classifier/, or
    the backbone where there is none.
    """
    card = run / "merged" / CARD
    if not (run / FINISHED).is_file() or not card.is_file():
        raise OutputError(
            f"{shown(run)} is no finished run (a folder with {FINISHED} and merged/). Give one that `fsmerge "
            "merge` wrote."
        )
    found = {CARD: card}
    root = next(run / name for name in FOLDERS if (run / name / "config.json").is_file())
    found |= {name: root / name for name in ("config.json", "model.safetensors")}
    for folder in FOLDERS:
        files = sorted((run / folder).iterdir()) if (run / folder).is_dir() else []
        found |= {f"{folder}/{file.name}": file for file in files if file.is_file() and file.name != CARD}
    return found | {name: run / name for name in FILES if (run / name).is_file()}


def require_name(name: str) -> None:
    """Raise ConfigError for anything but user/name."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{shown(name)} is no name of a repository. Give USER/NAME, as on huggingface.co.")


def push(run: Path, name: str, *, private: bool = False, api: Any = None) -> str:
    """Upload a finished run in one commit; the address of the repository.

    A repository is created where there is none. One whose card fsmerge did not write is not touched. api: an
    `HfApi` (None: one with the user's own token). Raises OutputError and ConfigError.
    """
    require_name(name)
    files = repository_files(run)
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    hub = api or HfApi(library_name="fsmerge")
    try:
        url = hub.create_repo(name, private=private, exist_ok=True)
        _require_own_card(hub, name)
        operations = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
        hub.create_commit(name, operations, commit_message="Merged model, by fsmerge")
    except LocalTokenNotFoundError:
        raise ConfigError("no token of the Hugging Face hub. Log in with: hf auth login") from None
    except (HfHubHTTPError, OSError) as error:
        why = first_line(error)
        raise OutputError(f"the hub refused {name}: {why}. Check its name, and your token.") from None
    return str(url)


def _require_own_card(hub: Any, name: str) -> None:
    if not hub.file_exists(name, CARD):
        return
    text = Path(hub.hf_hub_download(name, CARD)).read_text(encoding="utf-8", errors="replace")
    if WRITTEN_BY_US not in text:
        raise OutputError(
            f"{name} has a {CARD} that fsmerge did not write, and nothing was uploaded. Choose another name, or "
            f"remove that file there first."
        )


def sizes(files: Mapping[str, Path]) -> list[tuple[str, int]]:
    """Path and bytes of every file."""
    return [(path, file.stat().st_size) for path, file in files.items()]
