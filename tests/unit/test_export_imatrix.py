"""Blocks and importance matrices: what is refused, and that a file comes back as it was written."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from dlm_tui.export.quantisation.blocks import Unquantisable, dequantise, quantise, row_bytes
from dlm_tui.export.quantisation.imatrix import ImportanceMatrix, from_sums, read_imatrix, write_imatrix
from dlm_tui.export.quantisation.recipes import QUANTISATIONS
from dlm_tui.export.requests import ExportRefused

ROUNDING = {
    Type.F32: 0.0, Type.F16: 1e-3, Type.BF16: 5e-3, Type.Q8_0: 1e-2, Type.Q6_K: 3e-2, Type.Q5_K: 6e-2,
    Type.Q5_0: 6e-2, Type.Q5_1: 6e-2, Type.Q4_K: 0.11, Type.IQ4_XS: 0.11, Type.IQ4_NL: 0.11, Type.Q4_0: 0.11,
    Type.Q4_1: 0.11,
}  # fmt: skip


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)


@pytest.mark.parametrize("kind", ROUNDING)
def test_a_row_comes_back_within_the_rounding_of_its_type(kind: Type, rows: np.ndarray) -> None:
    data = quantise(rows, kind)
    assert data.shape == (6, row_bytes(kind, 512))
    back = dequantise(data, kind, 512)
    assert np.linalg.norm(back - rows) <= ROUNDING[kind] * np.linalg.norm(rows)


def test_every_quantisation_uses_types_that_are_tried() -> None:
    assert {quant.default for quant in QUANTISATIONS.values()} <= set(ROUNDING)


def test_importance_moves_the_error_to_the_columns_that_matter_less(rows: np.ndarray) -> None:
    importance = np.full(512, 1e-3, dtype=np.float32)
    importance[::8] = 100.0

    def error(weights: np.ndarray | None) -> float:
        back = dequantise(quantise(rows, Type.Q4_K, weights), Type.Q4_K, 512)
        return float(np.square(back - rows)[:, ::8].mean())

    assert error(importance) < 0.8 * error(None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.Q4_K])
def test_numbers_that_are_not_finite_are_refused(kind: Type, value: float, rows: np.ndarray) -> None:
    rows[2, 7] = value
    with pytest.raises(Unquantisable, match="not finite"):
        quantise(rows, kind)


def test_numbers_beyond_float16_are_refused(rows: np.ndarray) -> None:
    rows[1, 1] = 1e5
    with pytest.raises(Unquantisable, match="float16"):
        quantise(rows, Type.F16)
    quantise(rows, Type.BF16)


def matrix() -> ImportanceMatrix:
    random = np.random.default_rng(1)
    sums = {
        "blk.0.attn_q.weight": random.random((1, 32)).astype(np.float32) * 70,
        "blk.0.ffn_down_exps.weight": random.random((3, 64)).astype(np.float32) * 9,
    }
    counts = {"blk.0.attn_q.weight": np.array([700.0]), "blk.0.ffn_down_exps.weight": np.array([10.0, 0.0, 4.0])}
    return from_sums(sums, counts, "the document", 700)


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    made, path = matrix(), tmp_path / "imatrix.gguf"
    write_imatrix(path, made)
    back = read_imatrix(path)
    assert set(back.means) == set(made.means)
    for name, values in made.means.items():
        assert np.allclose(back.of(name, *values.shape), values)
    # an expert that saw no token weighs every column alike
    assert (back.of("blk.0.ffn_down_exps.weight", 3, 64)[1] == 1.0).all()
    assert back.of("blk.9.attn_q.weight", 1, 32) is None


def test_the_file_has_what_llama_cpp_looks_for(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, matrix())
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields == {
        "general.type": "imatrix",
        "imatrix.datasets": ["the document"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 512,
    }
    shapes = {tensor.name: [int(size) for size in tensor.shape] for tensor in reader.tensors}
    assert shapes["blk.0.attn_q.weight.in_sum2"] == [32, 1]
    assert shapes["blk.0.ffn_down_exps.weight.in_sum2"] == [64, 3]
    assert shapes["blk.0.ffn_down_exps.weight.counts"] == [1, 3]


def test_the_older_binary_form_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.dat"
    name, values = b"blk.0.attn_q.weight", np.arange(4, dtype="<f4")
    path.write_bytes(
        struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 2, 4) + values.tobytes() + struct.pack("<i", 2)
    )
    assert np.allclose(read_imatrix(path).of(name.decode(), 1, 4), values / 2)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 40, b"words and words " * 9])
def test_what_is_no_importance_matrix_gets_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ExportRefused, match="no importance matrix"):
        read_imatrix(path)
    with pytest.raises(ExportRefused, match="cannot be read"):
        read_imatrix(tmp_path / "none.gguf")


def test_a_matrix_of_another_base_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, matrix())
    with pytest.raises(ExportRefused, match="another base"):
        read_imatrix(path).of("blk.0.attn_q.weight", 1, 64)
    with pytest.raises(ExportRefused, match="not finite"):
        from_sums({"blk.0.attn_q.weight": np.full((1, 4), np.nan, dtype=np.float32)}, {}, "x", 1)
