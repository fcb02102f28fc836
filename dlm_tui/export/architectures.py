"""Which architectures become GGUF here, and how: tensor names, row permutations, metadata.

Every family in `FAMILIES` has been compared with a real llama.cpp over the full vocabulary (tests/interop); an
architecture that has not is refused with a sentence instead of written wrongly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlm_tui.export.requests import ExportRefused

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Family:
    """A GGUF architecture. `interleaved` families rotate neighbouring pairs, so rows of q and k are permuted."""

    gguf: str
    interleaved: bool


FAMILIES = {
    "llama": Family("llama", interleaved=True),
    "mistral": Family("llama", interleaved=True),
    "qwen2": Family("qwen2", interleaved=False),
    "qwen3": Family("qwen3", interleaved=False),
    "smollm3": Family("smollm3", interleaved=True),
}


@dataclass(frozen=True)
class Architecture:
    """The shape of one base, read from its configuration."""

    family: Family
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_length: int
    epsilon: float
    rope_theta: float
    rope: Mapping[str, Any]
    tied: bool

    def gguf_name(self, weight: str) -> str | None:
        """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`; None when there is no such tensor."""
        stem, _, kind = weight.rpartition(".")
        if kind not in ("weight", "bias"):
            return None
        if stem in _TOP:
            return f"{_TOP[stem]}.{kind}"
        match = _LAYER_NAME.fullmatch(stem)
        if match is None or match[2] not in _LAYER or int(match[1]) >= self.layers:
            return None
        return f"blk.{match[1]}.{_LAYER[match[2]]}.{kind}"

    def permuted_heads(self, weight: str) -> int:
        """How many heads the rows of this weight (or its bias, or a LoRA's up matrix) are permuted in; 0 for none."""
        if not self.family.interleaved:
            return 0
        stem = weight.removesuffix(".weight").removesuffix(".bias")
        if stem.endswith(".self_attn.q_proj"):
            return self.heads
        return self.kv_heads if stem.endswith(".self_attn.k_proj") else 0

    def rope_factors(self) -> Tensor | None:
        """`rope_freqs.weight` [head_dim/2] of llama3 scaling: what each frequency is divided by; None without it."""
        if self.rope.get("rope_type") != "llama3":
            return None
        factor, low = float(self.rope["factor"]), float(self.rope["low_freq_factor"])
        high, original = float(self.rope["high_freq_factor"]), float(self.rope["original_max_position_embeddings"])
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        wavelength = 2 * math.pi * self.rope_theta**exponents
        smooth = (original / wavelength - low) / (high - low)
        between = 1.0 / ((1.0 - smooth) / factor + smooth)
        factors = torch.where(wavelength < original / high, torch.ones_like(between), between)
        return torch.where(wavelength > original / low, torch.full_like(factors, factor), factors).float()


def permute_rows(rows: Tensor, heads: int) -> Tensor:
    """Reorder each head's rows from halves (transformers) to neighbouring pairs (llama.cpp). [heads·d, …] -> same."""
    if heads == 0:
        return rows
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def what_works(kind: str) -> str:
    """The sentence for a base that cannot become GGUF here."""
    return (
        f"{kind} cannot be written as GGUF here (checked families: {', '.join(sorted(FAMILIES))}); "
        "the targets peft, vllm and merged work for every base"
    )


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a transformers configuration (`config.to_dict()`).

    Raises ExportRefused naming what stands in the way: another family, another activation, an unsupported rope scaling.
    """
    kind = str(config.get("model_type"))
    family = FAMILIES.get(kind)
    if family is None:
        raise ExportRefused(what_works(f"the architecture {kind!r}"))
    if config.get("hidden_act") != "silu":
        raise ExportRefused(what_works(f"a {kind} base with the activation {config.get('hidden_act')!r}"))
    if config.get("quantization_config"):
        raise ExportRefused(what_works("a quantised checkpoint"))
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    rope["rope_type"] = rope_type
    if rope_type not in ("default", "linear", "llama3"):
        raise ExportRefused(what_works(f"rope scaling of the type {rope_type!r}"))
    if float(rope.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ExportRefused(what_works("a base that rotates only a part of each head"))
    context_length = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    if window and config.get("use_sliding_window", True):
        # llama.cpp attends to everything in this family: exact only while the window covers the context
        context_length = min(context_length, int(window))
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    return Architecture(
        family=family,
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        feed_forward=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        vocab=int(config["vocab_size"]),
        context_length=context_length,
        epsilon=float(config["rms_norm_eps"]),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        rope=rope,
        tied=bool(config.get("tie_word_embeddings")),
    )
