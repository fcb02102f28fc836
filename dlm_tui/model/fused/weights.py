"""The weights of a Llama-like decoder laid out for speed, sharing memory with the transformers module.

Query, key and value rows become one matrix, gate and up another; the module's own parameters turn into views of
them, so nothing is stored twice.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dlm_tui.model.base import Base
from dlm_tui.model.pages import release_pages

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
# rotary tables of these kinds depend only on the position, not on how long the text is
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")
_ROPE_STEP = 2048


@dataclass(frozen=True)
class FusedLinear:
    """Several linear layers with one input as one: `weight` [sum of outs, in], `names` and `widths` of the parts."""

    weight: Tensor
    bias: Tensor | None
    names: tuple[str, ...]
    widths: tuple[int, ...]

    def converted(self, dtype: torch.dtype) -> FusedLinear:
        """The same in another dtype."""
        bias = self.bias.to(dtype) if self.bias is not None else None
        return FusedLinear(self.weight.to(dtype), bias, self.names, self.widths)


@dataclass(frozen=True)
class FusedLayer:
    """One decoder layer. The four fused groups are in the order of their use."""

    qkv: FusedLinear
    out: FusedLinear
    gate_up: FusedLinear
    down_proj: FusedLinear
    attention_norm: Tensor
    mlp_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None

    @property
    def groups(self) -> tuple[FusedLinear, FusedLinear, FusedLinear, FusedLinear]:
        return self.qkv, self.out, self.gate_up, self.down_proj

    def converted(self, dtype: torch.dtype) -> FusedLayer:
        """The same in another dtype."""
        return FusedLayer(
            self.qkv.converted(dtype),
            self.out.converted(dtype),
            self.gate_up.converted(dtype),
            self.down_proj.converted(dtype),
            self.attention_norm.to(dtype),
            self.mlp_norm.to(dtype),
            self.query_norm.to(dtype) if self.query_norm is not None else None,
            self.key_norm.to(dtype) if self.key_norm is not None else None,
        )


class FusedWeights:
    """All layers, the embedding, the final norm and the growing rotary table of one base."""

    def __init__(self, base: Base) -> None:
        decoder: Any = base.decoder
        config = base.config
        self.device, self.dtype = base.device, base.dtype
        self.compiled = False
        """Whether the compiled step reads these weights and agreed with the reference."""
        self.uses_bf16_weights = False
        """Whether the compiled step reads them as bfloat16, since they lose nothing by it."""
        self._rounded: tuple[list[tuple[Tensor, ...]], Tensor] | None = None
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        self.eps = float(config.rms_norm_eps)
        self.embedding = cast("Tensor", decoder.embed_tokens.weight)
        self.norm = cast("Tensor", decoder.norm.weight)
        output = cast("Any", base.model).get_output_embeddings()
        self.head, self.head_bias = cast("Tensor", output.weight), cast("Tensor | None", output.bias)
        self._rotary = decoder.rotary_emb
        prefix = next(name for name, module in base.model.named_modules() if module is base.decoder)
        self.layers = [_layer(layer, f"{prefix}.layers.{number}") for number, layer in enumerate(decoder.layers)]
        self.head_dim = self.layers[0].qkv.widths[0] // self.heads
        self._cos = torch.empty(0, self.head_dim, dtype=self.dtype, device=self.device)
        self._sin = self._cos

    @property
    def matrices(self) -> list[tuple[Tensor, ...]]:
        """The weights of every layer's four fused groups."""
        return [tuple(group.weight for group in layer.groups) for layer in self.layers]

    def bf16_weights(self) -> tuple[list[tuple[Tensor, ...]], Tensor]:
        """The matrices and the head rounded to bfloat16, made at the first call and kept: half the memory again."""
        if self._rounded is None:
            matrices = [tuple(weight.to(torch.bfloat16) for weight in four) for four in self.matrices]
            self._rounded = matrices, self.head.detach().to(torch.bfloat16)
        return self._rounded

    def is_exact_in_bf16(self) -> bool:
        """Whether every weight is a bfloat16 already, as in most published checkpoints."""
        weights = (*(weight for four in self.matrices for weight in four), self.head)
        return all(torch.equal(weight, weight.to(torch.bfloat16).to(weight.dtype)) for weight in weights)

    def converted(self, dtype: torch.dtype) -> FusedWeights:
        """A copy of everything in another dtype; it shares nothing with the transformers module."""
        other = copy.copy(self)
        other.dtype = dtype
        other.compiled, other.uses_bf16_weights, other._rounded = False, False, None
        other.embedding, other.norm = self.embedding.to(dtype), self.norm.to(dtype)
        tied = self.head.data_ptr() == self.embedding.data_ptr()
        other.head = other.embedding if tied else self.head.to(dtype)
        other.head_bias = self.head_bias.to(dtype) if self.head_bias is not None else None
        other.layers = [layer.converted(dtype) for layer in self.layers]
        other._cos = other._sin = torch.empty(0, self.head_dim, dtype=dtype, device=self.device)
        return other

    def rope(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sign-folded sin [≥ length, head_dim]: x·cos + swap(x)·sin, where swap exchanges the halves."""
        if self._cos.shape[0] < length:
            size = -(-length // _ROPE_STEP) * _ROPE_STEP
            positions = torch.arange(size, device=self.device)[None]
            with torch.no_grad():
                cos, sin = self._rotary(self.norm, positions)
            half = self.head_dim // 2
            self._cos = cos[0].to(self.dtype)
            self._sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=1).to(self.dtype)
        return self._cos, self._sin


def eligible(base: Base) -> bool:
    """Whether the fused forward knows every part of this base."""
    config = base.config
    rope = getattr(config, "rope_parameters", None) or {}
    window = getattr(config, "sliding_window", None) if type(base.model).__name__ == "MistralForCausalLM" else None
    return (
        type(base.model).__name__ in SUPPORTED
        and base.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not window
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") in _FIXED_ROPE
        and float(rope.get("partial_rotary_factor") or 1.0) == 1.0
        and len({(parameter.device, parameter.dtype) for parameter in base.model.parameters()}) == 1
    )


def _layer(layer: Any, name: str) -> FusedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    return FusedLayer(
        qkv=_fuse({f"{name}.self_attn.{part}": getattr(attention, part) for part in ("q_proj", "k_proj", "v_proj")}),
        out=_fuse({f"{name}.self_attn.o_proj": attention.o_proj}),
        gate_up=_fuse({f"{name}.mlp.{part}": getattr(mlp, part) for part in ("gate_proj", "up_proj")}),
        down_proj=_fuse({f"{name}.mlp.down_proj": mlp.down_proj}),
        attention_norm=layer.input_layernorm.weight,
        mlp_norm=layer.post_attention_layernorm.weight,
        query_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        key_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
    )


def _fuse(parts: dict[str, nn.Linear]) -> FusedLinear:
    linears = list(parts.values())
    widths = tuple(linear.out_features for linear in linears)
    if len(linears) == 1:
        only = linears[0]
        return FusedLinear(only.weight.detach(), _detached(only.bias), tuple(parts), widths)
    weight = torch.cat([linear.weight.detach() for linear in linears])
    for linear, view in zip(linears, weight.split(list(widths)), strict=True):
        release_pages(linear.weight)
        linear.weight.data = view
    biases = [_detached(linear.bias) for linear in linears]
    bias = torch.cat([b for b in biases if b is not None]) if biases[0] is not None else None
    return FusedLinear(weight, bias, tuple(parts), widths)


def _detached(bias: Tensor | None) -> Tensor | None:
    return bias.detach() if bias is not None else None
