"""Writing one GGUF file: metadata first, then tensors a few rows at a time, quantised on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor

from dlm_tui.export.requests import ExportRefused
from dlm_tui.progress import Progress

_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q5_1": gguf.GGMLQuantizationType.Q5_1,
    "q5_0": gguf.GGMLQuantizationType.Q5_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q5_1": gguf.LlamaFileType.MOSTLY_Q5_1,
    "q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
    "q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to come: GGUF name, shape (rows first), type, and a function that yields its row blocks in float32."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    blocks: Callable[[], Iterable[Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes of the quantised data, without padding."""
        if self.kind == gguf.GGMLQuantizationType.F32:
            return 4 * int(np.prod(self.shape))
        return int(np.prod(gguf.quant_shape_to_byte_shape(self.shape, self.kind)))


def tensor_type(quant: str, name: str, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
    """The stored type of a tensor under a quantisation.

    Vectors stay float32. Embedding and output keep eight bits under the four- and five-bit types: every logit passes
    them. A row that is no multiple of the block falls back to float16.
    """
    if len(shape) < 2:
        return gguf.GGMLQuantizationType.F32
    if name in ("token_embd.weight", "output.weight") and quant[:2] in ("q4", "q5"):
        quant = "q8_0"
    kind = _TYPES[quant]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def new_writer(path: Path, architecture: str, quant: str | None) -> gguf.GGUFWriter:
    """A writer for `path`; nothing is on disk yet. `quant` None leaves the file type out (adapters)."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if quant is not None:
        writer.add_file_type(int(_FILE_TYPES[quant]))
    return writer


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
            written = 0
            for block in tensor.blocks():
                data = gguf.quantize(block.contiguous().numpy(), tensor.kind)
                if tensor.kind == gguf.GGMLQuantizationType.F16 and not np.isfinite(data).all():
                    raise ExportRefused(f"{tensor.name} has numbers that float16 cannot hold: use bf16 or f32")
                written += out.write(np.ascontiguousarray(data).view(np.uint8).reshape(-1).data)
                yield Progress(path.name, done + written, total)
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {written} bytes written, {tensor.nbytes} announced")
            writer.write_padding(out, written)
            done += written
        out.flush()
        os.fsync(out.fileno())
    finally:
        writer.close()
