"""Which type every tensor of a GGUF gets under a quantisation: llama.cpp's own choice, tensor by tensor.

Source: `llama_tensor_get_type_impl`, `tensor_allows_quantization` and `tensor_type_fallback` of llama.cpp's
`src/llama-quant.cpp`. Only the quantisations of `QUANTISATIONS` are described, and only what concerns them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import gguf
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType

_LAYER = re.compile(r"blk\.(\d+)\.")
_KEPT_FLOAT32 = ("_norm.weight", "ffn_gate_inp.weight")
"""Parts of names of matrices that stay float32: norms over heads, and what routes tokens to experts."""


@dataclass(frozen=True)
class Quantisation:
    """A whole-file quantisation: the type most matrices get, and the number that `general.file_type` says."""

    default: Type
    file_type: FileType


QUANTISATIONS = {
    "f32": Quantisation(Type.F32, FileType.ALL_F32),
    "f16": Quantisation(Type.F16, FileType.MOSTLY_F16),
    "bf16": Quantisation(Type.BF16, FileType.MOSTLY_BF16),
    "q8_0": Quantisation(Type.Q8_0, FileType.MOSTLY_Q8_0),
    "q6_k": Quantisation(Type.Q6_K, FileType.MOSTLY_Q6_K),
    "q5_k_m": Quantisation(Type.Q5_K, FileType.MOSTLY_Q5_K_M),
    "q5_k_s": Quantisation(Type.Q5_K, FileType.MOSTLY_Q5_K_S),
    "q4_k_m": Quantisation(Type.Q4_K, FileType.MOSTLY_Q4_K_M),
    "q4_k_s": Quantisation(Type.Q4_K, FileType.MOSTLY_Q4_K_S),
    "iq4_xs": Quantisation(Type.IQ4_XS, FileType.MOSTLY_IQ4_XS),
    "q5_1": Quantisation(Type.Q5_1, FileType.MOSTLY_Q5_1),
    "q5_0": Quantisation(Type.Q5_0, FileType.MOSTLY_Q5_0),
    "q4_1": Quantisation(Type.Q4_1, FileType.MOSTLY_Q4_1),
    "q4_0": Quantisation(Type.Q4_0, FileType.MOSTLY_Q4_0),
}

_FLOATS = (Type.F32, Type.F16, Type.BF16)
_FALLBACK = {Type.IQ4_XS: Type.IQ4_NL, Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
"""What a row gets whose length 256 does not divide."""


@dataclass(frozen=True)
class ModelFacts:
    """What the recipes ask about a model. `architecture` is the GGUF name; `experts` 0 for a dense model."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    experts: int = 0

    @property
    def _is_70b(self) -> bool:
        # llama.cpp recognises its 70B models by their 80 layers
        grouped = self.heads != self.kv_heads
        return self.layers == 80 and (self.architecture == "qwen2" or (self.architecture == "llama" and grouped))

    @property
    def groups_of_four(self) -> bool:
        """Whether at least four query heads share a key head."""
        return self.heads // max(self.kv_heads, 1) >= 4


def tensor_types(
    quant: str, tensors: Sequence[tuple[str, tuple[int, ...]]], model: ModelFacts, *, weighted: bool = False
) -> dict[str, Type]:
    """The stored type of every tensor, given as (GGUF name, shape with the columns last).

    `weighted` says that an importance matrix is used, which changes a few choices. Vectors, norms and expert routers
    stay float32. Raises KeyError for a quantisation that is not in `QUANTISATIONS`.
    """
    recipe = _Recipe(quant, tensors, model, weighted)
    # llama.cpp counts the value matrices in the order of the layers, however the file is sorted
    return {name: recipe.type_of(name, shape) for name, shape in sorted(tensors, key=lambda pair: _order(pair[0]))}


def _order(name: str) -> tuple[int, str]:
    layer = _LAYER.match(name)
    return (int(layer[1]) if layer else -1, name)


def _more_bits(index: int, count: int) -> bool:
    """The first and last eighth of the layers, and every third in between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


class _Recipe:
    """One pass over the tensors of a file; counts the value matrices it has seen."""

    def __init__(
        self, quant: str, tensors: Sequence[tuple[str, tuple[int, ...]]], model: ModelFacts, weighted: bool
    ) -> None:
        self.quant = quant
        self.default = QUANTISATIONS[quant].default
        self.model = model
        self.weighted = weighted
        self.values = sum(_is_value(name) for name, _ in tensors)
        self.values_seen = 0
        self.tied = all(name != "output.weight" for name, _ in tensors)

    def type_of(self, name: str, shape: tuple[int, ...]) -> Type:
        """The type of the next tensor in llama.cpp's order."""
        if len(shape) < 2 or not name.endswith("weight") or any(part in name for part in _KEPT_FLOAT32):
            return Type.F32
        if self.default in _FLOATS:
            return self.default
        return _fitting(self._chosen(name, shape[-1]), shape[-1])

    def _chosen(self, name: str, columns: int) -> Type:
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            if columns % gguf.GGML_QUANT_SIZES[self.default][0]:
                return Type.Q8_0
            return self.default if self.default == Type.Q8_0 else Type.Q6_K
        if _is_value(name):
            return self._value(name)
        if "attn_k.weight" in name and self.model.experts == 8:
            return Type.Q8_0
        if "ffn_down" in name:
            return self._down(name)
        if "attn_output.weight" in name and self.model.experts == 8 and self.quant in ("q4_k_s", "q4_k_m", "iq4_xs"):
            return Type.Q5_K
        return self.default

    def _value(self, name: str) -> Type:
        """Value matrices, alone or fused with queries and keys, are small and touchy."""
        index, chosen = self.values_seen, self.default
        self.values_seen += 1
        if self.quant == "iq4_xs" and self.model.groups_of_four:
            chosen = Type.Q5_K
        elif self.quant in ("q4_k_m", "q5_k_m") and _more_bits(index, self.values):
            chosen = Type.Q6_K
        elif self.quant == "q4_k_s" and index < 4:
            chosen = Type.Q5_K
        if self.model._is_70b and chosen == Type.Q4_K:
            chosen = Type.Q5_K
        return Type.Q8_0 if self.model.experts == 8 else chosen

    def _down(self, name: str) -> Type:
        """The matrices that leave the feed-forward layers."""
        layer, layers = _order(name)[0], self.model.layers
        first = layer < layers // 8
        if self.quant in ("q4_k_m", "q5_k_m"):
            return Type.Q6_K if _more_bits(layer, layers) else self.default
        if first and (self.quant == "q4_k_s" or (self.quant == "iq4_xs" and not self.weighted)):
            return Type.Q5_K
        if first and self.weighted and self.quant in ("q4_0", "q5_0"):
            return Type.Q4_1 if self.quant == "q4_0" else Type.Q5_1
        return self.default


def _is_value(name: str) -> bool:
    return "attn_v.weight" in name or "attn_qkv.weight" in name


def _fitting(chosen: Type, columns: int) -> Type:
    """`chosen`, or what its blocks are replaced by where they do not divide a row."""
    if columns % gguf.GGML_QUANT_SIZES[chosen][0] == 0:
        return chosen
    instead = _FALLBACK.get(chosen, Type.F16)
    # rows that not even 32 divides are very rare; llama.cpp keeps them as float16 or gives up
    return instead if columns % gguf.GGML_QUANT_SIZES[instead][0] == 0 else Type.F16
