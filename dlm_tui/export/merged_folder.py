"""A Hugging Face folder with the mix merged into the base's weights, written shard by shard, a few rows at a time."""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlm_tui.export.concatenate import LoraPair
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.weights import WeightSource, blocks_of
from dlm_tui.files import json_bytes, write_atomic
from dlm_tui.progress import Progress

DTYPES = {"f32": (torch.float32, "F32"), "f16": (torch.float16, "F16"), "bf16": (torch.bfloat16, "BF16")}
SHARD_BYTES = 4 << 30


@dataclass(frozen=True)
class _Shard:
    name: str
    tensors: list[str]


def merged_dtype(quant: str) -> torch.dtype:
    """Raises ExportRefused for a type that a safetensors model is not stored in here."""
    if quant not in DTYPES:
        raise ExportRefused(f"merged safetensors are written as {', '.join(DTYPES)}, not {quant}")
    return DTYPES[quant][0]


def stored_dtype(source: WeightSource) -> str:
    """The name in `DTYPES` of the type that most of the source's numbers have; f32 where it is none of these."""
    elements: Counter[torch.dtype] = Counter()
    for name in source.names():
        elements[source.rows(name, 0, 1).dtype] += math.prod(source.shape(name))
    return _named(elements.most_common(1)[0][0] if elements else torch.float32)


def loaded_dtype(folder: Path | None, source: WeightSource) -> str:
    """The name in `DTYPES` of the type that transformers loads a model folder in where nobody says one: what its
    configuration says, however the tensors are stored, and what most of these have where it says nothing."""
    from transformers import AutoConfig

    said = AutoConfig.from_pretrained(str(folder), local_files_only=True).dtype if folder is not None else None
    return _named(said) if said is not None else stored_dtype(source)


def _named(wanted: torch.dtype) -> str:
    return next((name for name, (dtype, _) in DTYPES.items() if dtype == wanted), "f32")


def planned_bytes(source: WeightSource, quant: str) -> int:
    """Bytes of all tensors."""
    width = merged_dtype(quant).itemsize
    return sum(math.prod(source.shape(name)) * width for name in source.names())


def _shards(source: WeightSource, width: int, limit: int) -> list[_Shard]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name in source.names():
        size = math.prod(source.shape(name)) * width
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return [_Shard("model.safetensors", groups[0])]
    return [
        _Shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", names)
        for number, names in enumerate(groups, start=1)
    ]


def write_merged(
    folder: Path,
    source: WeightSource,
    pairs: Mapping[str, LoraPair],
    config: Mapping[str, Any],
    quant: str,
    shard_bytes: int = SHARD_BYTES,
) -> Generator[Progress, None, None]:
    """Write config.json and the weights W + lora_B·lora_A to `folder`. Progress counts bytes.

    Raises ExportRefused for a module without a weight of its own, and for weights that overflow the type.
    """
    dtype, label = merged_dtype(quant), DTYPES[quant][1]
    merged = {f"{module}.weight": pair for module, pair in pairs.items()}
    unplaced = set(merged) - set(source.names())
    if unplaced or (config.get("tie_word_embeddings") and "lm_head.weight" in merged):
        culprit = min(unplaced, default="lm_head.weight")
        raise ExportRefused(f"the adapters change {culprit!r}, which the base's checkpoint does not hold apart")
    shards = _shards(source, dtype.itemsize, shard_bytes)
    total, done = planned_bytes(source, quant), 0
    for shard in shards:
        for step in _write_shard(folder / shard.name, shard, source, merged, dtype, label):
            yield Progress(shard.name, done + step, total)
        done += (folder / shard.name).stat().st_size
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: shard.name for shard in shards for name in shard.tensors},
        }
        write_atomic(folder / "model.safetensors.index.json", json_bytes(index))
    saved = {**config, "dtype": str(dtype).removeprefix("torch.")}
    saved.pop("torch_dtype", None)
    write_atomic(folder / "config.json", json_bytes(saved))


def _write_shard(
    path: Path,
    shard: _Shard,
    source: WeightSource,
    merged: Mapping[str, LoraPair],
    dtype: torch.dtype,
    label: str,
) -> Generator[int, None, None]:
    """One safetensors file: 8 bytes of header length, the header as JSON, then the data without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in shard.tensors:
        shape = source.shape(name)
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    written = 0
    with path.open("xb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in shard.tensors:
            shape = source.shape(name)
            for start, stop in blocks_of(shape):
                written += out.write(_block_bytes(source, name, shape, start, stop, merged.get(name), dtype))
                yield written
        out.flush()
        os.fsync(out.fileno())


def _block_bytes(
    source: WeightSource,
    name: str,
    shape: tuple[int, ...],
    start: int,
    stop: int,
    pair: LoraPair | None,
    dtype: torch.dtype,
) -> memoryview:
    rows = source.rows(name, start, stop)
    if pair is not None:
        rows = rows.float() + pair.lora_B[start:stop] @ pair.lora_A
    if rows.is_floating_point():
        converted = rows.to(dtype)
        if not torch.isfinite(converted).all() and torch.isfinite(rows).all():
            raise ExportRefused(
                f"the weight {name!r} is too large for {str(dtype).removeprefix('torch.')}: use f32 or bf16"
            )
        rows = converted
    return rows.contiguous().reshape(-1).view(torch.uint8).numpy().data
