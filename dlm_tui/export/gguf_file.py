"""Writing one GGUF file: metadata first, then tensors a few rows at a time, quantised on the way."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from dlm_tui.export.quantisation.blocks import Bytes, Rows, Unquantisable, quantise, row_bytes
from dlm_tui.export.quantisation.imatrix import Sums
from dlm_tui.export.quantisation.recipes import QUANTISATIONS
from dlm_tui.export.requests import ExportRefused
from dlm_tui.progress import Progress


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to come: GGUF name, shape (columns last), type, and a function that yields its row blocks in float32.

    Blocks of a stack of matrices (experts) [matrices, rows, columns] are rows of one matrix each, in order.
    `importance` [matrices, columns] weighs the rounding of the columns.
    """

    name: str
    shape: tuple[int, ...]
    kind: Type
    blocks: Callable[[], Iterable[Tensor]]
    importance: Sums | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the quantised data, without padding."""
        return math.prod(self.shape[:-1]) * row_bytes(self.kind, self.shape[-1])

    def weights(self, row: int) -> Sums | None:
        """The importance [columns] for the block that begins at `row`, counted over all matrices."""
        if self.importance is None:
            return None
        matrix = row // self.shape[-2] if len(self.importance) > 1 else 0
        return np.ascontiguousarray(self.importance[matrix])


def new_writer(path: Path, architecture: str, quant: str | None) -> gguf.GGUFWriter:
    """A writer for `path`; nothing is on disk yet. `quant` None leaves the file type out (adapters)."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if quant is not None:
        writer.add_file_type(int(QUANTISATIONS[quant].file_type))
    return writer


def _quantised(tensor: PlannedTensor, rows: Rows, row: int) -> Bytes:
    try:
        return quantise(rows, tensor.kind, tensor.weights(row))
    except Unquantisable as error:
        raise ExportRefused(f"the export's tensor {tensor.name}: {error}") from error


def write_tensors(writer: gguf.GGUFWriter, path: Path, tensors: list[PlannedTensor]) -> Generator[Progress, None, None]:
    """Write header, metadata and `tensors` in this order, flushed to disk. One event per block of rows, in bytes.

    Raises OSError when the disk is full; the unfinished file is the caller's to remove.
    """
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.kind)
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        out = writer.fout[0]
        writer.write_padding(out, out.tell())
        for tensor in tensors:
            written, row = 0, 0
            for block in tensor.blocks():
                rows = block.contiguous().reshape(-1, tensor.shape[-1])
                written += out.write(_quantised(tensor, rows.numpy(), row).reshape(-1).data)
                row += len(rows)
                yield Progress(path.name, done + written, total)
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {written} bytes written, {tensor.nbytes} announced")
            writer.write_padding(out, written)
            done += written
        out.flush()
        os.fsync(out.fileno())
    finally:
        writer.close()
