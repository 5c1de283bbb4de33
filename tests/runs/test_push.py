"""A run becomes a repository of the hub in one commit, and a card of somebody else is never replaced."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import CommitOperationDelete
from huggingface_hub.errors import LocalTokenNotFoundError

from fsmerge_cli.cli import main
from fsmerge_cli.common.errors import ConfigError, OutputError
from fsmerge_cli.runs.push import push, repository_files


class FakeHub:
    """The calls of `HfApi` that are made, on repositories in a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.private = root, list[str](), dict[str, bool]()

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.calls.append(f"create_repo {name} private={private}")
        if not (self.root / name).is_dir():
            (self.root / name).mkdir(parents=True)
            (self.root / name / ".gitattributes").touch()
            self.private[name] = private
        return f"https://hub.example/{name}"

    def repo_info(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private.get(name, False))

    def list_repo_files(self, name: str) -> list[str]:
        folder = self.root / name
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    def hf_hub_download(self, name: str, path: str) -> str:
        return str(self.root / name / path)

    def create_commit(self, name: str, operations: list[Any], *, commit_message: str) -> None:
        self.calls.append(f"create_commit {commit_message}")
        for operation in operations:
            target = self.root / name / operation.path_in_repo
            if isinstance(operation, CommitOperationDelete):
                target.unlink()
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(Path(operation.path_or_fileobj).read_bytes())


def test_a_run_is_uploaded_in_one_commit_and_again(digits_run: Path, tmp_path: Path) -> None:
    hub = FakeHub(tmp_path)
    for _ in range(2):  # the second time its card is ours
        assert push(digits_run, "jane/digits", private=True, api=hub) == "https://hub.example/jane/digits"
    assert hub.calls == ["create_repo jane/digits private=True", "create_commit Merged model, by fsmerge"] * 2
    folder = tmp_path / "jane/digits"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        *(
            ".gitattributes",
            "README.md",
            "config.json",
            "model.safetensors",
            "config.yaml",
            "evaluation.json",
            "report.html",
        ),
        "heads.safetensors",
        *("merged/config.json", "merged/model.safetensors", "merged/heads.safetensors"),
    }
    assert (folder / "README.md").read_bytes() == (digits_run / "merged/README.md").read_bytes()


OTHERS = "jane/digits has {}, and nothing was uploaded. Choose another name, or empty that repository first."


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("README.md", "a README.md that fsmerge did not write"),
        ("config.json", "files that fsmerge did not write (config.json)"),
        ("merged/model.safetensors", "files that fsmerge did not write (merged/model.safetensors)"),
    ],
)
def test_files_of_somebody_else_are_not_replaced(digits_run: Path, tmp_path: Path, file: str, found: str) -> None:
    hub, own = FakeHub(tmp_path), tmp_path / "jane/digits" / file
    own.parent.mkdir(parents=True)
    own.write_text("# My own words")
    with pytest.raises(OutputError) as error:
        push(digits_run, "jane/digits", api=hub)
    assert str(error.value) == OTHERS.format(found)
    assert own.read_text() == "# My own words"
    assert hub.list_repo_files("jane/digits") == [file]


def test_files_of_an_earlier_run_are_removed_and_others_stay(digits_run: Path, tmp_path: Path) -> None:
    hub, folder = FakeHub(tmp_path), tmp_path / "jane/digits"
    push(digits_run, "jane/digits", api=hub)
    before = set(hub.list_repo_files("jane/digits"))
    (folder / "classifier").mkdir()
    for name in ("config.json", "model.safetensors", "my-notes.md"):
        (folder / "classifier" / name).write_text("of a run with a classifier")
    push(digits_run, "jane/digits", api=hub)
    assert set(hub.list_repo_files("jane/digits")) == before | {"classifier/my-notes.md"}
    assert hub.calls.count("create_commit Merged model, by fsmerge") == 2


def test_private_is_not_uploaded_to_a_public_repository(digits_run: Path, tmp_path: Path) -> None:
    hub = FakeHub(tmp_path)
    hub.create_repo("jane/digits", private=False, exist_ok=True)
    with pytest.raises(OutputError) as error:
        push(digits_run, "jane/digits", private=True, api=hub)
    assert str(error.value) == (
        "jane/digits exists and is public, and nothing was uploaded. Make it private in its settings on the hub, "
        "choose another name, or leave out --private."
    )
    assert hub.list_repo_files("jane/digits") == [".gitattributes"]
    push(digits_run, "jane/digits", api=hub)
    hub.private["jane/digits"] = True
    push(digits_run, "jane/digits", private=True, api=hub)


def test_a_dry_run_lists_every_file_and_sends_nothing(
    digits_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    assert main(["push", str(digits_run), "jane/digits", "--dry-run"]) == 0
    *lines, total, images = capsys.readouterr().out.splitlines()
    files = repository_files(digits_run)
    assert [re.split(r" MB +", line)[1] for line in lines] == list(files)
    assert total.endswith(f"MB  {len(files)} files would be sent to jane/digits; nothing was sent")
    assert images == "report.html contains test images. Look at it before they become public."


def test_wrong_names_folders_and_a_missing_token_are_refused(digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"jane is no name of a repository. Give USER/NAME"):
        push(digits_run, "jane", api=FakeHub(tmp_path))
    with pytest.raises(OutputError, match="is no finished run"):
        push(tmp_path, "jane/digits", api=FakeHub(tmp_path))

    class NoToken(FakeHub):
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
            raise LocalTokenNotFoundError("no token")

    with pytest.raises(ConfigError, match=r"no token of the Hugging Face hub. Log in with: hf auth login"):
        push(digits_run, "jane/digits", api=NoToken(tmp_path))


def test_without_a_network_there_is_one_line(digits_run: Path, tmp_path: Path) -> None:
    class NoNetwork(FakeHub):
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
            raise RuntimeError("Name or service not known\nmore")

    with pytest.raises(OutputError) as error:
        push(digits_run, "jane/digits", api=NoNetwork(tmp_path))
    assert str(error.value) == (
        "the hub cannot be reached for jane/digits (Name or service not known). Check the network, and run the "
        "command again."
    )


@pytest.mark.parametrize("link", [False, True])
def test_only_files_of_the_run_are_uploaded(link: bool, digits_run: Path, tmp_path: Path) -> None:
    run, secret = tmp_path / "run", tmp_path / "secret"
    shutil.copytree(digits_run, run)
    secret.write_text("mine")
    if link:
        (run / "merged/config.json").unlink()
        (run / "merged/config.json").symlink_to(secret)
    else:
        (run / "merged/key.pem").write_text("mine")
    with pytest.raises(OutputError) as error:
        push(run, "jane/digits", api=FakeHub(tmp_path / "hub"))
    assert str(error.value) == (
        f"{run} holds files that the run did not write, and nothing was uploaded: "
        f"merged/{'config.json' if link else 'key.pem'}. Move them away; further files are added to the "
        "repository on the hub."
    )
    assert not (tmp_path / "hub").exists()
