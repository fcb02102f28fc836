"""What a safetensors file says of itself, held against its length: its header is read, no tensor is. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

from dlm_tui.errors import DlmTuiError
from dlm_tui.small_files import UnfitFile, read_file, regular_file

_HEADER_LIMIT = 100_000_000
_NAME_LIMIT = 60
_LOOKED_THROUGH = 32 << 20
_CODES: dict[str, Literal["f", "d"]] = {"F32": "f", "F64": "d"}
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_ITEM_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1}


class TensorFileDamaged(DlmTuiError):
    """A safetensors file does not hold what its header says. The sentence has no full stop and no remedy."""


def read_header(file: Path) -> tuple[int, Mapping[str, Any]]:
    """The bytes that the header of a safetensors file takes, and what it says of each tensor.

    Raises TensorFileDamaged, also for what is no plain file and is then not opened; OSError.
    """
    try:
        with regular_file(file) as (handle, _):
            start = handle.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8:
                raise TensorFileDamaged(f"{file} is cut short: it has {len(start)} of at least 8 bytes")
            if length > _HEADER_LIMIT:
                raise TensorFileDamaged(f"{file} is damaged: its header claims {length} bytes")
            header = json.loads(handle.read(length))
    except (UnfitFile, IsADirectoryError) as error:
        raise TensorFileDamaged(f"{file} is damaged: it is not a plain file") from error
    except (ValueError, RecursionError) as error:
        raise TensorFileDamaged(f"{file} is damaged: its header is no JSON") from error
    if not isinstance(header, dict):
        raise TensorFileDamaged(f"{file} is damaged: its header is no JSON object")
    return length, header


def stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by its name. Raises TensorFileDamaged for a file whose header contradicts its length or
    itself; OSError."""
    length, header = read_header(file)
    shapes: dict[str, tuple[int, ...]] = {}
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, place = mapping(entry).get("shape"), mapping(entry).get("data_offsets")
        said = repr(name if len(name) <= _NAME_LIMIT else name[:_NAME_LIMIT] + "…")
        if not (_are_sizes(shape) and _are_sizes(place) and len(place) == 2):
            raise TensorFileDamaged(f"{file} is damaged: its header gives no place of {said}")
        item = _ITEM_BYTES.get(str(entry.get("dtype")))
        held = place[1] - place[0]
        if item is not None and math.prod(shape) * item != held:
            raise TensorFileDamaged(
                f"{file} is damaged: its header says {list(shape)} of {said}, which has {held} bytes"
            )
        shapes[name] = tuple(shape)
        end = max(end, place[1])
    wanted, size = 8 + length + end, file.stat().st_size
    if size < wanted:
        raise TensorFileDamaged(f"{file} is cut short: it has {size} of {wanted} bytes")
    if size > wanted:
        raise TensorFileDamaged(f"{file} is damaged: it has {size} bytes, its header says {wanted}")
    return shapes


def is_finite(file: Path) -> bool:
    """Whether all float32 and float64 numbers of a file that `stored_shapes` found whole are finite; True for a file of
    more than 32 MiB, which takes longer than it is worth. Raises TensorFileDamaged, OSError."""
    if file.stat().st_size > _LOOKED_THROUGH:
        return True
    length, header = read_header(file)
    held = memoryview(read_file(file))[8 + length :]
    for name, entry in header.items():
        code = _CODES.get(str(mapping(entry).get("dtype"))) if name != "__metadata__" else None
        if code is not None:
            start, end = entry["data_offsets"]
            # A sum is finite where every part is: float32 cannot leave the range of what it is summed in.
            numbers = memoryview(bytes(held[start:end])).cast(code)
            if not math.isfinite(sum(numbers)) and not all(map(math.isfinite, numbers)):
                return False
    return True


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object as it is, {} for anything else."""
    return value if isinstance(value, dict) else {}


def _are_sizes(value: object) -> TypeGuard[Sequence[int]]:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
