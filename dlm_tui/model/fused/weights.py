"""The weights of a decoder laid out for speed, sharing memory with the transformers module.

Query, key and value rows become one matrix, gate and up another; the module's own parameters turn into views of
them, so nothing is stored twice. Weights that are kept as stored stay where they are, each by itself.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from dlm_tui.model.architectures.families import FAMILIES, why_not_fused
from dlm_tui.model.architectures.spec import (
    DecoderSpec,
    LayerSpec,
    activation,
    embedding_scale,
    layer_specs,
    rope_types,
    switch_length,
)
from dlm_tui.model.base import Base
from dlm_tui.model.pages import release_pages
from dlm_tui.model.stacked_experts import gate_up_of
from dlm_tui.model.stored import StoredLinear

_ROPE_STEP = 512


@dataclass(frozen=True)
class FusedLinear:
    """Several linear layers with one input as one [sum of outs, in]; `names` and `widths` of the layers.

    `weights` is that matrix, or each layer's own where they are left in the pages of their file.
    """

    weights: tuple[Tensor, ...]
    bias: Tensor | None
    names: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(outs, in) of the whole."""
        return sum(self.widths), int(self.weights[0].shape[1])

    def converted(self, dtype: torch.dtype) -> FusedLinear:
        """The same in another dtype."""
        bias = self.bias.to(dtype) if self.bias is not None else None
        return FusedLinear(tuple(weight.to(dtype) for weight in self.weights), bias, self.names, self.widths)


@dataclass(frozen=True)
class FusedExperts:
    """The experts of one layer: a router [E, H], and of each expert gate and up [2I, H] and down [H, I].

    The `top_k` largest softmax probabilities weigh the experts' outputs, summing to 1 if `normalised`.
    """

    router: Tensor
    gate_up: tuple[FusedLinear, ...]
    down_proj: tuple[FusedLinear, ...]
    top_k: int
    normalised: bool

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Every expert's own, one expert behind the other."""
        pairs = zip(self.gate_up, self.down_proj, strict=True)
        return tuple(weight for pair in pairs for group in pair for weight in group.weights)

    def converted(self, dtype: torch.dtype) -> FusedExperts:
        """The same in another dtype."""
        return replace(
            self,
            router=self.router.to(dtype),
            gate_up=tuple(group.converted(dtype) for group in self.gate_up),
            down_proj=tuple(group.converted(dtype) for group in self.down_proj),
        )


@dataclass(frozen=True)
class FusedLayer:
    """One decoder layer: the fused groups in the order of their use (no `gate_up` and `down_proj` with experts), and
    the norms' weights, None where the family has no such norm."""

    spec: LayerSpec
    qkv: FusedLinear
    out: FusedLinear
    gate_up: FusedLinear | None
    down_proj: FusedLinear | None
    experts: FusedExperts | None
    attention_norm: Tensor | None
    mlp_norm: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    attention_out_norm: Tensor | None
    mlp_out_norm: Tensor | None

    @property
    def groups(self) -> tuple[FusedLinear, ...]:
        """The fused groups that are there."""
        return tuple(group for group in (self.qkv, self.out, self.gate_up, self.down_proj) if group is not None)

    @property
    def matrices(self) -> tuple[tuple[Tensor, ...], ...]:
        """The weights of the fused groups, then those of the experts."""
        experts = () if self.experts is None else (self.experts.weights,)
        return (*(group.weights for group in self.groups), *experts)

    @property
    def intermediate(self) -> int:
        """Width of the MLP between its two products, or of one expert's."""
        if self.experts is not None:
            return self.experts.down_proj[0].shape[1]
        assert self.down_proj is not None  # a layer has experts or this
        return self.down_proj.shape[1]

    @property
    def norms(self) -> tuple[Tensor | None, ...]:
        """The norms in the order in which the compiled step's table has them."""
        return (
            self.attention_norm,
            self.mlp_norm,
            self.query_norm,
            self.key_norm,
            self.attention_out_norm,
            self.mlp_out_norm,
        )

    def converted(self, dtype: torch.dtype) -> FusedLayer:
        """The same in another dtype."""
        changed: dict[str, Any] = {
            name: part.converted(dtype) if isinstance(part, FusedLinear | FusedExperts) else part.to(dtype)
            for name, part in vars(self).items()
            if part is not None and not isinstance(part, LayerSpec)
        }
        return replace(self, **changed)


