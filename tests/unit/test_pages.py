"""Weight files leave a process's memory without anything being lost."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dlm_tui.model.pages import PageBudget, drop_weight_pages, read_ahead

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")

NUMBERS = 4 << 20


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "a b.safetensors"
    save_file({"w": torch.arange(NUMBERS, dtype=torch.float32)}, path)
    return path


def resident(path: Path) -> int:
    """Bytes of a mapped file that lie in this process."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            inside = line.endswith(str(path))
        elif inside and first == "Rss:":
            found += int(line.split()[1]) << 10
    return found


def mapped(path: Path) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor("w")
    return tensor


def test_what_was_read_leaves_and_comes_back(weights: Path) -> None:
    tensor = mapped(weights)
    assert float(tensor.sum(dtype=torch.float64)) == NUMBERS * (NUMBERS - 1) / 2
    assert resident(weights) >= 4 * NUMBERS
    drop_weight_pages()
    assert resident(weights) < 1 << 20
    assert torch.equal(tensor, torch.arange(NUMBERS, dtype=torch.float32))


def test_what_was_written_to_stays(weights: Path) -> None:
    """The page of a changed weight is this process's own: it would come back as the file has it."""
    tensor = mapped(weights)
    tensor[5] = -1.0
    drop_weight_pages()
    assert tensor[4:7].tolist() == [4.0, -1.0, 6.0]


def test_reading_on_and_on_keeps_a_part(weights: Path) -> None:
    tensor, budget = mapped(weights), PageBudget(every=4 << 20)
    most = 0
    for start in range(0, NUMBERS, 1 << 18):
        piece = tensor[start : start + (1 << 18)]
        assert float(piece[0]) == start and float(piece.sum()) > 0
        budget.read(piece.nbytes)
        most = max(most, resident(weights))
    assert most < 8 << 20


def test_what_was_read_ahead_is_in_the_cache_and_not_in_this_process(weights: Path) -> None:
    with weights.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = cached(weights)
    read_ahead([weights]).join()
    assert resident(weights) == 0
    assert cached(weights) == 1.0 >= before
    assert torch.equal(mapped(weights), torch.arange(NUMBERS, dtype=torch.float32))


def test_a_file_that_cannot_be_read_ahead_is_left_to_whoever_needs_it(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    read_ahead([tmp_path / "absent", tmp_path, tmp_path / "empty"]).join()


def cached(path: Path) -> float:
    """Which share of a file's pages the system holds."""
    size = path.stat().st_size
    found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as view:
        place = ctypes.c_void_p(np.frombuffer(view, np.uint8).ctypes.data)
        assert ctypes.CDLL(None).mincore(place, ctypes.c_size_t(size), found) == 0
    return sum(page & 1 for page in found) / len(found)
