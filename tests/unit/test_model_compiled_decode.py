"""The compiled step: equal to float64 products, to itself on any number of threads, and to the fused forward."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

from dlm_tui.model import backend_selection
from dlm_tui.model.fused import compiled_decode, decode_kernel
from dlm_tui.model.fused.forward import FusedBackbone
from dlm_tui.model.fused.weights import FusedWeights
from dlm_tui.model.mixed import MixedModel
from tests.tiny_models import random_adapter, target_names, tiny_base

FUSED = (
    "llama",
    "llama-scaled",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "phi3",
    "phi3-partial",
    "granite",
    "mixtral",
    "qwen3_moe",
)
IDS = torch.randint(3, 300, (4, 20), generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> int:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    request.addfinalizer(lambda: torch.set_num_threads(before))
    return int(request.param)


def mixed(folder: Path, architecture: str) -> MixedModel:
    base = tiny_base(folder, architecture)
    return MixedModel(
        base,
        {
            "x": random_adapter(base, "x"),
            "y": random_adapter(base, "y", rank=3, seed=1, targets=target_names(base)[1::2]),
        },
    )


def steps(backbone: FusedBackbone, mix: Tensor | None) -> Tensor:
    """Hidden states [4, 8, H] behind a prompt of unequal rows: one token a row, then two, four and one."""
    cache = backbone.new_cache(4, 24)
    backbone.forward(IDS[:, :12], cache, mix, lengths=[12, 9, 1, 12])
    pieces = [backbone.forward(IDS[:, a:b], cache, mix) for a, b in ((12, 13), (13, 15), (15, 19), (19, 20))]
    return torch.cat(pieces, dim=1)


def test_it_compiles_here() -> None:
    assert compiled_decode.compiles()


@pytest.mark.parametrize("rows", [*range(1, 10), 13, 16])
@pytest.mark.parametrize(("height", "width"), [(40, 48), (7, 5), (3, 64), (129, 33), (1, 1)])
def test_products_equal_float64(rows: int, height: int, width: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, width, generator=generator), torch.randn(height, width, generator=generator)
    wanted = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(compiled_decode.project(x, weight.numpy()), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width"), [(40, 48), (7, 5), (30, 585)])
def test_a_tokens_bits_do_not_depend_on_the_others(dtype: torch.dtype, height: int, width: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(16, width, generator=generator), torch.randn(height, width, generator=generator).to(dtype)
    numbers = compiled_decode._numbers(weight)
    alone = torch.cat([compiled_decode.project(row[None], numbers) for row in x])
    torch.testing.assert_close(alone, (x.double() @ weight.double().T).float(), atol=3e-5, rtol=1e-5)
    for count in range(2, 17):
        assert torch.equal(compiled_decode.project(x[:count], numbers), alone[:count])


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3_moe"])
def test_a_rows_bits_do_not_depend_on_the_others(tmp_path: Path, architecture: str) -> None:
    model = mixed(tmp_path / "m", architecture)
    mix = torch.tensor([[0.4, -1.0], [1.0, 0.0], [0.0, 0.0], [0.3, 2.0]])
    together = model.backbone.new_cache(4, 24)
    found = torch.cat([model.backbone.forward(IDS[:, t : t + 1], together, mix) for t in range(6)], dim=1)
    for row in range(4):
        cache, own = model.backbone.new_cache(1, 24), slice(row, row + 1)
        alone = [model.backbone.forward(IDS[own, t : t + 1], cache, mix[own]) for t in range(6)]
        assert torch.equal(torch.cat(alone, dim=1), found[own])


def test_its_exponential_equals_float64() -> None:
    exp = decode_kernel._exp

    @njit
    def every(x: Any, y: Any) -> None:
        for i in range(len(x)):
            y[i] = exp(x[i])

    x = np.concatenate([np.linspace(-87.3, 88.7, 100_001), np.linspace(-1e-3, 1e-3, 1001)]).astype(np.float32)
    ends = np.array([np.nan, np.inf, -np.inf, 0.0, 89.0, -104.0], np.float32)
    found, at_ends = np.empty_like(x), np.empty_like(ends)
    every(x, found)
    every(ends, at_ends)
    wanted = np.exp(x.astype(np.float64))
    assert np.abs((found - wanted) / np.spacing(wanted.astype(np.float32))).max() < 2
    np.testing.assert_array_equal(at_ends, [np.nan, np.inf, 0.0, 1.0, np.inf, 0.0])


_ELSEWHERE = """
import llvmlite.binding

llvmlite.binding.get_host_cpu_features = lambda: {features}
import torch

from dlm_tui.model.fused import compiled_decode, decode_kernel

print(decode_kernel.LANES, decode_kernel.AT_ONCE)
generator = torch.Generator().manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    x, weight = torch.randn(16, 585, generator=generator), torch.randn(30, 585, generator=generator).to(dtype)
    for count in range(1, 17):
        found = compiled_decode.project(x[:count], compiled_decode._numbers(weight))
        print(float((found - x[:count].double() @ weight.double().T).abs().max()))
