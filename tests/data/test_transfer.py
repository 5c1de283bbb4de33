from __future__ import annotations

import pytest
import torch

from fsmerge_cli.data import transfer
from fsmerge_cli.data.transfer import Feed, to_host

TABLE = torch.arange(24.0).reshape(6, 2, 2)
ROWS = torch.tensor([5, 0, 0, 3])
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_a_feed_on_the_cpu_is_indexing() -> None:
    feed = Feed(TABLE, torch.device("cpu"))
    assert len(feed) == 6
    assert torch.equal(feed[ROWS], TABLE[ROWS])


def test_tensors_are_copied_to_the_host_in_order() -> None:
    assert [part.item() for part in to_host(torch.tensor(float(i)) for i in range(4))] == [0, 1, 2, 3]
    assert list(to_host([])) == []


def test_a_table_may_take_a_quarter_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (400, 1000))
    assert transfer.fits(100, torch.device("cuda"))
    assert not transfer.fits(101, torch.device("cuda"))
    assert transfer.fits(10**15, torch.device("cpu"))


@GPU
@pytest.mark.parametrize("moved", [True, False])
def test_a_feed_gives_the_same_rows_on_a_gpu(moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "fits", lambda size, device: moved)
    feed = Feed(TABLE, torch.device("cuda"))
    for rows in (ROWS, ROWS.to("cuda")):
        assert feed[rows].is_cuda
        assert torch.equal(feed[rows].cpu(), TABLE[ROWS])


@GPU
def test_tensors_of_a_gpu_are_copied_to_the_host_in_order() -> None:
    parts = [torch.full((1000, 1000), float(i), device="cuda") for i in range(5)]
    assert [part.double().mean().item() for part in to_host(part @ part / 1000 for part in parts)] == [
        i * i for i in range(5)
    ]
