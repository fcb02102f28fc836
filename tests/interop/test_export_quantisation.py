"""Quantised blocks, bit for bit against the quantiser inside a real llama.cpp."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from dlm_tui.export.quantisation.blocks import quantise, row_bytes

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp (extra [llama]) is not installed"
)
KINDS = (
    Type.F16, Type.BF16, Type.Q8_0, Type.Q6_K, Type.Q5_K, Type.Q4_K, Type.IQ4_XS, Type.IQ4_NL, Type.Q5_1, Type.Q5_0,
    Type.Q4_1, Type.Q4_0,
)  # fmt: skip


@pytest.fixture(scope="module")
def quantiser() -> ctypes.CDLL:
    """The library with `size_t ggml_quantize_chunk(type, src, dst, start, nrows, n_per_row, imatrix)`."""
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    [path] = Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so")
    library = ctypes.CDLL(str(path))
    wide = ctypes.c_int64
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[wide] * 3, ctypes.c_void_p]
    return library


def rows() -> dict[str, np.ndarray]:
    """Ordinary weights, and rows that divide by their own scale badly."""
    random = np.random.default_rng(7)
    plain = (random.standard_normal((40, 768)) * 0.04).astype(np.float32)
    odd = plain.copy()
    odd[0] = 0.0
    odd[1] = 0.25
    odd[2] = -(odd[2] ** 2)
    odd[3, 5] = 300.0
    odd[4] *= 1e-20
    odd[5] = np.round(odd[5], 2)
    odd[:, 256:512] = 0.0
    return {"plain": plain, "odd": odd}


def importances() -> dict[str, np.ndarray | None]:
    random = np.random.default_rng(8)
    spread = (random.random(768) ** 6 * 50).astype(np.float32)
    spread[::31] = 0.0
    return {"none": None, "spread": spread, "ones": np.ones(768, dtype=np.float32)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", importances())
@pytest.mark.parametrize("data", rows())
def test_the_bytes_are_those_of_llama_cpp(quantiser: ctypes.CDLL, kind: Type, weights: str, data: str) -> None:
    source, importance = rows()[data], importances()[weights]
    theirs = np.zeros((len(source), row_bytes(kind, 768)), dtype=np.uint8)
    given = importance.ctypes.data if importance is not None else None
    written = quantiser.ggml_quantize_chunk(
        int(kind), source.ctypes.data, theirs.ctypes.data, 0, len(source), 768, given
    )
    assert written == theirs.nbytes
    assert np.array_equal(quantise(source, kind, importance), theirs)
