"""The description of a decoder family, and what it means for each layer of one configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

FIXED_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary tables of these kinds depend only on the position, not on how long the text is."""
_SWITCHING = "longrope"
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """One family. Module names are those of one transformers decoder layer, keys those of its configuration.

    Norms stand before (`attention_norm`, `mlp_norm`) or behind (`*_out_norm`) a block, None where there is none;
    `norm_offset` is added to their weights. `qk_norm` normalises each head, or the whole projection.
    `embedding_scale` is "sqrt_hidden", a key, or "". `window` says which layers slide: "by_layer" as `layer_types`
    tells, "all" as soon as the configuration has a window. `rope_by_type`: each layer type has a rotary table of its
    own; `rope_layers`: the key of a list that switches the rotation on per layer. `experts`: the MLP is a router with
    stacked experts.
    """

    attention_norm: str | None = "input_layernorm"
    attention_out_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_out_norm: str | None = None
    norm_offset: float = 0.0
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    qk_norm: Literal["none", "head", "projection"] = "none"
    embedding_scale: str = ""
    residual_scale: str = ""
    attention_softcap: str = ""
    window: Literal["none", "by_layer", "all"] = "none"
    rope_by_type: bool = False
    rope_layers: str = ""
    experts: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One layer: `window` in tokens (0: all of them), `rope` the index of its table (-1: not rotated)."""

    window: int
    rope: int


def layer_specs(spec: DecoderSpec, config: Any) -> list[LayerSpec]:
    """What each layer of this configuration does, in order."""
    count = int(config.num_hidden_layers)
    types = list(getattr(config, "layer_types", None) or ["full_attention"] * count)
    tables = rope_types(spec, config)
    window = int(getattr(config, "sliding_window", None) or 0)
    rotated = list(getattr(config, spec.rope_layers)) if spec.rope_layers else [1] * count
    return [
        LayerSpec(
            window=window if spec.window == "all" or types[number] == "sliding_attention" else 0,
            rope=(tables.index(types[number]) if spec.rope_by_type else 0) if rotated[number] else -1,
        )
        for number in range(count)
    ]


def rope_types(spec: DecoderSpec, config: Any) -> list[str]:
    """The layer types with a rotary table of their own, [""] where all layers share one."""
    return sorted(set(config.layer_types)) if spec.rope_by_type else [""]


def embedding_scale(spec: DecoderSpec, config: Any) -> float:
    """What token embeddings are multiplied with."""
    if spec.embedding_scale == "sqrt_hidden":
        return math.sqrt(config.hidden_size)
    return float(getattr(config, spec.embedding_scale)) if spec.embedding_scale else 1.0


def why_not(spec: DecoderSpec, config: Any) -> str | None:
    """Why the fused forward cannot run this configuration of a known family, as a clause; None if it can."""
    known = {"full_attention"} | ({"sliding_attention"} if spec.window != "none" else set())
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not types <= known:
        return f"it has layers of the type {', '.join(sorted(types - known))}"
    activation = _activation_name(config)
    if activation not in ACTIVATIONS:
        return f"its activation is {activation}"
    if getattr(config, "use_bidirectional_attention", None):
        return "its attention looks ahead"
    if getattr(config, "mlp_only_layers", None) or int(getattr(config, "decoder_sparse_step", 1) or 1) != 1:
        return "only some of its layers have experts"
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in [rope[kind] for kind in rope_types(spec, config)] if spec.rope_by_type else [rope]:
        kind = str((parameters or {}).get("rope_type", "default"))
        if kind not in FIXED_ROPE and (kind != _SWITCHING or spec.rope_by_type):
            return f"its rotary embedding is of the kind {kind}, which changes with the length of the text"
    return None


def activation(config: Any) -> str:
    """`silu` or `gelu_tanh`."""
    return ACTIVATIONS[_activation_name(config)]


def _activation_name(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", ""))


def switch_length(config: Any) -> int | None:
    """The longest text, in tokens, that is read with the short factors of longrope; all of a longer one is read with
    the long ones. None where the rotary table is the same for every length."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != _SWITCHING:
        return None
    own = getattr(config, "original_max_position_embeddings", None)
    return int(rope.get("original_max_position_embeddings") or own or config.max_position_embeddings)
