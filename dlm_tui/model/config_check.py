"""A base's `config.json` against what its weight files hold, before anything of that size is built. No torch.

A configuration that asks for ten million layers is otherwise built, layer by layer, for hours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlm_tui.document.errors import shortened
from dlm_tui.model.registry import BaseUnavailable
from dlm_tui.tensor_files import TensorFileDamaged, mapping, read_header, stored_shapes

_LAYER = re.compile(r"((?:^|.*?\.)(?:layers|h|blocks|block|layer))\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")
_SIZES = (
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "moe_intermediate_size", "ffn_dim"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "vocab_size", "n_positions"),
    *("num_local_experts", "num_experts", "n_routed_experts"),
)
_NEVER_NONE = ("hidden_size", "n_embd", "d_model", "num_attention_heads", "n_head", "num_key_value_heads", "vocab_size")
# A matrix of these two sizes stands in every model that has both.
_MATRICES = (("hidden_size", "vocab_size"), ("n_embd", "vocab_size"), ("hidden_size", "intermediate_size"))
_AGAIN = "fetch it again"
# One stored byte holds at most this many weights, at one bit each.
_WEIGHTS_PER_BYTE = 8


def check_config(config: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Raise BaseUnavailable when the configuration asks for more than the safetensors `files` can hold, or for fewer
    layers than they do, which would run without the rest; and for one whose tokens see those behind them.
    """
    if reason := both_ways(config):
        raise BaseUnavailable(f"{files[0].parent} {reason}")
    shapes = {name: shape for file in files for name, shape in _shapes(file).items()}
    _refuse_unequal_experts(shapes)
    _refuse_lacking_experts(shapes)
    place = files[0].parent / "config.json"
    capacity = _WEIGHTS_PER_BYTE * sum(file.stat().st_size for file in files)
    stacks: dict[str, int] = {}  # a model with an image tower has two
    for match in filter(None, map(_LAYER.match, _names(files))):
        stacks[match[1]] = max(stacks.get(match[1], 0), int(match[2]) + 1)
    for part in (config, mapping(config.get("text_config"))):
        for key in _DEPTHS:
            depth = part.get(key)
            if isinstance(depth, int) and stacks:
                further = part.get("num_nextn_predict_layers")  # stored behind the others, used by nobody here
                most = depth + (further if isinstance(further, int) else 0)
                if depth > max(stacks.values()) or most < min(stacks.values()):
                    held = max(stacks.values())
                    raise BaseUnavailable(f"{place} says {key} {depth}, but the weights hold {held} layers")
            refuse_impossible(place, key, depth, capacity)
        for key in _SIZES:
            refuse_impossible(place, key, part.get(key), capacity)
        for first, second in _MATRICES:
            if isinstance(part.get(first), int) and isinstance(part.get(second), int):
                refuse_impossible(place, f"{first} · {second}", part[first] * part[second], capacity)


def both_ways(config: Mapping[str, Any]) -> str:
    """Why a base is none where its tokens see those behind them, as embedding models made of Gemma have it; "" for
    others. Its rows would depend on their neighbours' lengths, and an answer on what comes after it."""
    text = mapping(config.get("text_config"))
    told = text.get("use_bidirectional_attention", config.get("use_bidirectional_attention"))
    if told is not True and told != "all":  # "vision" is of images alone
        return ""
    return "attends both ways (use_bidirectional_attention in config.json): it embeds text, and cannot write any"


def mismatch(report: Mapping[str, Any]) -> str:
    """Where the library's loading `report` says that a weight has another shape than the configuration asks for, that
    as a clause; else ""."""
    for name, stored, asked in sorted(report.get("mismatched_keys") or ()):
        sizes = " x ".join(map(str, stored)), " x ".join(map(str, asked))
        return f"{name} is {sizes[0]} in its files, and {sizes[1]} by its configuration"
    return ""


