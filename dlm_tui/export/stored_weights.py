"""Reading a GGUF back: what its bytes say each weight of the base is, by the opposite way to the writer's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from dlm_tui.export.architectures import Architecture, Place
from dlm_tui.export.quantisation.blocks import dequantise
from dlm_tui.export.requests import ExportRefused
from dlm_tui.model.gguf_tensors import TensorReader
from dlm_tui.model.pages import PageBudget
from dlm_tui.system_errors import cause


def unpermute_rows(rows: Tensor, heads: int) -> Tensor:
    """Each head's rows from neighbouring pairs (llama.cpp) back to halves (transformers). [heads·d, …] -> same."""
    if heads == 0:
        return rows
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def read_back(path: Path) -> TensorReader:
    """A GGUF that was written. Raises ExportRefused where it cannot be read."""
    try:
        return TensorReader(path)
    except Exception as error:  # the reader of GGUF raises what it stumbles over
        raise ExportRefused(
            f"the export would not do for its reader: {path.name} cannot be read as GGUF: {cause(error)}"
        ) from error


class StoredWeights:
    """The weights in a GGUF of `architecture`, dequantised to float32 as they are asked for."""

    def __init__(self, path: Path, architecture: Architecture) -> None:
        self._reader = read_back(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._architecture = architecture
        self._budget = PageBudget()

    def names(self) -> set[str]:
        """The names of all tensors in the file."""
        return set(self._tensors)

    def kind(self, tensor: str) -> gguf.GGMLQuantizationType:
        """The stored type of a GGUF tensor. Raises KeyError when the file has none of this name."""
        return self._tensors[tensor].tensor_type

    def rows(self, weight: str, place: Place, start: int, stop: int) -> Tensor:
        """Rows of the part of `weight` that lies at `place`, as transformers wants them; whole heads for q and k."""
        found = self._stored(place.tensor, place.expert, start, stop)
        heads = self._architecture.permuted_heads(weight)
        if heads:
            whole = self._whole_rows(place.tensor)
            found = unpermute_rows(found, (stop - start) * heads // whole)
        shift = self._architecture.shift(weight)
        return found - shift if shift else found

    def weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A whole weight under the name and in the shape that the loaded model has it in."""
        result = torch.empty(shape)
        for place in self._architecture.places(name):
            if place.expert is None or len(shape) == 2:
                return self.rows(name, place, 0, shape[0]).reshape(shape)
            rows = shape[1] // place.parts
            result[place.expert, place.part * rows : (place.part + 1) * rows] = self.rows(name, place, 0, rows)
        return result

    def lora(self, module: str) -> tuple[Tensor, Tensor] | None:
        """lora_A [r, in] and lora_B [out, r] of an adapter file, with the file's own alpha in B as llama.cpp has it."""
        name = self._architecture.gguf_name(f"{module}.weight")
        if f"{name}.lora_a" not in self._tensors:
            return None
        first, second = (self._stored(f"{name}.lora_{side}", None, 0, None) for side in "ab")
        first = first.T if name == "token_embd.weight" else first
        alpha = float(self._reader.fields["adapter.lora.alpha"].contents())
        scale = alpha / first.shape[0] if alpha else 1.0
        return first, unpermute_rows(second, self._architecture.permuted_heads(f"{module}.weight")) * scale

    def _whole_rows(self, tensor: str) -> int:
        """Rows of one matrix, or numbers of a vector."""
        shape = [int(size) for size in self._tensors[tensor].shape]  # columns first
        return shape[1] if len(shape) > 1 else shape[0]

    def _stored(self, name: str, expert: int | None, start: int, stop: int | None) -> Tensor:
        tensor: Any = self._tensors[name]
        data = tensor.data if expert is None else tensor.data[expert]
        piece = np.ascontiguousarray(data[start:stop])
        self._budget.read(piece.nbytes)
        if len(tensor.shape) == 1:
            return torch.from_numpy(piece.astype(np.float32))
        rows = dequantise(piece.view(np.uint8), tensor.tensor_type, int(tensor.shape[0]))
        return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
