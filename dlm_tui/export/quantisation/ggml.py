"""ggml's own quantiser, from the library that the package `libggml-python` ships."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path

from dlm_tui.export.requests import ExportRefused

_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library with `ggml_quantize_chunk` typed. Raises ExportRefused when there is none for this system."""
    spec = importlib.util.find_spec("libggml")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = [path for place in places for name in _NAMES for path in sorted(Path(place).rglob(name))]
    if not found:
        raise ExportRefused("quantised files need the package libggml-python, and it has no library for this system")
    loaded = ctypes.CDLL(str(found[0]))
    wide, pointer = ctypes.c_int64, ctypes.c_void_p
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, wide, wide, wide, pointer]
    return loaded


@functools.cache
def dequantiser(kind: str) -> ctypes._NamedFuncPointer:
    """`void dequantize_row_<kind>(const void * blocks, float * out, int64_t numbers)`, for example of `q4_K`."""
    function: ctypes._NamedFuncPointer = getattr(library(), f"dequantize_row_{kind}")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return function
