"""The settings of a base's configuration that its numbers depend on, beside its tensors. No torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

_NO_NUMBER_DEPENDS_ON = frozenset(
    {
        *("dtype", "torch_dtype", "use_cache", "attn_implementation", "pretraining_tp", "torchscript"),
        *("initializer_range", "initializer_factor", "init_std", "dropout", "layerdrop"),
        *("vocab_size", "tie_word_embeddings"),  # the tensors say it
        *("max_window_layers", "no_rope_layer_interval"),  # the list of the layers says it
        *("n_positions", "n_ctx", "seq_length"),
    }
)
_SO_CALLED = ("_", "summary_", "output_", "router_aux", "router_z")
_ENDS = ("_token_id", "_token_ids", "_dropout", "_pdrop", "_jitter_noise")
_PLAIN_ROPES = ("default", "linear", "llama3", "proportional")
Setting = str | int | float | bool | None


def computing_settings(config: Any) -> dict[str, Setting]:
    """The settings of a decoder's transformers `config`, by their names, those of a mapping or a list with a dot.

    They are those that its class declares, with the defaults of what the file leaves out; what names, stores or trains
    the model is left out, and what is none, empty or off is None, so that a file that says the same otherwise gives the
    same. Numbers have the precision of float32, in which GGUF files keep them.
    """
    from transformers import PretrainedConfig

    values: dict[str, Any] = config.to_dict()
    every_model_has = set(PretrainedConfig().to_dict())
    try:
        declared = set(type(config)().to_dict())
    except Exception:  # a class that cannot be made without arguments
        declared = set(values)
    kept = {name: values[name] for name in declared - every_model_has if name in values}
    if kept.get("head_dim") is None and values.get("num_attention_heads"):
        kept["head_dim"] = values.get("hidden_size", 0) // values["num_attention_heads"]
    if all(kind in _PLAIN_ROPES for kind in _rope_kinds(values.get("rope_parameters"))):
        for bound in ("max_position_embeddings", "original_max_position_embeddings"):
            kept.pop(bound, None)  # of other ropes it is a scale
    # without a window they are one architecture, which GGUF has no second name for
    is_llama = config.model_type == "mistral" and not values.get("sliding_window")
    kept["model_type"] = "llama" if is_llama else config.model_type
    flat = {name: value for top in sorted(kept) for name, value in _flat(top, kept[top])}
    return {name: value for name, value in flat.items() if not _is_left_out(name, every_model_has)}


def _is_left_out(name: str, every_model_has: set[str]) -> bool:
    """Of a name with a dot, whether one of the parts after the first is."""
    top, *below = name.split(".")
    if every_model_has.intersection(below):
        return True
    return any(
        part in _NO_NUMBER_DEPENDS_ON or part.startswith(_SO_CALLED) or part.endswith(_ENDS) for part in (top, *below)
    )


def _rope_kinds(rope: object) -> Iterator[str]:
    """The kinds of one rope, or of one per kind of layer."""
    if isinstance(rope, Mapping):
        yield str(rope.get("rope_type", "default"))
        for part in rope.values():
            yield from _rope_kinds(part)


def _flat(name: str, value: object) -> Iterator[tuple[str, Setting]]:
    if isinstance(value, Mapping) and value:
        for key, part in sorted(value.items(), key=lambda item: str(item[0])):
            yield from _flat(f"{name}.{key}", part)
    elif isinstance(value, (list, tuple)):
        yield name, ",".join(str(_plain(part)) for part in value) or None
    else:
        yield name, _plain(value)


def _plain(value: object) -> Setting:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(struct.unpack("<f", struct.pack("<f", value))[0])
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            return str(value)
        return (int(number) if number.is_integer() else number) or None
    return (value if isinstance(value, (str, bool)) else str(value)) if value else None
