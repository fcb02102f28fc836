"""The base's weights, read a few rows at a time so that a large base never lies in memory twice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlm_tui.export.requests import ExportRefused
from dlm_tui.model.offloaded import fetched
from dlm_tui.model.pages import PageBudget
from dlm_tui.small_files import read_file, require_regular
from dlm_tui.system_errors import cause

BLOCK_ELEMENTS = 1 << 20
"""Numbers handled at once: 4 MiB of float32, of which about six copies live while they are merged and rounded."""


class WeightSource(Protocol):
    """Named tensors that can be read row by row."""

    def names(self) -> list[str]:
        """All tensor names, as in the checkpoint."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises KeyError for an unknown name."""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the first axis, in the stored dtype; a number of its own has one row, itself."""


class FolderWeights:
    """A folder of safetensors files, one or many shards. Files are mapped, tensors are copied only in part."""

    def __init__(self, folder: Path) -> None:
        self._where: dict[str, Any] = {}
        self._budget = PageBudget()
        shards = sorted(set(_shards(folder)))
        if not shards:
            raise ExportRefused(f"{folder} holds no safetensors weights to read")
        for shard in shards:
            try:
                require_regular(shard)
                handle = safe_open(shard, framework="pt")
                for name in handle.keys():  # noqa: SIM118 - the handle is no mapping
                    self._where[name] = handle
            except (SafetensorError, OSError) as error:
                raise ExportRefused(f"{shard} cannot be read as safetensors: {cause(error)}") from error

    def names(self) -> list[str]:
        return list(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name].get_slice(name).get_shape())

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        handle = self._where[name]
        if not self.shape(name):
            return cast("Tensor", handle.get_tensor(name))  # which has no slice
        tensor: Tensor = handle.get_slice(name)[start:stop]
        self._budget.read(tensor.nbytes)
        return tensor


class MemoryWeights:
    """The tensors of a loaded model; nothing is copied until rows are asked for."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self._budget = PageBudget()

    def names(self) -> list[str]:
        return list(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        tensor = _cut(self._state[name], start, stop).detach().cpu()
        self._budget.read(tensor.nbytes)
        return tensor


class OffloadedWeights:
    """The tensors of a loaded model of which some lie on the disk; the one that is read stays until the next is."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", {})
        self._shapes = {name: tuple(one.shape) for name, one in model.state_dict().items() if name not in tied}
        self._read: tuple[str, Tensor] | None = None

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        if self._read is None or self._read[0] != name:
            self._read = None
            module = self._model.get_submodule(name.rpartition(".")[0])
            with fetched(module):
                self._read = name, getattr(module, name.rpartition(".")[2]).detach()
        return _cut(self._read[1], start, stop)


UNTIED_NOTE = (
    "the mix changes the token embedding, so the output layer, which is tied to it in the base, is stored apart"
)


class UntiedWeights:
    """The weights of a base with tied embeddings, and the output layer `head` as a copy of `embedding`."""

    def __init__(self, source: WeightSource, embedding: str, head: str) -> None:
        self._source, self._embedding, self._head = source, embedding, head

    def names(self) -> list[str]:
        return [*(name for name in self._source.names() if name != self._head), self._head]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(self._embedding if name == self._head else name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._source.rows(self._embedding if name == self._head else name, start, stop)


class PartOfWeights:
    """Those tensors of a source whose names `belong`."""

    def __init__(self, source: WeightSource, belong: Callable[[str], bool]) -> None:
        self._source, self._belong = source, belong

    def names(self) -> list[str]:
        return [name for name in self._source.names() if self._belong(name)]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._source.rows(name, start, stop)


def _shards(folder: Path) -> Iterator[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            weight_map = json.loads(read_file(index))["weight_map"]
            for name in weight_map.values():
                if Path(name).name != name:
                    raise ValueError(f"a shard lies outside the folder: {name!r}")
                yield folder / name
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ExportRefused(f"{index} cannot be read: {error}") from error
    elif (folder / "model.safetensors").is_file():
        yield folder / "model.safetensors"


def module_name(model: torch.nn.Module, wanted: torch.nn.Module) -> str:
    """What a module of the model is called in it."""
    found: str = next(name for name, module in model.named_modules() if module is wanted)
    return found


def ties_output(model: Any) -> bool:
    """Whether the output layer is the token embedding."""
    return bool(model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def open_weights(folder: Path | None, model: torch.nn.Module, needed: Iterable[str]) -> WeightSource:
    """The checkpoint files when they hold `needed` under the names the model has, else the tensors of the model itself.

    The files are preferred: they are what the model was made from, and reading them leaves the model alone.
    """
    if folder is not None and any(True for _ in _shards(folder)):
        source = FolderWeights(folder)
        if set(needed) <= set(source.names()):
            return source
    if any(weight.is_meta for weight in model.parameters()):
        return OffloadedWeights(model)
    return MemoryWeights(_untied(model.state_dict()))


def _untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once: the first of several names for the same memory."""
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        seen.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
    return {name: state[name] for name in seen.values()}


def _cut(tensor: Tensor, start: int, stop: int) -> Tensor:
    return tensor[start:stop] if tensor.ndim else tensor


def blocks_of(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The row ranges of a tensor of this shape; a number of its own is one row."""
    return blocks(shape[0] if shape else 1, math.prod(shape[1:]))


def blocks(rows: int, columns: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Row ranges of about `BLOCK_ELEMENTS` numbers, each a multiple of `multiple` rows long except perhaps the last."""
    step = max(1, BLOCK_ELEMENTS // max(columns, 1) // multiple) * multiple
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
