"""What a GGUF file says of its model against the tensors it holds, before anything of that size is built. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from dlm_tui.model.config_check import refuse_impossible
from dlm_tui.model.gguf_tensors import TensorReader, Value
from dlm_tui.model.registry import BaseUnavailable

_LAYER = re.compile(r"blk\.(\d+)\.")
_TIMES_THE_WIDTH = ("feed_forward_length", "vocab_size")
_COUNTS = (
    *("embedding_length", "feed_forward_length", "expert_feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("expert_count", "expert_used_count", "rope.dimension_count", "attention.sliding_window"),
)
_NEVER_NONE = ("embedding_length", "vocab_size", "attention.head_count", "attention.head_count_kv")


def check_counts(file: Path, reader: TensorReader) -> None:
    """Raise BaseUnavailable where the file says another number of layers than it holds, another width than its
    embedding has, or a count that its tensors leave no room for."""
    tensors: list[Any] = cast("Any", reader).tensors
    architecture = reader.value("general.architecture")
    if not isinstance(architecture, str):
        return  # the library refuses it
    capacity = sum(int(tensor.n_elements) for tensor in tensors)
    has_heads = any(".attn_q" in tensor.name for tensor in tensors)
    _check_layers(file, architecture, reader, tensors)
    _check_width(file, f"{architecture}.embedding_length", reader, tensors)
    width = reader.value(f"{architecture}.embedding_length")
    for name in _COUNTS:
        key = f"{architecture}.{name}"
        value = reader.value(key)
        for count in value if isinstance(value, list) else [value]:
            if count is None:
                continue
            if isinstance(count, bool) or not isinstance(count, int):
                raise BaseUnavailable(f"{file} says {key} {str(count)[:40]!r}, which is no whole number")
            refuse_impossible(file, key, count, capacity)
            if count == 0 and name in _NEVER_NONE and has_heads and not isinstance(value, list):
                raise BaseUnavailable(f"{file} says {key} 0, and its weights are of one that has some")
            if name in _TIMES_THE_WIDTH and isinstance(width, int):
                refuse_impossible(file, f"{architecture}.embedding_length · {name}", width * count, capacity)


def _check_layers(file: Path, architecture: str, reader: TensorReader, tensors: list[Any]) -> None:
    key = f"{architecture}.block_count"
    depth, further = reader.value(key), reader.value(f"{architecture}.nextn_predict_layers")
    layers = {int(match[1]) for match in (_LAYER.match(tensor.name) for tensor in tensors) if match}
    held = max(layers, default=-1) + 1
    if not isinstance(depth, int) or isinstance(depth, bool):
        raise BaseUnavailable(f"{file} does not say how many layers it has ({key}); fetch it again")
    # those that predict further tokens are counted, and read by nobody here: some leave them out
    least = depth - (further if isinstance(further, int) else 0)
    if not least <= held <= depth:
        raise BaseUnavailable(f"{file} says {key} {str(depth)[:40]}, but its weights hold {held} layers")


def _check_width(file: Path, key: str, reader: TensorReader, tensors: list[Any]) -> None:
    said: Value | None = reader.value(key)
    width = next((int(tensor.shape[0]) for tensor in tensors if tensor.name == "token_embd.weight"), None)
    if said != width:
        raise BaseUnavailable(f"{file} says {key} {str(said)[:40]}, but its token embeddings have {width} numbers each")
