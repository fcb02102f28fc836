"""Rows of float32 to the bytes of a GGUF tensor and back.

The blocks are made by ggml itself (`libggml-python`, MIT, one prebuilt library per system): the `gguf` package has no
K-quants, and `libgguf`, which has them too, needs about twice the time for them. The bytes are those of the
`ggml_quantize_chunk` inside llama.cpp (tests/interop/test_export_quantisation.py compares them).
"""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from dlm_tui.export.quantisation.ggml import dequantiser, library

Rows = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_STORED: dict[Type, npt.DTypeLike] = {Type.F32: np.float32, Type.F16: np.float16}
_READERS = {
    Type.Q8_0: "q8_0", Type.Q6_K: "q6_K", Type.Q5_K: "q5_K", Type.Q4_K: "q4_K", Type.IQ4_XS: "iq4_xs",
    Type.IQ4_NL: "iq4_nl", Type.Q5_1: "q5_1", Type.Q5_0: "q5_0", Type.Q4_1: "q4_1", Type.Q4_0: "q4_0",
}  # fmt: skip


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

    Raises Unquantisable for numbers that are not finite and for those that float16 cannot hold, ValueError for an
    importance of another length.
    """
    if not np.isfinite(rows).all():
        raise Unquantisable("there are numbers in it that are not finite")
    source = np.ascontiguousarray(rows, dtype=np.float32)
    if kind == Type.F32:
        return source.view(np.uint8)
    count, columns = source.shape
    data = np.empty((count, row_bytes(kind, columns)), dtype=np.uint8)
    weights = None
    if importance is not None:
        weights = np.ascontiguousarray(importance, dtype=np.float32)
        if weights.shape != (columns,):
            raise ValueError(f"the importance has the shape {weights.shape}, and a row has {columns} columns")
    given = weights.ctypes.data if weights is not None else None
    library().ggml_quantize_chunk(int(kind), source.ctypes.data, data.ctypes.data, 0, count, columns, given)
    if kind == Type.F16 and not np.isfinite(data.view(np.float16)).all():
        raise Unquantisable("float16 cannot hold its largest numbers: use bf16 or f32")
    return data


def dequantise(data: Bytes, kind: Type, columns: int) -> Rows:
    """The float32 rows [n, columns] that the bytes [n, row_bytes] stand for."""
    source = np.ascontiguousarray(data)
    if kind in _STORED:
        return source.view(_STORED[kind]).astype(np.float32)
    if kind == Type.BF16:
        high = source.view(np.uint16).astype(np.uint32) << np.uint32(16)
        return high.view(np.float32)
    if source.shape[-1] != row_bytes(kind, columns):
        raise ValueError(f"a row of {columns} takes {row_bytes(kind, columns)} bytes, not {source.shape[-1]}")
    rows = np.empty((len(source), columns), dtype=np.float32)
    dequantiser(_READERS[kind])(source.ctypes.data, rows.ctypes.data, rows.size)
    return rows
