"""The families that the fused tier runs: transformers class name → its description."""

from __future__ import annotations

from typing import Any

from dlm_tui.model.architectures.spec import DecoderSpec, why_not

_LLAMA = DecoderSpec()
_GEMMA2 = DecoderSpec(
    attention_out_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_out_norm="post_feedforward_layernorm",
    norm_offset=1.0,
    embedding_scale="sqrt_hidden",
    attention_softcap="attn_logit_softcapping",
    window="by_layer",
)
_GEMMA3 = DecoderSpec(
    attention_out_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_out_norm="post_feedforward_layernorm",
    norm_offset=1.0,
    qk_norm="head",
    embedding_scale="sqrt_hidden",
    window="by_layer",
    rope_by_type=True,
)

FAMILIES: dict[str, DecoderSpec] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": DecoderSpec(window="all"),
    "Qwen2ForCausalLM": DecoderSpec(window="by_layer"),
    "Qwen3ForCausalLM": DecoderSpec(window="by_layer", qk_norm="head"),
    "SmolLM3ForCausalLM": DecoderSpec(window="by_layer", rope_layers="no_rope_layers"),
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": _GEMMA3,
    "Olmo2ForCausalLM": DecoderSpec(
        attention_norm=None,
        attention_out_norm="post_attention_layernorm",
        mlp_norm=None,
        mlp_out_norm="post_feedforward_layernorm",
        qk_norm="projection",
    ),
    "Phi3ForCausalLM": DecoderSpec(window="all", qkv=("qkv_proj",), gate_up=("gate_up_proj",)),
    "GraniteForCausalLM": DecoderSpec(embedding_scale="embedding_multiplier", residual_scale="residual_multiplier"),
    "MixtralForCausalLM": DecoderSpec(window="all", experts=True),
    "Qwen3MoeForCausalLM": DecoderSpec(window="all", qk_norm="head", experts=True),
}


def why_not_fused(family: str, config: Any) -> str | None:
    """Why the fused forward cannot run a base of the class `family` with this configuration, as a clause."""
    if family not in FAMILIES:
        return f"no description of {family} is there yet"
    return why_not(FAMILIES[family], config)
