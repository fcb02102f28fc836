"""The tensors of a GGUF are found without reading its vocabulary."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from dlm_tui.model.gguf_tensors import TensorReader


def written(path: Path, entries: int = 300) -> Path:
    """A file with lists of text, of numbers and of lists, single values on both sides of them, and two tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 7)
    writer.add_token_list([f"token {number}" for number in range(entries)])
    writer.add_token_scores([0.5] * entries)
    writer.add_token_types([1] * entries)
    writer.add_array("nested", [[1, 2], [3, 4, 5]])
    writer.add_string("general.name", "née")
    writer.add_float32("adapter.lora.alpha", 16.0)
    writer.add_tensor("first", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("second", np.ones(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_tensors_and_single_values_are_those_of_the_whole_reader(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf")
    ours, whole = TensorReader(path), gguf.GGUFReader(path)
    assert [tensor.name for tensor in ours.tensors] == ["first", "second"]
    for mine, other in zip(ours.tensors, whole.tensors, strict=True):
        assert mine.data_offset == other.data_offset and mine.tensor_type == other.tensor_type
        assert np.array_equal(mine.data, other.data)
    for name in ("llama.block_count", "general.name", "adapter.lora.alpha"):
        assert ours.fields[name].contents() == whole.fields[name].contents()
    assert list(ours.fields) == list(whole.fields)


@pytest.mark.parametrize("kept", [20, 100, 3000, 6000])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, kept: int) -> None:
    path = written(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises((IndexError, ValueError)):
        TensorReader(path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's peak memory")
def test_a_large_vocabulary_takes_no_memory(tmp_path: Path) -> None:
    """Against the reader of the package, each in a process of its own, beside what importing takes."""
    path = written(tmp_path / "a.gguf", 100_000)
    code = (
        "import sys, gguf\n"
        "from pathlib import Path\n"
        "from dlm_tui.model.gguf_tensors import TensorReader\n"
        "def peak(): return int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        "before = peak()\n"
        "kept = (TensorReader if sys.argv[2] == 'ours' else gguf.GGUFReader)(sys.argv[1])\n"
        "print(peak() - before)"
    )
    taken = {
        which: int(subprocess.check_output([sys.executable, "-c", code, str(path), which]))
        for which in ("ours", "whole")
    }
    assert taken["ours"] < taken["whole"] / 5
