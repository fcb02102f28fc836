"""Are the weights in the files those that were meant? Looked at one by one, before a runtime is asked anything.

The chain has no gap: the stacked mix adds what the workbench's own mixer adds; base and mix are in the file within the
rounding of each tensor's type; and (in `verify`) the runtime answers as these stored weights do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlm_tui.export.architectures import Architecture, Place
from dlm_tui.export.concatenate import LoraPair
from dlm_tui.export.gguf_model import merged_rows
from dlm_tui.export.mix_check import MIX, Directions, Error, MixCheck, pairs_at
from dlm_tui.export.quantisation.blocks import Rows, dequantise, quantise
from dlm_tui.export.quantisation.imatrix import ImportanceMatrix
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.rounding_check import OF_DTYPE, RoundingCheck
from dlm_tui.export.stored_weights import StoredWeights
from dlm_tui.export.weights import FolderWeights, WeightSource, blocks, blocks_of
from dlm_tui.model import MixedModel
from dlm_tui.model.adapters import pair_keys
from dlm_tui.progress import Progress
from dlm_tui.system_errors import cause

_FOUR_BITS, _FIVE_BITS = 0.5, 0.25
ROUNDING = {
    Type.F32: 1e-3, Type.F16: 5e-3, Type.BF16: 2e-2, Type.Q8_0: 5e-2, Type.Q6_K: 0.12,
    Type.Q5_K: _FIVE_BITS, Type.Q5_0: _FIVE_BITS, Type.Q5_1: _FIVE_BITS,
    Type.Q4_K: _FOUR_BITS, Type.Q4_0: _FOUR_BITS, Type.Q4_1: _FOUR_BITS,
    Type.IQ4_XS: _FOUR_BITS, Type.IQ4_NL: _FOUR_BITS,
}  # fmt: skip
"""Largest accepted ‖stored − meant‖ / ‖meant‖ of a tensor, some four times what each type leaves of normal weights.

A wrong row order, scale or shift leaves about 1.
"""

_PROBES = 4
Pieces = Callable[[], Iterator[tuple[Tensor, Tensor, int]]]


def check_mix(model: MixedModel, mix: Mapping[str, float], pairs: Mapping[str, LoraPair]) -> None:
    """Raises ExportRefused when the mix as one adapter adds anything else than the workbench's mixer does."""
    stacks = model.mixer.stacks  # stacking adds the layouts that `expand` goes by
    ranks = model.mixer.expand(model.coefficients(mix).reshape(1, -1))
    generator = torch.Generator().manual_seed(0)
    active = {module for module, stack in stacks.items() if ranks and bool(ranks[stack.layout].any())}
    if active != set(pairs):
        raise ExportRefused(f"the exported mix changes other modules than the workbench's: {min(active ^ set(pairs))}")
    for module, pair in pairs.items():
        assert ranks is not None
        stack = stacks[module]
        if pair.tokens:
            x = torch.randint(pair.lora_A.shape[1], (1, _PROBES), generator=generator).to(stack.lora_A.device)
        else:
            x = torch.randn(1, _PROBES, pair.lora_A.shape[1], generator=generator).to(stack.lora_A)
        nothing = torch.zeros(1, _PROBES, pair.lora_B.shape[0]).to(stack.lora_A)
        meant = stack.add(nothing, x, ranks[stack.layout]).float().cpu()
        inner = pair.lora_A.T[x.cpu()] if pair.tokens else x.float().cpu() @ pair.lora_A.T
        found = inner @ pair.lora_B.T
        distance = Error({})
        distance.add(found, meant)
        # a workbench in bfloat16 adds with three digits
        if distance.relative > (1e-3 if stack.lora_A.dtype == torch.float32 else 5e-2):
            raise ExportRefused(f"the exported mix does not add what the workbench adds at {module!r}")


