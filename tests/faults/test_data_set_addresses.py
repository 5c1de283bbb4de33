"""A local data set of Hugging Face opens no address: its rows and its README.md may name any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data.base import Task, ToPixels
from fsmerge_cli.data.images.hf import HuggingFace

pytestmark = pytest.mark.full

TASK = Task("t", None)


def table(folder: Path, *rows: dict[str, object]) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pytest.importorskip("datasets", reason="the extra `hf` is not installed")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    stated = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
    content = pa.table({"image": pa.array(rows, kind)}).replace_schema_metadata({"huggingface": stated})
    folder.mkdir()
    pq.write_table(content, folder / "train.parquet")


ADDRESSES = ("http://127.0.0.1:9/a.png", "zip://a.png::http://127.0.0.1:9/a.zip", "hf://datasets/a/b/c.png")


def test_an_address_in_a_row_is_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (9, 90, 200)).save(tmp_path / "0.png")
    rows = [{"path": path, "bytes": None} for path in (*ADDRESSES, None, str(tmp_path / "0.png"))]
    rows.append({"path": ADDRESSES[0], "bytes": (tmp_path / "0.png").read_bytes()})
    table(tmp_path / "set", *rows)
    found = HuggingFace(path=str(tmp_path / "set")).build("train", TASK, ToPixels((3, 4, 4)))
    assert found is not None
    for row, path in enumerate(ADDRESSES):
        with pytest.raises(DataError) as error:
            found[row]
        assert str(error.value) == (
            f"data=hf: {tmp_path / 'set'}: image {row} cannot be read ({path} is an address; download it, or "
            "embed the images in the data set). Repair or remove it."
        )
    with pytest.raises(DataError, match=r"image 3 cannot be read \(it has neither bytes nor a file\)\. Repair or"):
        found[3]
    assert found[4][0].shape == found[5][0].shape == (3, 4, 4)


def test_an_address_in_its_readme_is_not_opened(tmp_path: Path) -> None:
    table(tmp_path / "set", {"path": "x", "bytes": b""})
    text = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: "
    text += f"{ADDRESSES[0]}\n---\n"
    (tmp_path / "set/README.md").write_text(text)
    with pytest.raises(DataError) as error:
        HuggingFace(path=str(tmp_path / "set")).build("train", TASK, ToPixels((3, 4, 4)))
    assert str(error.value) == (
        f"data=hf: {tmp_path / 'set'} cannot be loaded: its README.md names an address among its files, "
        f"{ADDRESSES[0]}. Download these files into the folder, and remove data_files from README.md."
    )
    (tmp_path / "set/README.md").write_text("---\nlicense: mit\n---\ndata_files are at http://127.0.0.1:9/a.png\n")
    assert HuggingFace(path=str(tmp_path / "set")).build("train", TASK, ToPixels((3, 4, 4))) is not None