def refuse_impossible(place: Path, key: str, value: object, capacity: int) -> None:
    """Raise BaseUnavailable for a count that is none, is negative, or is above what the files behind `place` hold."""
    if isinstance(value, str):
        raise BaseUnavailable(f"{place} says {key} {shortened(value, 40)!r}, which is no whole number")
    if isinstance(value, bool) or not isinstance(value, int):
        return
    said = f"{place} says {key} {shortened(str(value), 40)}"
    if value > capacity or value < 0:
        raise BaseUnavailable(f"{said}, which its weight files cannot hold")
    if value == 0 and key in _NEVER_NONE:
        raise BaseUnavailable(f"{said}, and no model has none")


def _shapes(file: Path) -> Mapping[str, tuple[int, ...]]:
    """The shapes by name. Raises BaseUnavailable for a file that does not hold what its header says of each tensor."""
    try:
        return stored_shapes(file)
    except TensorFileDamaged as error:
        raise BaseUnavailable(f"{error}; {_AGAIN}") from error


def _refuse_unequal_experts(shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises BaseUnavailable where an expert has another shape than the others of its layer."""
    found: dict[str, Sequence[int]] = {}
    for name, shape in shapes.items():
        if (
            _EXPERT.search(name)
            and len(shape) == 2
            and shape != (others := found.setdefault(_EXPERT.sub(".", name), shape))
        ):
            sizes = " x ".join(map(str, shape)), " x ".join(map(str, others))
            raise BaseUnavailable(f"{name} is {sizes[0]} in its files, and {sizes[1]} for other experts; {_AGAIN}")


def _refuse_lacking_experts(names: Iterable[str]) -> None:
    """Raises BaseUnavailable where an expert lacks a weight that others of its layer have."""
    layers: dict[str, dict[str, set[str]]] = {}
    for name in names:
        if match := _EXPERT.search(name):
            parts = layers.setdefault(name[: match.start()], {})
            parts.setdefault(name[match.end() :], set()).add(match[1])
    for layer, parts in layers.items():
        every = set[str]().union(*parts.values())
        for part, experts in parts.items():
            if lacking := every - experts:
                expert = min(lacking, key=int)
                raise BaseUnavailable(
                    f"there is no {layer}.experts.{expert}.{part}, which other experts have; {_AGAIN}"
                )


def stored_types(files: Sequence[Path]) -> set[str]:
    """The number types of all tensors in safetensors `files`, as the format names them."""
    return {str(entry.get("dtype")) for name, entry in _entries(files) if name != "__metadata__"}


def stored_elements(files: Sequence[Path]) -> int:
    """How many numbers the tensors of safetensors `files` hold."""
    shapes = (entry.get("shape") for name, entry in _entries(files) if name != "__metadata__")
    return sum(math.prod(int(size) for size in shape) for shape in shapes if isinstance(shape, list))


def largest_bytes(files: Sequence[Path], item: int) -> int:
    """Bytes of the largest tensor at `item` bytes a number: while it is quantised or widened it is there twice."""
    shapes = (entry.get("shape") for name, entry in _entries(files) if name != "__metadata__")
    return item * max(
        (math.prod(int(size) for size in shape) for shape in shapes if isinstance(shape, list)), default=0
    )


def quantised_bytes(files: Sequence[Path], bits: int, item: int) -> int:
    """Bytes that the tensors of safetensors `files` take with the matrices of their layers in `bits` bits a number.

    Everything else takes `item` bytes a number, but for what is stored as bytes already; 4 bits come with a float32
    scale per 64 numbers.
    """
    width = (bits + (0.5 if bits == 4 else 0.0)) / 8
    total = 0.0
    for name, entry in _entries(files):
        shape = entry.get("shape")
        if name == "__metadata__" or not isinstance(shape, list):
            continue
        if entry.get("dtype") in ("U8", "I8"):
            each: float = 1
        else:
            each = width if len(shape) == 2 and _LAYER.match(name) else item
        total += each * math.prod(int(size) for size in shape)
    return math.ceil(total)


def _names(files: Sequence[Path]) -> Iterator[str]:
    for name, _ in _entries(files):
        yield name


def _entries(files: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for file in files:
        try:
            header = read_header(file)[1]
        except TensorFileDamaged as error:
            raise BaseUnavailable(f"{error}; {_AGAIN}") from error
        for name, entry in header.items():
            yield name, mapping(entry)
