"""The one-token step of fixed shape: equal to the ordinary one, whosever cache it works on; recorded on a GPU."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlm_tui.model.base_loading import load_base
from dlm_tui.model.fused.cuda_graph import DecodeGraph, DecodeGraphs
from dlm_tui.model.fused.forward import FusedBackbone
from dlm_tui.model.fused.kv_cache import FusedKVCache
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.registry import resolve_base
from dlm_tui.progress import run_to_end
from tests.tiny_models import random_adapter, target_names, tiny_base, write_tiny_base

IDS = torch.randint(3, 300, (3, 30), generator=torch.Generator().manual_seed(3))


def model_of(folder: Path, architecture: str = "llama") -> MixedModel:
    base = tiny_base(folder, architecture)
    targets = target_names(base, "q_proj", "o_proj", "gate_proj", "down_proj")
    return MixedModel(base, {"x": random_adapter(base, "x"), "y": random_adapter(base, "y", 2, 1, targets)})


def lean_of(model: MixedModel) -> FusedBackbone:
    assert isinstance(model.backbone, FusedBackbone)
    return model.backbone


def fixed_of(model: MixedModel) -> FusedBackbone:
    """A second backbone on the same weights whose one-token steps are of fixed shape, unrecorded."""
    ordinary = lean_of(model)
    fixed = FusedBackbone(model.base, ordinary.weights, ordinary.mixer)
    fixed.graphs = DecodeGraphs(fixed, record=False)
    return fixed


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "llama-scaled", "qwen2", "qwen3"])
def test_fixed_steps_equal_ordinary_ones(tmp_path: Path, architecture: str) -> None:
    model = model_of(tmp_path / "m", architecture)
    ordinary, fixed = lean_of(model), fixed_of(model)
    mixes = torch.stack([model.coefficients(mix) for mix in ({"x": 0.4}, {}, {"x": 1.0, "y": -0.5})])
    for mix in (None, mixes, torch.zeros_like(mixes), mixes * 0.5):
        caches = [backbone.new_cache(3, 20) for backbone in (ordinary, fixed)]
        for backbone, cache in zip((ordinary, fixed), caches, strict=True):
            backbone.forward(IDS[:, :9], cache, mix, lengths=[9, 4, 7])
        for place in range(9, 20):
            lengths = [1, 0, 1] if place == 12 else None
            wanted, found = (
                backbone.forward(IDS[:, place : place + 1], cache, mix, lengths=lengths)
                for backbone, cache in zip((ordinary, fixed), caches, strict=True)
            )
            near(found, wanted)
        assert caches[0].lengths == caches[1].lengths == [20, 14, 18]
    assert fixed.graphs is not None and len(fixed.graphs) == 2  # with adapters and without


def test_caches_take_turns_in_the_memory_of_a_step(tmp_path: Path) -> None:
    model = model_of(tmp_path / "m")
    ordinary, fixed = lean_of(model), fixed_of(model)
    wanted = ordinary.forward(IDS[:2])
    caches: list[FusedKVCache] = [fixed.new_cache(1, 40) for _ in range(2)]
    for row, cache in enumerate(caches):
        fixed.forward(IDS[row : row + 1, :5], cache)
    for place in range(5, 12):
        for row, cache in enumerate(caches):
            found = fixed.forward(IDS[row : row + 1, place : place + 1], cache)
            near(found[0, 0], wanted[row, place])
    assert caches[1].kv is not caches[0].kv
    assert fixed.graphs is not None and len(fixed.graphs) == 1
    # what a step left is an ordinary cache: it is read on in pieces, repeated and cropped
    caches[1].crop(8)
    near(fixed.forward(IDS[1:2, 8:15], caches[1])[0], wanted[1, 8:15])
    copies = caches[1].repeat(2)
    near(fixed.forward(IDS[1:2, 15:16].repeat(2, 1), copies)[1, 0], wanted[1, 15])
    near(fixed.forward(IDS[1:2, 15:16], caches[1])[0, 0], wanted[1, 15])


def test_a_cache_that_grows_goes_to_a_longer_step(tmp_path: Path) -> None:
    model = model_of(tmp_path / "m")
    ordinary, fixed = lean_of(model), fixed_of(model)
    ids = torch.randint(3, 300, (1, 262), generator=torch.Generator().manual_seed(5))
    cache = fixed.new_cache(1, 8)
    fixed.forward(ids[:, :250], cache)
    found = torch.cat([fixed.forward(ids[:, place : place + 1], cache) for place in range(250, 262)], dim=1)
    near(found, ordinary.forward(ids)[:, 250:])
    assert fixed.graphs is not None and len(fixed.graphs) == 2


def test_only_the_last_shapes_are_kept_and_results_stay(tmp_path: Path) -> None:
    model = model_of(tmp_path / "m")
    fixed = fixed_of(model)
    assert fixed.graphs is not None
    first = fixed.forward(IDS[:1, :1], fixed.new_cache(1, 8))
    kept = first.clone()
    for batch in range(1, 10):
        fixed.forward(IDS[:1, 1:2].repeat(batch, 1), fixed.new_cache(batch, 8))
    assert len(fixed.graphs) < 9
    assert torch.equal(first, kept)
    gc.collect()
    near(fixed.forward(IDS[:1, :1], fixed.new_cache(1, 8)), first)


def test_a_step_keeps_the_rotary_table_it_was_made_with(tmp_path: Path) -> None:
    base = run_to_end(load_base(resolve_base("hf:t/m", write_tiny_base(tmp_path / "m", max_position_embeddings=8192))))
    model = MixedModel(base, {})
    fixed = fixed_of(model)
    cache = fixed.new_cache(1, 40)
    fixed.forward(IDS[:1, :9], cache)
    graph = DecodeGraph(fixed, 1, 256, None, record=False)
    before = graph.step(IDS[:1, 9:10], cache, None)
    first = weakref.ref(fixed.weights.rope(1)[0])
    longer = fixed.weights.rope(3000)[0]
    gc.collect()
    kept = first()
    assert kept is not None and kept is not longer
    assert torch.equal(longer[:, : kept.shape[1]], kept)
    near(graph.step(IDS[:1, 9:10], cache, None), before)


def test_a_driver_that_cannot_record_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: DecodeGraph) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(DecodeGraph, "_recorded", refuse)
    model = model_of(tmp_path / "m")
    fixed = fixed_of(model)
    fixed.graphs = DecodeGraphs(fixed, record=True)
    wanted = lean_of(model).forward(IDS[:2, :1])
    near(fixed.forward(IDS[:2, :1], fixed.new_cache(2, 8)), wanted)
    assert "not permitted" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="recording a step needs a CUDA device, and there is none")
def test_a_recorded_step_equals_the_ordinary_one(tmp_path: Path) -> None:
    base = run_to_end(load_base(resolve_base("hf:t/m", write_tiny_base(tmp_path / "m")), device="cuda"))
    model = MixedModel(base, {"x": random_adapter(base, "x")})
    recorded = lean_of(model)
    ordinary = FusedBackbone(base, recorded.weights, recorded.mixer)
    ordinary.graphs = None
    for coefficients in (None, torch.tensor([[0.4], [0.0], [-1.0]], device="cuda")):
        caches = [backbone.new_cache(3, 40) for backbone in (ordinary, recorded)]
        for backbone, cache in zip((ordinary, recorded), caches, strict=True):
            backbone.forward(IDS[:, :9], cache, coefficients, lengths=[9, 4, 7])
        for place in range(9, 25):
            wanted, found = (
                backbone.forward(IDS[:, place : place + 1], cache, coefficients)
                for backbone, cache in zip((ordinary, recorded), caches, strict=True)
            )
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