class FusedWeights:
    """All layers, the embedding, the final norm and the growing rotary tables of one base."""

    def __init__(self, base: Base) -> None:
        decoder: Any = base.decoder
        config = base.config
        spec = FAMILIES[type(base.model).__name__]
        self.spec = spec
        self.device, self.dtype = base.device, base.dtype
        self.compiled = False
        """Whether the compiled step reads these weights and agreed with the reference."""
        self.uses_bf16_weights = False
        """Whether the compiled step reads them as bfloat16, since they lose nothing by it."""
        self._rounded: tuple[list[tuple[tuple[Tensor, ...], ...]], Tensor] | None = None
        self.is_as_stored = base.is_as_stored
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // self.heads)
        self.eps = float(config.rms_norm_eps)
        self.activation = activation(config)
        self.embedding_scale = embedding_scale(spec, config)
        self.residual_scale = float(getattr(config, spec.residual_scale)) if spec.residual_scale else 1.0
        self.softcap = float(getattr(config, spec.attention_softcap) or 0.0) if spec.attention_softcap else 0.0
        self.attention_scale = float(decoder.layers[0].self_attn.scaling)
        self.embedding = cast("Tensor", decoder.embed_tokens.weight)
        self.norm = _norm(decoder.norm, spec)
        output = cast("Any", base.model).get_output_embeddings()
        self.head, self.head_bias = cast("Tensor", output.weight), cast("Tensor | None", output.bias)
        self.rotary, self._rope_types = decoder.rotary_emb, rope_types(spec, config)
        self.switch = switch_length(config)
        """The longest text that is near, see `rope`; None where all are."""
        prefix = next(name for name, module in base.model.named_modules() if module is base.decoder)
        self.embedding_name = f"{prefix}.embed_tokens"
        self.layers = [
            _layer(layer, f"{prefix}.layers.{number}", spec, facts, config)
            for number, (layer, facts) in enumerate(zip(decoder.layers, layer_specs(spec, config), strict=True))
        ]
        self._tables: dict[bool, tuple[Tensor, Tensor]] = {}

    @property
    def matrices(self) -> list[tuple[tuple[Tensor, ...], ...]]:
        """The weights of every layer's fused groups and experts."""
        return [layer.matrices for layer in self.layers]

    def bf16_weights(self) -> tuple[list[tuple[tuple[Tensor, ...], ...]], Tensor]:
        """The matrices and the head as bfloat16: as they are stored, else rounded, at the first call, half the memory
        again."""
        if self.is_as_stored:
            return self.matrices, self.head.detach()
        if self._rounded is None:
            matrices = [
                tuple(tuple(weight.to(torch.bfloat16) for weight in weights) for weights in groups)
                for groups in self.matrices
            ]
            self._rounded = matrices, self.head.detach().to(torch.bfloat16)
        return self._rounded

    def is_exact_in_bf16(self) -> bool:
        """Whether every weight is a bfloat16 already, as in most published checkpoints."""
        weights = (*(weight for groups in self.matrices for weights in groups for weight in weights), self.head)
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
        other._tables = {}
        return other

    def rope(self, length: int, far: bool = False) -> tuple[Tensor, Tensor]:
        """cos and sign-folded sin [tables, ≥ length, R]: x·cos + swap(x)·sin, where swap exchanges the halves of the
        first R values of a head; the others are not rotated.

        `far`: those of a text that is longer than `switch`. In the others what lies behind that length stands only for
        padding.
        """
        found = self._tables.get(far)
        if found is None or found[0].shape[1] < length:
            size = -(-length // _ROPE_STEP) * _ROPE_STEP
            if far and self.switch is not None:
                size = max(size, self.switch + 1)  # the library goes by the last of the positions
            found = self._tables[far] = self.rotation(torch.arange(size, device=self.device), far)
        return found

    def rotation(self, positions: Tensor, far: bool = False) -> tuple[Tensor, Tensor]:
        """`rope` of these positions [P] alone, by the library's own module."""
        if not far and self.switch is not None:
            positions = positions.clamp(max=self.switch - 1)
        with torch.no_grad():
            pairs = [self.rotary(self.norm, positions[None], *([kind] if kind else [])) for kind in self._rope_types]
        cos, sin = (torch.stack([pair[part][0] for pair in pairs]) for part in (0, 1))
        half = sin.shape[2] // 2
        folded = torch.cat([-sin[:, :, :half], sin[:, :, half:]], dim=2)
        return cos.to(self.dtype).contiguous(), folded.to(self.dtype).contiguous()


def eligible(base: Base) -> str | None:
    """Why the fused forward does not take this base, as a clause; None if it knows every part of it."""
    if base.quantisation is not None:
        return f"its weights are quantised as {base.quantisation}"
    if base.is_offloaded:
        return "its weights are read from the disk"
    if (reason := why_not_fused(type(base.model).__name__, base.config)) is not None:
        return reason
    if base.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its weights are {str(base.dtype).removeprefix('torch.')}"
    kinds = {(parameter.device, parameter.dtype) for parameter in base.model.parameters()}
    if len(kinds) != 1 and not base.is_as_stored:
        return "its weights are spread over several devices or number formats"
    return None


def _layer(layer: Any, name: str, spec: DecoderSpec, facts: LayerSpec, config: Any) -> FusedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    gate_up = down = experts = None
    if spec.experts:
        experts = FusedExperts(
            router=mlp.gate.weight.detach(),
            gate_up=tuple(_one_expert(gate_up_of(mlp.experts, each)) for each in range(len(mlp.experts.down_proj))),
            down_proj=tuple(_one_expert((weight,)) for weight in mlp.experts.down_proj),
            top_k=int(config.num_experts_per_tok),
            normalised=bool(getattr(config, "norm_topk_prob", True)),
        )
    else:
        gate_up = _fuse({f"{name}.mlp.{part}": getattr(mlp, part) for part in spec.gate_up})
        down = _fuse({f"{name}.mlp.down_proj": mlp.down_proj})
    return FusedLayer(
        spec=facts,
        qkv=_fuse({f"{name}.self_attn.{part}": getattr(attention, part) for part in spec.qkv}),
        out=_fuse({f"{name}.self_attn.o_proj": attention.o_proj}),
        gate_up=gate_up,
        down_proj=down,
        experts=experts,
        attention_norm=_named_norm(layer, spec.attention_norm, spec),
        mlp_norm=_named_norm(layer, spec.mlp_norm, spec),
        query_norm=_norm(attention.q_norm, spec) if spec.qk_norm != "none" else None,
        key_norm=_norm(attention.k_norm, spec) if spec.qk_norm != "none" else None,
        attention_out_norm=_named_norm(layer, spec.attention_out_norm, spec),
        mlp_out_norm=_named_norm(layer, spec.mlp_out_norm, spec),
    )


def _one_expert(weights: tuple[Tensor, ...]) -> FusedLinear:
    detached = tuple(weight.detach() for weight in weights)
    return FusedLinear(detached, None, (), tuple(len(weight) for weight in detached))


def _named_norm(layer: Any, name: str | None, spec: DecoderSpec) -> Tensor | None:
    return _norm(getattr(layer, name), spec) if name is not None else None


def _norm(module: Any, spec: DecoderSpec) -> Tensor:
    """A norm's weight with the family's offset."""
    weight = cast("Tensor", module.weight).detach()
    return (weight.float() + spec.norm_offset).to(weight.dtype) if spec.norm_offset else weight


def _fuse(parts: dict[str, nn.Linear]) -> FusedLinear:
    linears = list(parts.values())
    widths = tuple(linear.out_features for linear in linears)
    if len(linears) == 1:
        only = linears[0]
        return FusedLinear((only.weight.detach(),), _detached(only.bias), tuple(parts), widths)
    biases = [_detached(linear.bias) for linear in linears]
    bias = torch.cat([b for b in biases if b is not None]) if biases[0] is not None else None
    if isinstance(linears[0], StoredLinear):
        return FusedLinear(tuple(linear.weight.detach() for linear in linears), bias, tuple(parts), widths)
    weight = torch.cat([linear.weight.detach() for linear in linears])
    for linear, view in zip(linears, weight.split(list(widths)), strict=True):
        release_pages(linear.weight)
        linear.weight.data = view
    return FusedLinear((weight,), bias, tuple(parts), widths)


def _detached(bias: Tensor | None) -> Tensor | None:
    return bias.detach() if bias is not None else None