def check_gguf(
    path: Path,
    source: WeightSource,
    architecture: Architecture,
    pairs: Mapping[str, LoraPair],
    directions: Directions,
    *,
    importance: ImportanceMatrix | None = None,
) -> Generator[Progress, None, dict[str, Any]]:
    """Every tensor of a written model against base and `pairs` (module -> pair, merged in).

    Returns how many were looked at, the largest relative error per type, and the largest error along the mix. Raises
    ExportRefused naming the first tensor that is further away than its type explains, that is missing, that the base
    does not have, or that is off along one of the `directions`; `importance` is what it was rounded by.
    """
    stored, mix = StoredWeights(path, architecture), MixCheck()
    merged = {f"{module}.weight": pair for module, pair in pairs.items()}
    names = [name for name in source.names() if not (architecture.tied and name == "lm_head.weight")]
    meant = {place.tensor for name in names for place in architecture.places(name)}
    # what frequencies are divided by is judged by `metadata_check`
    _no_more({name for name in stored.names() if not name.startswith("rope_")}, meant, path)
    worst: dict[str, float] = {}
    for done, name in enumerate(names):
        for place in architecture.places(name):
            error = Error(pairs_at(directions, name))
            try:
                kind = stored.kind(place.tensor)
                weights = _weights_of(importance, place, architecture.experts)
                rounding = RoundingCheck(kind, weights)
                pieces = functools.partial(_pieces, stored, source, name, place, merged.get(name), architecture)
                for found, wanted, start in pieces():
                    error.add(found, wanted, start)
                    rounding.add(found, wanted, start)
            except (KeyError, ValueError, IndexError) as failure:
                raise ExportRefused(f"the written file has no proper tensor {place.tensor!r}: {failure}") from failure
            _judge(place.tensor, error.relative, ROUNDING[kind], kind.name)
            again = functools.partial(_rounded_again, pieces, kind, weights, pairs_at(directions, name))
            mix.judge(place.tensor, error, kind.name, again)  # first, as it says what is wrong
            rounding.judge(place.tensor)
            worst[kind.name] = max(worst.get(kind.name, 0.0), error.relative)
        yield Progress("weights", done + 1, len(names))
    mix.judge_all(" and ".join(sorted(worst)))
    return {"tensors": len(names), "relative_error": worst, "error_along_mix": mix.worst, "mix_lost": mix.lost}


def _rounded_again(pieces: Pieces, kind: Type, weights: Rows | None, pairs: Mapping[str, LoraPair]) -> Error:
    """What rounding to `kind` alone leaves of the rows that were meant."""
    error = Error(pairs)
    for _, meant, start in pieces():
        rows = dequantise(quantise(meant.numpy(), kind, weights), kind, meant.shape[-1])
        error.add(torch.from_numpy(np.ascontiguousarray(rows)), meant, start)
    return error


def _weights_of(importance: ImportanceMatrix | None, place: Place, experts: int) -> Rows | None:
    """The importance [columns] that the matrix at `place` was rounded by."""
    found = importance.means.get(place.tensor) if importance is not None else None
    if found is None:
        return None
    return found.reshape(-1) if place.expert is None else found.reshape(experts, -1)[place.expert]


