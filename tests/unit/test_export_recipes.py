"""Which type each tensor of a GGUF gets: as in a file that llama.cpp quantised, and as its written rules say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from dlm_tui.export.quantisation.recipes import QUANTISATIONS, ModelFacts, tensor_types

REAL = Path(__file__).parents[1] / "interop" / "data" / "gemma3-270m-q4_k_m.json"
Shapes = list[tuple[str, tuple[int, ...]]]


def llama(layers: int, hidden: int = 2048, wide: int = 8192, kv: int = 512, *, tied: bool = True) -> Shapes:
    """The tensors of a Llama, in an order that is not that of its layers."""
    shapes: Shapes = [("token_embd.weight", (32000, hidden)), ("output_norm.weight", (hidden,))]
    if not tied:
        shapes.append(("output.weight", (32000, hidden)))
    for layer in sorted(range(layers), key=str):
        for name, shape in {
            "attn_norm": (hidden,),
            "attn_q": (hidden, hidden),
            "attn_k": (kv, hidden),
            "attn_v": (kv, hidden),
            "attn_output": (hidden, hidden),
            "ffn_gate": (wide, hidden),
            "ffn_up": (wide, hidden),
            "ffn_down": (hidden, wide),
        }.items():
            shapes.append((f"blk.{layer}.{name}.weight", shape))
    return shapes


def raised(types: dict[str, Type], part: str, usual: Type) -> dict[int, str]:
    """Layers whose `part` is not of the usual type."""
    return {
        int(name.split(".")[1]): kind.name
        for name, kind in types.items()
        if name.endswith(f".{part}.weight") and kind != usual
    }


def test_the_types_of_a_real_gemma_file() -> None:
    tensors = json.loads(REAL.read_text())["tensors"]
    shapes = [(name, tuple(shape)) for name, shape, _ in tensors]
    facts = ModelFacts("gemma3", layers=18, heads=4, kv_heads=1)
    found = tensor_types("q4_k_m", shapes, facts)
    assert {name: kind.name for name, kind in found.items()} == {name: kind for name, _, kind in tensors}
    assert len(found) == 236


def test_q4_k_m_of_a_llama_with_16_layers() -> None:
    types = tensor_types("q4_k_m", llama(16), ModelFacts("llama", 16, 32, 8))
    # the first and last eighth of the layers, and every third between
    better = dict.fromkeys([0, 1, 4, 7, 10, 13, 14, 15], "Q6_K")
    assert raised(types, "attn_v", Type.Q4_K) == better
    assert raised(types, "ffn_down", Type.Q4_K) == better
    assert types["token_embd.weight"] == Type.Q6_K
    assert types["output_norm.weight"] == Type.F32
    for part in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert raised(types, part, Type.Q4_K) == {}


def test_an_embedding_with_an_output_layer_of_its_own_is_like_any_matrix() -> None:
    types = tensor_types("q4_k_m", llama(16, tied=False), ModelFacts("llama", 16, 32, 8))
    assert (types["token_embd.weight"], types["output.weight"]) == (Type.Q4_K, Type.Q6_K)


@pytest.mark.parametrize(
    ("quant", "usual", "values", "downs"),
    [
        ("q8_0", Type.Q8_0, {}, {}),
        ("q6_k", Type.Q6_K, {}, {}),
        ("q5_k_m", Type.Q5_K, dict.fromkeys([0, 1, 4, 7, 10, 13, 14, 15], "Q6_K"), None),
        ("q5_k_s", Type.Q5_K, {}, {}),
        ("q4_k_s", Type.Q4_K, dict.fromkeys(range(4), "Q5_K"), dict.fromkeys(range(2), "Q5_K")),
        ("iq4_xs", Type.IQ4_XS, dict.fromkeys(range(16), "Q5_K"), dict.fromkeys(range(2), "Q5_K")),
        ("q5_1", Type.Q5_1, {}, {}),
        ("q5_0", Type.Q5_0, {}, {}),
        ("q4_1", Type.Q4_1, {}, {}),
        ("q4_0", Type.Q4_0, {}, {}),
    ],
)
def test_every_other_recipe(quant: str, usual: Type, values: dict[int, str], downs: dict[int, str] | None) -> None:
    types = tensor_types(quant, llama(16), ModelFacts("llama", 16, 32, 8))
    assert raised(types, "attn_v", usual) == values
    assert raised(types, "ffn_down", usual) == (values if downs is None else downs)
    assert types["blk.3.attn_q.weight"] == usual
    assert types["token_embd.weight"] == (Type.Q8_0 if quant == "q8_0" else Type.Q6_K)


def test_what_an_importance_matrix_changes() -> None:
    facts = ModelFacts("llama", 16, 32, 8)
    assert raised(tensor_types("iq4_xs", llama(16), facts, weighted=True), "ffn_down", Type.IQ4_XS) == {}
    for quant, usual, first in (("q4_0", Type.Q4_0, "Q4_1"), ("q5_0", Type.Q5_0, "Q5_1")):
        types = tensor_types(quant, llama(16), facts, weighted=True)
        assert raised(types, "ffn_down", usual) == {0: first, 1: first}


def test_rows_that_256_does_not_divide_fall_back() -> None:
    facts = ModelFacts("llama", 30, 9, 3)
    shapes = llama(30, hidden=576, wide=1536, kv=192)
    for quant, usual, value, embedding in (
        ("q4_k_m", Type.Q5_0, Type.Q8_0, Type.Q8_0),
        ("q5_k_m", Type.Q5_1, Type.Q8_0, Type.Q8_0),
        ("q6_k", Type.Q8_0, Type.Q8_0, Type.Q8_0),
        ("iq4_xs", Type.IQ4_NL, Type.IQ4_NL, Type.Q8_0),
    ):
        types = tensor_types(quant, shapes, facts)
        assert types["blk.4.attn_q.weight"] == usual
        assert types["blk.0.attn_v.weight"] == value
        assert types["token_embd.weight"] == embedding
        # 1536 is six times 256
        assert types["blk.4.ffn_down.weight"] == QUANTISATIONS[quant].default
    odd = tensor_types("q4_0", [("blk.0.attn_q.weight", (8, 40))], facts)
    assert odd["blk.0.attn_q.weight"] == Type.F16


def test_eight_experts_and_eighty_layers() -> None:
    shapes: Shapes = [
        ("blk.0.attn_q.weight", (4096, 4096)),
        ("blk.0.attn_k.weight", (1024, 4096)),
        ("blk.0.attn_v.weight", (1024, 4096)),
        ("blk.0.attn_output.weight", (4096, 4096)),
        ("blk.0.ffn_gate_inp.weight", (8, 4096)),
        ("blk.0.ffn_down_exps.weight", (8, 4096, 14336)),
    ]
    types = tensor_types("q4_k_m", shapes, ModelFacts("llama", 32, 32, 8, experts=8))
    found = [types[name].name for name, _ in shapes]
    assert found == ["Q4_K", "Q8_0", "Q8_0", "Q5_K", "F32", "Q6_K"]
    big = tensor_types("q4_k_m", llama(80), ModelFacts("llama", 80, 64, 8))
    assert big["blk.11.attn_v.weight"] == Type.Q5_K
    assert big["blk.10.attn_v.weight"] == Type.Q5_K
    assert big["blk.12.attn_v.weight"] == Type.Q6_K


def test_floats_are_uniform_and_vectors_stay_float32() -> None:
    for quant, kind in (("f32", Type.F32), ("f16", Type.F16), ("bf16", Type.BF16)):
        types = tensor_types(quant, llama(4), ModelFacts("llama", 4, 32, 8))
        assert {value for name, value in types.items() if "norm" not in name} == {kind}
        assert types["blk.0.attn_norm.weight"] == Type.F32
