"""Quantised blocks, bit for bit against the quantiser inside a real llama.cpp."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from dlm_tui.export.quantisation.blocks import quantise, row_bytes
from tests.llama_quantiser import LlamaQuantiser

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp (extra [llama]) is not installed"
)
KINDS = (
    Type.F16, Type.BF16, Type.Q8_0, Type.Q6_K, Type.Q5_K, Type.Q4_K, Type.IQ4_XS, Type.IQ4_NL, Type.Q5_1, Type.Q5_0,
    Type.Q4_1, Type.Q4_0,
)  # fmt: skip


@pytest.fixture(scope="module")
def quantiser() -> LlamaQuantiser:
    return LlamaQuantiser()


def rows() -> dict[str, np.ndarray]:
    """Ordinary weights, and rows that divide by their own scale badly."""
    random = np.random.default_rng(7)
    plain = (random.standard_normal((40, 768)) * 0.04).astype(np.float32)
    odd = plain.copy()
    odd[0] = 0.0
    odd[1] = 0.25
    odd[2] = -(odd[2] ** 2)
    odd[3, 5] = 300.0
    odd[4] *= 1e-20
    odd[5] = np.round(odd[5], 2)
    odd[:, 256:512] = 0.0
    return {"plain": plain, "odd": odd}


def importances() -> dict[str, np.ndarray | None]:
    random = np.random.default_rng(8)
    spread = (random.random(768) ** 6 * 50).astype(np.float32)
    spread[::31] = 0.0
    return {"none": None, "spread": spread, "ones": np.ones(768, dtype=np.float32)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", importances())
@pytest.mark.parametrize("data", rows())
def test_the_bytes_are_those_of_llama_cpp(quantiser: LlamaQuantiser, kind: Type, weights: str, data: str) -> None:
    source, importance = rows()[data], importances()[weights]
    theirs = np.zeros((len(source), row_bytes(kind, 768)), dtype=np.uint8)
    assert quantiser.quantise(source, kind, theirs, importance) == theirs.nbytes
    assert np.array_equal(quantise(source, kind, importance), theirs)
