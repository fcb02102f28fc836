"""Rows of float32 to the bytes of a GGUF tensor and back.

The blocks are made by `libgguf` (Apache-2.0, 0.4 MB, needs only numpy): the `gguf` package has no K-quants, and
`libggml-python` gives the same bytes from a wheel six times the size. The bytes are those of llama.cpp's own
`ggml_quantize_chunk` (tests/interop/test_export_quantisation.py compares them).
"""

from __future__ import annotations

import gguf
import libgguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

Rows = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_STORED: dict[Type, npt.DTypeLike] = {Type.F32: np.float32, Type.F16: np.float16}


class Unquantisable(ValueError):
    """Numbers that the type cannot hold: not finite, or beyond float16. The text names no tensor."""


def row_bytes(kind: Type, columns: int) -> int:
    """Bytes of one row. Raises ValueError where the blocks of `kind` do not divide it."""
    block, size = (int(number) for number in gguf.GGML_QUANT_SIZES[kind])
    if columns % block:
        raise ValueError(f"a row of {columns} is no multiple of {block}")
    return columns // block * size


def quantise(rows: Rows, kind: Type, importance: Rows | None = None) -> Bytes:
    """The bytes [n, row_bytes] of float32 `rows` [n, columns]. `importance` [columns] weighs the columns' errors.

    Raises Unquantisable for numbers that are not finite and for those that float16 cannot hold.
    """
    if not np.isfinite(rows).all():
        raise Unquantisable("there are numbers in it that are not finite")
    if kind == Type.F32:
        return np.ascontiguousarray(rows, dtype=np.float32).view(np.uint8)
    with np.errstate(over="ignore"):
        data = libgguf.quantize_rows(rows, int(kind), importance if kind not in _STORED else None)
    if kind == Type.F16 and not np.isfinite(data).all():
        raise Unquantisable("float16 cannot hold its largest numbers: use bf16 or f32")
    return np.ascontiguousarray(data).view(np.uint8)


def dequantise(data: Bytes, kind: Type, columns: int) -> Rows:
    """The float32 rows [n, columns] that the bytes [n, row_bytes] stand for."""
    if kind in _STORED:
        return np.ascontiguousarray(data).view(_STORED[kind]).astype(np.float32)
    if kind == Type.BF16:
        high = np.ascontiguousarray(data).view(np.uint16).astype(np.uint32) << np.uint32(16)
        return high.view(np.float32)
    rows: Rows = libgguf.dequantize_rows(data, int(kind), columns)
    return rows
