"""Which architectures become GGUF here, and how: tensor names, row permutations, norms, experts, metadata.

Every family in `FAMILIES` has been compared with a real llama.cpp over the full vocabulary (tests/interop); an
architecture that has not is refused with a sentence instead of written wrongly. Adding one is an entry in `FAMILIES`,
a row in the tests' table of bases, and a look at llama.cpp's own `src/models/<name>.cpp` for what it takes for granted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dlm_tui.export.quantisation.recipes import ModelFacts
from dlm_tui.export.requests import ExportRefused

Config = Mapping[str, Any]
Metadata = Mapping[str, int | float | bool | str]

_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
_FEED_FORWARD = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_LLAMA = {
    "input_layernorm": "attn_norm",
    **_ATTENTION,
    "post_attention_layernorm": "ffn_norm",
    **_FEED_FORWARD,
}
_GEMMA = {
    "input_layernorm": "attn_norm",
    **_ATTENTION,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    **_FEED_FORWARD,
    "post_feedforward_layernorm": "post_ffw_norm",
}
_OLMO2 = {
    **_ATTENTION,
    "post_attention_layernorm": "post_attention_norm",
    **_FEED_FORWARD,
    "post_feedforward_layernorm": "post_ffw_norm",
}
_PHI3 = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    # llama.cpp reads the gate from the first half of this one
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ATTENTION_BIAS = ("attention_bias",)
_QKV_BIAS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_EVERY_BIAS = (*_QKV_BIAS, "self_attn.o_proj", *_FEED_FORWARD)
_STRETCHED = ("default", "linear")
_FACTORED = (*_STRETCHED, "llama3")
"""Of the families for which llama.cpp reads what each frequency is divided by from a tensor."""
_ROUTED = {
    "input_layernorm": "attn_norm",
    **_ATTENTION,
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_EXPERT = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT_NAME = re.compile(r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
_EXPERTS_NAME = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)")


_TEXT = "model.language_model."
"""Where the text model lies in a base that also takes images, as Gemma 3 from 4B on."""


def text_name(name: str) -> str:
    """The name that a weight or module of a base with images has in a model of its text alone; others stay."""
    return f"model.{name.removeprefix(_TEXT)}" if name.startswith(_TEXT) else name


def is_of_text(weight: str) -> bool:
    """Whether a weight of a base with images belongs to its text model."""
    return weight.startswith((_TEXT, "lm_head."))


@dataclass(frozen=True)
class Family:
    """A GGUF architecture by data.

    `interleaved` families rotate neighbouring pairs, so rows of q and k are permuted; `shifted_norms` says that norms
    are stored as the distance from 1; `rope_types` are the scalings of the rotation that llama.cpp computes; `windowed`
    ones have sliding layers in llama.cpp too; `biases` are the layers whose bias llama.cpp loads, and `unloaded` the
    switches of a configuration for biases that it does not: it refuses a file with any other. `metadata` gives the keys
    of its own (without the architecture's name); `obstacle` a reason why a configuration cannot be written, else None.
    """

    gguf: str
    layer: Mapping[str, str] = field(default_factory=lambda: _LLAMA)
    interleaved: bool = False
    activation: str = "silu"
    shifted_norms: bool = False
    rope_types: Sequence[str] = _STRETCHED
    windowed: bool = False
    partial_rope: bool = False
    biases: Sequence[str] = ()
    unloaded: Sequence[str] = ()
    metadata: Callable[[Config], Metadata] = lambda config: {}
    obstacle: Callable[[Config], str | None] = lambda config: None


def _gemma2_metadata(config: Config) -> Metadata:
    return {
        "attn_logit_softcapping": float(config["attn_logit_softcapping"]),
        "final_logit_softcapping": float(config["final_logit_softcapping"]),
        "attention.sliding_window": int(config["sliding_window"]),
    }


def _gemma3_metadata(config: Config) -> Metadata:
    period = _window_period(config)
    local = config["rope_parameters"]["sliding_attention"]
    return {
        "attention.sliding_window": int(config["sliding_window"]),
        **({"attention.sliding_window_pattern": period} if period != _GEMMA3_PERIOD else {}),
        "rope.freq_base_swa": float(local["rope_theta"]),
    }


_GEMMA3_PERIOD = 6


def _window_period(config: Config) -> int:
    """Every how many layers one attends to everything; 0 for a pattern that is not regular."""
    kinds = list(config["layer_types"])
    full = [index for index, kind in enumerate(kinds) if kind == "full_attention"]
    # without a full layer any longer period says the same
    period = full[0] + 1 if full else max(_GEMMA3_PERIOD, len(kinds) + 1)
    expected = ["full_attention" if (index + 1) % period == 0 else "sliding_attention" for index in range(len(kinds))]
    return period if kinds == expected else 0


def _gemma_obstacle(config: Config, large: int) -> str | None:
    """`large` is the number of layers by which llama.cpp recognises the 27B model and scales its queries otherwise."""
    head = int(config["head_dim"])
    if int(config["num_hidden_layers"]) == large:
        head = int(config["hidden_size"]) // int(config["num_attention_heads"])
    if float(config["query_pre_attn_scalar"]) != head:
        return "whose queries are scaled by another number than llama.cpp takes for granted"
    if not config.get("tie_word_embeddings"):
        return "with an output layer of its own"
    return None


def _gemma2_obstacle(config: Config) -> str | None:
    if not config.get("attn_logit_softcapping") or not config.get("final_logit_softcapping"):
        return "without soft caps"
    if _window_period(config) != 2:
        return "whose sliding layers do not alternate"
    return _gemma_obstacle(config, 46)


def _gemma3_obstacle(config: Config) -> str | None:
    if config.get("attn_logit_softcapping") or config.get("final_logit_softcapping"):
        return "with soft caps"
    if config.get("use_bidirectional_attention"):
        return "that attends in both directions"
    if _window_period(config) == 0:
        return "whose sliding layers follow no regular pattern"
    if "sliding_attention" not in config["layer_types"]:
        return "without a sliding layer, which llama.cpp takes for granted"
    if config["rope_parameters"]["sliding_attention"].get("rope_type", "default") != "default":
        return "with rope scaling in its sliding layers"
    return _gemma_obstacle(config, 62)


def _granite_metadata(config: Config) -> Metadata:
    return {
        "embedding_scale": float(config["embedding_multiplier"]),
        "residual_scale": float(config["residual_multiplier"]),
        "attention.scale": float(config["attention_multiplier"]),
        # transformers and llama.cpp both divide by it
        "logit_scale": float(config["logits_scaling"]),
    }


def _square_heads(config: Config) -> str | None:
    """llama.cpp sizes some families' heads by the hidden size alone."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    together = int(config.get("head_dim") or hidden // heads) * heads
    return None if together == hidden else "whose heads are together not as wide as the hidden size"


def _olmo2_obstacle(config: Config) -> str | None:
    return "with a tied output layer" if config.get("tie_word_embeddings") else _square_heads(config)


def _experts(config: Config) -> Metadata:
    return {
        "expert_count": int(config["num_local_experts"]),
        "expert_used_count": int(config["num_experts_per_tok"]),
    }


def _qwen3moe_metadata(config: Config) -> Metadata:
    return {**_experts(config), "expert_feed_forward_length": int(config["moe_intermediate_size"])}


def _qwen3moe_obstacle(config: Config) -> str | None:
    if not config.get("norm_topk_prob"):
        return "whose experts' weights are not normed"
    if int(config.get("decoder_sparse_step") or 1) != 1 or config.get("mlp_only_layers"):
        return "with layers without experts"
    return None


def _smollm3_obstacle(config: Config) -> str | None:
    rotated = config.get("no_rope_layers") or []  # 1 where a layer is rotated
    if any(bool(flag) != bool((index + 1) % 4) for index, flag in enumerate(rotated)):
        return "that leaves other layers than every fourth without rotation"
    return None


FAMILIES = {
    "llama": Family("llama", interleaved=True, rope_types=_FACTORED, biases=_EVERY_BIAS),
    "mistral": Family("llama", interleaved=True, rope_types=_FACTORED),
    "qwen2": Family("qwen2", biases=_QKV_BIAS, obstacle=_square_heads),
    "qwen3": Family("qwen3", unloaded=_ATTENTION_BIAS),
    "smollm3": Family(
        "smollm3", interleaved=True, unloaded=(*_ATTENTION_BIAS, "mlp_bias"), obstacle=_smollm3_obstacle
    ),
    "gemma2": Family(
        "gemma2", _GEMMA, activation="gelu_pytorch_tanh", shifted_norms=True, windowed=True,
        unloaded=_ATTENTION_BIAS, metadata=_gemma2_metadata, obstacle=_gemma2_obstacle,
    ),
    "gemma3_text": Family(
        "gemma3", _GEMMA, activation="gelu_pytorch_tanh", shifted_norms=True, windowed=True,
        unloaded=_ATTENTION_BIAS, metadata=_gemma3_metadata, obstacle=_gemma3_obstacle,
    ),
    "phi3": Family(
        "phi3", _PHI3, rope_types=("default", "longrope"), partial_rope=True, obstacle=_square_heads
    ),
    "olmo2": Family(
        "olmo2", _OLMO2, unloaded=_ATTENTION_BIAS, obstacle=_olmo2_obstacle
    ),
    "granite": Family(
        "granite", interleaved=True, rope_types=_FACTORED, biases=_EVERY_BIAS, metadata=_granite_metadata
    ),
    "mixtral": Family("llama", _ROUTED, interleaved=True, rope_types=_FACTORED, metadata=_experts),
    "qwen3_moe": Family(
        "qwen3moe", _ROUTED, unloaded=_ATTENTION_BIAS, metadata=_qwen3moe_metadata,
        obstacle=_qwen3moe_obstacle,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a weight goes: a GGUF tensor, the expert's number in it, and which of the `parts` of the weight's rows."""

    tensor: str
    expert: int | None = None
    part: int = 0
    parts: int = 1


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
    rotary_dim: int
    metadata: Metadata = field(default_factory=dict)

    @property
    def experts(self) -> int:
        """How many experts every layer has; 0 for a dense base."""
        return int(self.metadata.get("expert_count", 0))

    @property
    def facts(self) -> ModelFacts:
        """What the choice of tensor types depends on."""
        return ModelFacts(self.family.gguf, self.layers, self.heads, self.kv_heads, self.experts)

    def gguf_name(self, weight: str) -> str | None:
        """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`; None when there is no such tensor."""
        stem, _, kind = text_name(weight).rpartition(".")
        if kind not in ("weight", "bias"):
            return None
        if stem in _TOP:
            return f"{_TOP[stem]}.weight" if kind == "weight" else None
        match = _LAYER_NAME.fullmatch(stem)
        if match is None or match[2] not in self.family.layer or int(match[1]) >= self.layers:
            return None
        if kind == "bias" and match[2] not in self.family.biases:
            return None
        return f"blk.{match[1]}.{self.family.layer[match[2]]}.{kind}"

    def places(self, weight: str) -> list[Place]:
        """Where a weight of the checkpoint, or of the loaded model, goes; nowhere is an empty list.

        Experts lie apart in checkpoints and stacked in the loaded model, gate and up rows then one above the other.
        """
        weight = text_name(weight)
        if not self.experts:
            name = self.gguf_name(weight)
            return [Place(name)] if name is not None else []
        if one := _EXPERT_NAME.fullmatch(weight):
            stem = _EXPERT.get(one[3])
            return [Place(f"blk.{one[1]}.{stem}.weight", int(one[2]))] if stem else []
        if stacked := _EXPERTS_NAME.fullmatch(weight):
            stems = ("ffn_gate_exps", "ffn_up_exps") if stacked[2] == "gate_up_proj" else ("ffn_down_exps",)
            return [
                Place(f"blk.{stacked[1]}.{stem}.weight", expert, part, len(stems))
                for part, stem in enumerate(stems)
                for expert in range(self.experts)
            ]
        name = self.gguf_name(weight)
        return [Place(name)] if name is not None else []

    def permuted_heads(self, weight: str) -> int:
        """How many heads the rows of this weight (or its bias, or an adapter's lora_B) are permuted in; 0 for none."""
        if not self.family.interleaved:
            return 0
        stem = weight.removesuffix(".weight").removesuffix(".bias")
        if stem.endswith(".self_attn.q_proj"):
            return self.heads
        return self.kv_heads if stem.endswith(".self_attn.k_proj") else 0

    def shift(self, weight: str) -> float:
        """What is added to a weight: 1 to the norms that are stored as the distance from it."""
        return 1.0 if self.family.shifted_norms and weight.endswith("norm.weight") else 0.0

    def rope_factors(self) -> dict[str, Tensor]:
        """Tensors [head_dim/2] of what each frequency is divided by: one for llama3 scaling, two for longrope."""
        kind = self.rope.get("rope_type")
        if kind == "longrope":
            return {
                f"rope_factors_{length}.weight": torch.tensor(self.rope[f"{length}_factor"], dtype=torch.float32)
                for length in ("long", "short")
            }
        return {"rope_freqs.weight": self._llama3_factors()} if kind == "llama3" else {}

    def _llama3_factors(self) -> Tensor:
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


def _one(kind: str) -> str:
    """`a llama`, `an olmo2`."""
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


def _rope(config: Config, kind: str, family: Family) -> dict[str, Any]:
    """Rope settings of the layers that attend to everything, with `rope_type` and `rope_theta`."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope = dict(found.get("full_attention") or found)
    rope["rope_type"] = rope_type = rope.get("rope_type") or rope.get("type") or "default"
    rope["rope_theta"] = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    if rope_type not in family.rope_types:
        raise ExportRefused(what_works(f"{_one(kind)} base with rope scaling of the type {rope_type!r}"))
    if rope_type == "longrope":
        original = float(rope["original_max_position_embeddings"])
        rope["factor"] = float(rope.get("factor") or config["max_position_embeddings"] / original)
    if float(rope.get("partial_rotary_factor") or 1.0) != 1.0 and not family.partial_rope:
        raise ExportRefused(what_works("a base that rotates only a part of each head"))
    return rope


def read_architecture(config: Config) -> Architecture:
    """The architecture of a transformers configuration (`config.to_dict()`).

    Raises ExportRefused naming what stands in the way: another family, another activation, an unsupported rope scaling.
    """
    kind = str(config.get("model_type"))
    family = FAMILIES.get(kind)
    if family is None:
        raise ExportRefused(what_works(f"the architecture {kind!r}"))
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation != family.activation:
        raise ExportRefused(what_works(f"{_one(kind)} base with the activation {activation!r}"))
    if config.get("quantization_config"):
        raise ExportRefused(what_works("a quantised checkpoint"))
    if biased := [switch for switch in family.unloaded if config.get(switch)]:
        raise ExportRefused(
            what_works(f"{_one(kind)} base with {biased[0]}, which llama.cpp does not load in this family,")
        )
    if obstacle := family.obstacle(config):
        raise ExportRefused(what_works(f"{_one(kind)} base {obstacle}"))
    rope = _rope(config, kind, family)
    context_length = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    if window and not family.windowed and config.get("use_sliding_window", True):
        # llama.cpp attends to everything in this family: exact only while the window covers the context
        context_length = min(context_length, int(window))
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    return Architecture(
        family=family,
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        feed_forward=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        vocab=int(config["vocab_size"]),
        context_length=context_length,
        epsilon=float(config["rms_norm_eps"]),
        rope_theta=rope["rope_theta"],
        rope=rope,
        tied=bool(config.get("tie_word_embeddings")),
        rotary_dim=int(head_dim * float(rope.get("partial_rotary_factor") or 1.0)),
        metadata=family.metadata(config),
    )
