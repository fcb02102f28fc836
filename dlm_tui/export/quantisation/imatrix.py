"""An importance matrix: per weight column the mean of the squared inputs over a text, in llama.cpp's file format.

Source of the format: `IMatrixCollector::save_imatrix` of llama.cpp's `tools/imatrix/imatrix.cpp`. Per matrix two
float32 tensors, `<name>.in_sum2` [matrices, columns] and `<name>.counts` [matrices, 1] (tokens seen); matrices is the
number of experts, else 1. The older binary `.dat` form is read too.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from dlm_tui.export.requests import ExportRefused
from dlm_tui.model.gguf_tensors import TensorReader
from dlm_tui.small_files import read_file, read_head
from dlm_tui.system_errors import cause

CHUNK_TOKENS = 512
_MOST_BYTES = 4 << 30
Sums = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImportanceMatrix:
    """`means`: GGUF tensor name -> mean squared input [matrices, columns], float32. `datasets` say where from.

    `sums` and `counts` are what `means` were divided from, where they are known: only those can be written.
    """

    means: Mapping[str, Sums]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    sums: Mapping[str, Sums] = field(default_factory=dict)
    counts: Mapping[str, Sums] = field(default_factory=dict)

    def of(self, name: str, matrices: int, columns: int) -> Sums | None:
        """The importance [matrices, columns] of one tensor, None where the file has none.

        Raises ExportRefused for one of another shape: the file then belongs to another base.
        """
        found = self.means.get(name)
        if found is None:
            return None
        if found.size != matrices * columns:
            raise ExportRefused(
                f"the importance matrix has {found.size} numbers for {name} and the base needs {matrices * columns}: "
                "it belongs to another base"
            )
        return found.reshape(matrices, columns)


def from_sums(sums: Mapping[str, Sums], counts: Mapping[str, Sums], dataset: str, tokens: int) -> ImportanceMatrix:
    """The matrix of squared sums [matrices, columns] and token counts [matrices]; a matrix without a token gets ones.

    Raises ExportRefused for sums that are not finite.
    """
    means: dict[str, Sums] = {}
    for name, total in sums.items():
        if not np.isfinite(total).all():
            raise ExportRefused(f"the inputs of {name} are not finite, so there is no importance matrix")
        means[name] = _mean(total, counts[name].reshape(-1, 1))
    chunks = -(-tokens // CHUNK_TOKENS)
    return ImportanceMatrix(means, (dataset,), chunks, sums=dict(sums), counts=dict(counts))


def _mean(total: Sums, seen: Sums) -> Sums:
    """Sums [matrices, columns] over counts [matrices, 1]; ones where nothing was seen."""
    return np.where(seen > 0, total / np.maximum(seen, 1), 1.0).astype(np.float32)


def write_imatrix(path: Path, matrix: ImportanceMatrix) -> None:
    """Write `matrix` to `path` in the GGUF form that llama-quantize reads, flushed to disk."""
    writer = gguf.GGUFWriter(path, arch="imatrix")
    # an importance matrix has a type and no architecture
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(matrix.datasets))
    writer.add_uint32("imatrix.chunk_count", matrix.chunks)
    writer.add_uint32("imatrix.chunk_size", CHUNK_TOKENS)
    for name in sorted(matrix.sums):
        writer.add_tensor(f"{name}.in_sum2", np.ascontiguousarray(matrix.sums[name], dtype=np.float32))
        writer.add_tensor(f"{name}.counts", matrix.counts[name].reshape(-1, 1).astype(np.float32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.flush()
        assert writer.fout is not None
        os.fsync(writer.fout[0].fileno())
    finally:
        writer.close()


def read_imatrix(path: Path) -> ImportanceMatrix:
    """The importance matrix in a GGUF or `.dat` file. Raises ExportRefused with one sentence for anything else."""
    try:
        means = _read_gguf(path) if read_head(path, 4) == b"GGUF" else _read_dat(read_file(path, _MOST_BYTES))
    except OSError as error:
        raise ExportRefused(f"the importance matrix {path} cannot be read: {cause(error)}") from error
    except Exception as error:  # the reader of GGUF raises what it stumbles over
        raise ExportRefused(f"{path} is no importance matrix: {error}") from error
    bad = next((name for name, values in means.items() if not np.isfinite(values).all()), None)
    if bad is not None:
        raise ExportRefused(f"the importance matrix {path} has numbers for {bad} that are not finite")
    return ImportanceMatrix(means, (path.name,))


def _read_gguf(path: Path) -> dict[str, Sums]:
    tensors = {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in TensorReader(path).tensors}
    means: dict[str, Sums] = {}
    for name in (key.removesuffix(".in_sum2") for key in tensors if key.endswith(".in_sum2")):
        counts = tensors[f"{name}.counts"].reshape(-1, 1)
        means[name] = _mean(tensors[f"{name}.in_sum2"].reshape(len(counts), -1), counts)
    if not means:
        raise ValueError("it has no sums of squares")
    return means


def _read_dat(data: bytes) -> dict[str, Sums]:
    """count; per matrix: length and name, calls, count and numbers (sums over the calls)."""
    means: dict[str, Sums] = {}
    (entries,), place = struct.unpack_from("<i", data), 4
    if not 0 < entries <= 1 << 20:
        raise ValueError("it has no entries")
    for _ in range(entries):
        (length,) = struct.unpack_from("<i", data, place)
        name = data[place + 4 : place + 4 + length].decode("utf-8")
        calls, numbers = struct.unpack_from("<ii", data, place + 4 + length)
        place += 12 + length
        if length <= 0 or numbers <= 0:
            raise ValueError("an entry is empty")
        means[name] = np.frombuffer(data, dtype=np.float32, count=numbers, offset=place) / np.float32(max(calls, 1))
        place += 4 * numbers
    return means