def _pieces(
    stored: StoredWeights,
    source: WeightSource,
    name: str,
    place: Place,
    pair: LoraPair | None,
    architecture: Architecture,
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Rows as they are stored, as they were meant, and the number of the first."""
    shape = source.shape(name)
    stacked = place.expert is not None and len(shape) == 3
    rows, columns = (shape[1] // place.parts, shape[2]) if stacked else (shape[0], shape[1] if len(shape) > 1 else 1)
    heads = architecture.permuted_heads(name)
    for start, stop in blocks(rows, columns, rows // heads if heads else 1):
        if stacked:
            assert place.expert is not None
            first = place.part * rows
            meant = source.rows(name, place.expert, place.expert + 1)[0, first + start : first + stop].float()
        else:
            meant = merged_rows(source, name, start, stop, pair)
        yield stored.rows(name, place, start, stop), meant, start


def check_adapter(path: Path, architecture: Architecture, pairs: Mapping[str, LoraPair]) -> None:
    """Raises ExportRefused when an adapter file does not say what `pairs` say."""
    stored = StoredWeights(path, architecture)
    allowed = {f"{architecture.gguf_name(f'{module}.weight')}.lora_{side}" for module in pairs for side in "ab"}
    _no_more(stored.names(), allowed, path)
    for module, pair in pairs.items():
        found = stored.lora(module)
        if found is None:
            raise ExportRefused(f"{path.name} lacks the module {module!r}")
        for matrix, meant in zip(found, (pair.lora_A, pair.lora_B), strict=True):
            _judge_exact(f"{path.name}, {module}", matrix, meant.float())


def check_peft(path: Path, pairs: Mapping[str, LoraPair]) -> None:
    """Raises ExportRefused when a PEFT adapter's file does not hold `pairs`, filled up with zeros to one rank."""
    meant = {
        key: matrix
        for module, pair in pairs.items()
        for key, matrix in zip(pair_keys(module, pair.tokens), (pair.lora_A, pair.lora_B), strict=True)
    }
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ExportRefused(
            f"the export would not do for its reader: {path.name} cannot be read as safetensors: {cause(error)}"
        ) from error
    with file:
        if missing := set(meant) - set(file.keys()):
            raise ExportRefused(f"{path.name} lacks {min(missing)!r}")
        for key in file.keys():  # noqa: SIM118 - the handle is no mapping
            found = file.get_tensor(key)
            wanted = torch.zeros_like(found)
            if (matrix := meant.get(key)) is not None:
                wanted[: matrix.shape[0], : matrix.shape[1]] = matrix
            _judge_exact(f"{path.name}, {key}", found, wanted)


def check_merged(
    folder: Path, source: WeightSource, pairs: Mapping[str, LoraPair], dtype: torch.dtype
) -> Generator[Progress, None, dict[str, Any]]:
    """Every tensor of a written Hugging Face folder against base and `pairs`, rounded once to `dtype`.

    Returns and raises what `check_gguf` does.
    """
    merged = {f"{module}.weight": pair for module, pair in pairs.items()}
    written = FolderWeights(folder)
    names, worst, mix, kind = source.names(), 0.0, MixCheck(), str(dtype).removeprefix("torch.")
    _no_more(set(written.names()), set(names), folder)
    for done, name in enumerate(names):
        if name not in written.names():
            raise ExportRefused(f"the written folder lacks {name!r}")
        if source.shape(name) != written.shape(name):
            raise ExportRefused(f"the written folder has another shape of {name!r}")
        along = pairs_at({MIX: pairs}, name)
        pieces = functools.partial(_merged_pieces, written, source, name, merged.get(name))
        apart, error, rounding = Error({}), Error(along), RoundingCheck(OF_DTYPE[dtype])
        for found, meant, start in pieces():
            apart.add(found, meant.to(dtype), start)
            error.add(found, meant, start)
            rounding.add(found, meant, start)
        _judge(name, apart.relative, 1e-3, kind)
        mix.judge(name, error, kind, functools.partial(_cast_again, pieces, dtype, along))
        rounding.judge(name)
        worst = max(worst, error.relative)
        yield Progress("weights", done + 1, len(names))
    mix.judge_all(kind)
    return {"tensors": len(names), "relative_error": {kind: worst}, "error_along_mix": mix.worst, "mix_lost": mix.lost}


def _merged_pieces(
    written: WeightSource, source: WeightSource, name: str, pair: LoraPair | None
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Rows as they are stored, as they were meant before any rounding, and the number of the first."""
    for start, stop in blocks_of(source.shape(name)):
        yield written.rows(name, start, stop), merged_rows(source, name, start, stop, pair), start


def _cast_again(pieces: Pieces, dtype: torch.dtype, pairs: Mapping[str, LoraPair]) -> Error:
    """What storing as `dtype` alone leaves of the rows that were meant."""
    error = Error(pairs)
    for _, meant, start in pieces():
        error.add(meant.to(dtype), meant, start)
    return error


def _no_more(found: set[str], allowed: set[str], path: Path) -> None:
    if extra := found - allowed:
        raise ExportRefused(f"{path.name} holds a tensor that was not meant to be there: {min(extra)}")


def _judge_exact(name: str, found: Tensor, meant: Tensor) -> None:
    """Raises ExportRefused where float32 numbers are not those that were meant."""
    distance, rounding = Error({}), RoundingCheck(Type.F32)
    distance.add(found, meant)
    rounding.add(found, meant)
    _judge(name, distance.relative, ROUNDING[Type.F32], "F32")
    rounding.judge(name)


def _judge(name: str, distance: float, limit: float, kind: str) -> None:
    if distance > limit:
        raise ExportRefused(
            f"the export does not hold the workbench's weights: {name} is off by {distance:.2g} of its size, and "
            f"{kind} explains at most {limit:g}"
        )
