"""The quantiser inside a real llama.cpp, by its own function in the library that xllamacpp ships."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type


class LlamaQuantiser:
    """`size_t ggml_quantize_chunk(type, src, dst, start, nrows, n_per_row, imatrix)`, one thread."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("xllamacpp")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        [path] = Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so")
        wide, pointer = ctypes.c_int64, ctypes.c_void_p
        self._chunk = ctypes.CDLL(str(path)).ggml_quantize_chunk
        self._chunk.restype = ctypes.c_size_t
        self._chunk.argtypes = [ctypes.c_int, pointer, pointer, wide, wide, wide, pointer]

    def quantise(self, rows: np.ndarray, kind: Type, out: np.ndarray, importance: np.ndarray | None = None) -> int:
        """Fill `out` with the bytes of float32 `rows` [n, columns]; how many they are."""
        weights = importance.ctypes.data if importance is not None else None
        written: int = self._chunk(int(kind), rows.ctypes.data, out.ctypes.data, 0, *rows.shape, weights)
        return written