"""


@pytest.mark.parametrize(
    ("features", "processor", "lanes"), [({"avx": True}, "haswell", "8 2"), ({}, "generic", "4 2")]
)
def test_processors_with_other_registers(features: dict[str, bool], processor: str, lanes: str, tmp_path: Path) -> None:
    compiled_for = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "+avx2,+fma" if features else ""}
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **compiled_for}
    code = _ELSEWHERE.format(features=features)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found, *errors = done.stdout.splitlines()
    assert found == lanes
    assert len(errors) == 32 and max(map(float, errors)) < 3e-5


@pytest.mark.parametrize("architecture", FUSED)
@pytest.mark.parametrize("coefficients", [None, [[0.4, -1.0], [1.0, 0.0], [0.0, 0.0], [0.3, 2.0]]])
def test_few_tokens_equal_the_fused_forward(
    tmp_path: Path, architecture: str, coefficients: list[list[float]] | None, threads: int
) -> None:
    model = mixed(tmp_path / "m", architecture)
    compiled = model.backbone
    assert isinstance(compiled, FusedBackbone) and compiled.weights.compiled
    plain = FusedBackbone(model.base, compiled.weights, model.mixer)
    mix = torch.tensor(coefficients) if coefficients else None
    found = steps(compiled, mix)
    torch.testing.assert_close(found, steps(plain, mix), atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(compiled.logits(found[:, -1]), plain.logits(found[:, -1]), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    "facts",
    [
        {"num_experts": 7, "num_experts_per_tok": 3, "norm_topk_prob": False},
        {"num_experts": 5, "num_experts_per_tok": 5, "moe_intermediate_size": 24},
        {"num_experts": 33, "num_experts_per_tok": 1},
    ],
)
def test_any_number_of_experts_equals_the_reference(tmp_path: Path, facts: dict[str, Any], threads: int) -> None:
    base = tiny_base(tmp_path / "m", "qwen3_moe", **facts)
    model = MixedModel(base, {"x": random_adapter(base, "x")})
    assert isinstance(model.backbone, FusedBackbone) and model.backbone.weights.compiled
    mix = torch.tensor([[0.4], [1.0], [0.0], [-0.3]])
    wanted = model.reference.forward(IDS[:, :8], None, mix)
    cache = model.backbone.new_cache(4, 8)
    pieces = [model.backbone.forward(IDS[:, a:b], cache, mix) for a, b in ((0, 1), (1, 3), (3, 4), (4, 6), (6, 8))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), wanted, atol=2e-5, rtol=2e-5)
    alone = model.backbone.new_cache(1, 8)
    single = [model.backbone.forward(IDS[:1, t : t + 1], alone, mix[:1]) for t in range(8)]
    torch.testing.assert_close(torch.cat(single, dim=1), wanted[:1], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_the_number_of_threads_does_not_change_a_bit(tmp_path: Path, architecture: str) -> None:
    model = mixed(tmp_path / "m", architecture)
    assert isinstance(model.backbone, FusedBackbone)
    mix = torch.tensor([[0.4, -1.0], [1.0, 0.0], [0.0, 0.0], [0.3, 2.0]])
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            cache = model.backbone.new_cache(4, 24)
            found.append(torch.cat([model.backbone.forward(IDS[:, t : t + 1], cache, mix) for t in range(6)], dim=1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "qwen3_moe"])
def test_a_row_of_zeros_is_the_base_bit_for_bit(tmp_path: Path, architecture: str, threads: int) -> None:
    model = mixed(tmp_path / "m", architecture)
    assert isinstance(model.backbone, FusedBackbone)
    mix = torch.tensor([[0.4, -1.0], [0.0, 0.0], [0.0, 0.0], [0.3, 2.0]])
    base, some = (model.backbone.new_cache(4, 24) for _ in range(2))
    for t in range(6):
        token = IDS[:, t : t + 1]
        assert torch.equal(
            model.backbone.forward(token, some, mix)[1:3], model.backbone.forward(token, base, None)[1:3]
        )


def test_two_callers_at_once_wait_for_each_other(threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 64, generator=generator), torch.randn(500, 64, generator=generator)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: compiled_decode.project(x, weight.numpy()), range(200)))
    assert all(torch.equal(one, found[0]) for one in found)


def test_an_interrupt_leaves_no_thread_waiting(threads: int) -> None:
    ended = []

    def interrupted(thread: int, threads: int, counter: decode_kernel.Integers) -> None:
        if thread == 0:
            raise KeyboardInterrupt
        decode_kernel._meet(counter, thread, threads, 0)
        ended.append(thread)

    with pytest.raises(KeyboardInterrupt):
        compiled_decode.together(interrupted)
    x = torch.ones(1, 4)
    # the same threads answer again, so none of them is still waiting
    assert compiled_decode.project(x, torch.ones(9, 4).numpy()).tolist() == [[4.0] * 9]
    assert sorted(ended) == list(range(1, threads))


def test_without_a_compiler_the_fused_forward_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_selection, "compiles", lambda: False)
    model = mixed(tmp_path / "m", "llama")
    assert isinstance(model.backbone, FusedBackbone) and not model.backbone.weights.compiled


def test_a_step_that_disagrees_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = compiled_decode.CompiledDecode.run
    monkeypatch.setattr(compiled_decode.CompiledDecode, "run", lambda *given: honest(*given) + 1e-3)
    model = mixed(tmp_path / "m", "llama")
    assert isinstance(model.base.fused, FusedWeights) and not model.base.fused.compiled


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot be bound to a core here")
def test_a_core_is_offered_only_to_a_thread_that_was_on_it() -> None:
    """Whoever yields to nobody gives its slice to other programs, at each of a hundred meetings per token."""
    allowed = os.sched_getaffinity(0)
    here = min(allowed)
    os.sched_setaffinity(0, {here})
    try:
        for others, shared in (([here + 1, here + 2], False), ([here + 1, here], True), ([here, here + 1], True)):
            counter = np.array([0, *others[:1], here, *others[1:]])
            assert decode_kernel._share_a_core(counter, 1, 3) is shared
    finally:
        os.sched_setaffinity(0, allowed)
