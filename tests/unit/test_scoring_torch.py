"""The torch backend against PEFT and plain transformers forwards."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dlm_tui.errors import UsageError
from dlm_tui.model import Adapter, LowRank, MixedModel, save_peft_adapter
from dlm_tui.model.base import Base
from dlm_tui.scoring import (
    DifferentialBackend,
    Model,
    NullCalibratedBackend,
    PreflightCheckable,
    ScalableDifferentialBackend,
    ScoringBackend,
    TorchDifferentialBackend,
    kl_divergence,
)
from dlm_tui.scoring.errors import EmptyText, NonFiniteScores, ScoringError
from dlm_tui.scoring.nulls import null_adapter, null_seeds, null_shapes, squared_norm
from tests.tiny_models import random_adapter, target_names, tiny_base

PROMPTS = [
    "The harbour master counts",
    "How do I bake bread?",
    "Grüße",
    "Dear neighbour, the ladder you lent me stands",
]
COMPLETION = " the boats when the tide turns."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapters(base: Base) -> dict[str, Adapter]:
    return {
        "tone": random_adapter(base, "tone", rank=4, seed=1, size=0.15),
        "style": random_adapter(
            base, "style", rank=2, seed=2, size=0.2, targets=target_names(base, "q_proj", "down_proj")
        ),
    }


@pytest.fixture
def model(base: Base, adapters: dict[str, Adapter]) -> MixedModel:
    return MixedModel(base, adapters)


@pytest.fixture(scope="module")
def peft_model(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    from peft import PeftModel

    folder = tmp_path_factory.mktemp("peft") / "tone"
    save_peft_adapter(random_adapter(base, "tone", rank=4, seed=1, size=0.15), folder, "tiny")
    yield PeftModel.from_pretrained(copy.deepcopy(base.model), str(folder)).eval()


@torch.no_grad()
def plain_logprobs(network: object, ids: list[int]) -> torch.Tensor:
    return torch.log_softmax(network(torch.tensor([ids])).logits[0].double(), dim=-1)  # type: ignore[operator]


def test_it_follows_all_protocols(model: MixedModel) -> None:
    backend = TorchDifferentialBackend(model)
    for protocol in (
        DifferentialBackend,
        ScalableDifferentialBackend,
        NullCalibratedBackend,
        PreflightCheckable,
    ):
        assert isinstance(backend, protocol)
    with backend.as_base() as view:
        assert isinstance(view, Model) and isinstance(view, ScoringBackend)
        view.close()
    assert backend.mix == {"tone": 0.5, "style": 0.5}


@pytest.mark.parametrize("enabled", [False, True])
def test_equals_peft_with_the_adapter_enabled_and_disabled(base: Base, model: MixedModel, peft_model, enabled) -> None:
    backend = TorchDifferentialBackend(model, {"tone": 1.0})
    network = peft_model if enabled else base.model
    with backend.as_finetuned() if enabled else backend.as_base() as view:
        for prompt in PROMPTS:
            ids = base.encode_raw(prompt)
            expected = plain_logprobs(network, ids)
            dist = view.next_token_dist(prompt, top_k=40)
            assert np.abs(dist.logprobs - expected[-1][dist.token_ids].numpy()).max() < 1e-5
            others = expected[-1].exp().sum() - expected[-1][dist.token_ids].exp().sum()
            assert dist.tail_logprob == pytest.approx(float(others.log()), abs=1e-5)
            answer = base.tokenizer(COMPLETION, add_special_tokens=False)["input_ids"]
            whole = plain_logprobs(network, ids + answer)
            reference = sum(float(whole[len(ids) - 1 + place, token]) for place, token in enumerate(answer))
            assert view.logprob_of(prompt, COMPLETION) == pytest.approx(reference, abs=1e-4)
            rolling = view.rolling_logprob(prompt)
            each = [float(expected[place, token]) for place, token in enumerate(ids[1:])]
            assert np.abs(rolling.logprobs - np.array(each)).max() < 1e-5
            assert rolling.token_ids.tolist() == ids and rolling.num_tokens == len(ids)
            assert rolling.mean_logprob == pytest.approx(np.mean(each), abs=1e-5)


def test_disabled_peft_is_the_base_view(base: Base, model: MixedModel, peft_model) -> None:
    with TorchDifferentialBackend(model).as_base() as view, peft_model.disable_adapter():
        expected = plain_logprobs(peft_model, base.encode_raw(PROMPTS[0]))[-1]
        dist = view.next_token_dist(PROMPTS[0], top_k=expected.numel())
        assert dist.tail_logprob is None
        assert np.abs(dist.logprobs - expected[dist.token_ids].numpy()).max() < 1e-5


@pytest.mark.parametrize("lam", [-2.0, -0.5, 0.5, 1.5])
def test_scaled_views_equal_merged_weights(base: Base, model: MixedModel, adapters, lam: float) -> None:
    merged = copy.deepcopy(base.model)
    for c, adapter in zip((1.0, -0.5), adapters.values(), strict=True):
        for name, pair in adapter.modules.items():
            weight = merged.get_submodule(name).weight
            weight.data = (
                weight.double() + lam * c * pair.scale * (pair.lora_B.double() @ pair.lora_A.double())
            ).float()
    with TorchDifferentialBackend(model, {"tone": 1.0, "style": -0.5}).as_scaled_adapter(lam) as view:
        dist = view.next_token_dist(PROMPTS[1], top_k=10_000)
    expected = plain_logprobs(merged, base.encode_raw(PROMPTS[1]))[-1]
    assert np.abs(dist.logprobs - expected[dist.token_ids].numpy()).max() < 2e-5


def test_scaling_by_zero_and_one(model: MixedModel) -> None:
    backend = TorchDifferentialBackend(model)
    with backend.as_scaled_adapter(0.0) as view:
        off = view.next_token_dist("x", top_k=9)
    with backend.as_scaled_adapter(1.0) as view:
        on = view.next_token_dist("x", top_k=9)
    misses = backend.cache_stats.misses
    with backend.as_base() as view:
        assert view.next_token_dist("x", top_k=9) is off
    with backend.as_finetuned() as view:
        assert view.next_token_dist("x", top_k=9) is on
    assert backend.cache_stats.misses == misses
    with pytest.raises(UsageError, match="scaled by inf"), backend.as_scaled_adapter(math.inf):
        pass


def test_batches_equal_single_prompts_and_use_the_cache(model: MixedModel) -> None:
    backend = TorchDifferentialBackend(model)
    fresh = TorchDifferentialBackend(model)
    with backend.as_finetuned() as view:
        kept = view.next_token_dist(PROMPTS[2])
        batch = view.next_token_dist_batch([*PROMPTS, PROMPTS[0]])
        assert batch[2] is kept and batch[4] is batch[0]
        assert backend.cache_stats.hits == 1 and backend.cache_stats.misses == 4
        assert view.next_token_dist_batch([]) == []
    with fresh.as_finetuned() as view:
        for prompt, found in zip(PROMPTS, batch, strict=False):
            single = view.next_token_dist(prompt)
            assert single.token_ids.tolist() == found.token_ids.tolist()
            assert np.abs(single.logprobs - found.logprobs).max() < 1e-5
            assert single.tail_logprob == pytest.approx(found.tail_logprob, abs=1e-5)


def test_chat_prompts_are_turns(base: Base, model: MixedModel) -> None:
    backend = TorchDifferentialBackend(model, chat=True, system="Be brief.")
    assert backend.prompt_ids("Hello") == base.chat("Hello", "Be brief.")
    with backend.as_base() as view:
        found = view.next_token_dist("Hello", top_k=5)
    expected = plain_logprobs(base.model, base.chat("Hello", "Be brief."))[-1]
    assert np.abs(found.logprobs - expected[found.token_ids].numpy()).max() < 1e-5


def test_one_token_texts_and_empty_ones(base: Base, model: MixedModel) -> None:
    with TorchDifferentialBackend(model).as_base() as view:
        one = view.rolling_logprob("a")
        assert one.num_tokens == len(base.encode_raw("a")) == 1
        assert len(one.logprobs) == 0 and one.total_logprob == 0.0 and one.perplexity == 1.0
        for call in (
            lambda: view.logprob_of("a", ""),
            lambda: view.rolling_logprob(""),
            lambda: view.next_token_dist(""),
        ):
            with pytest.raises(EmptyText, match="zero tokens"):
                call()
        with pytest.raises(UsageError, match="at most 256"):
            view.rolling_logprob("word " * 300)
        with pytest.raises(UsageError, match="says nothing"):
            view.next_token_dist("a", top_k=0)


def test_tail_has_its_three_states(base: Base, model: MixedModel) -> None:
    with TorchDifferentialBackend(model).as_base() as view:
        assert view.next_token_dist("a", top_k=base.vocab_size).tail_logprob is None
        assert view.next_token_dist("a", top_k=base.vocab_size - 1).tail_logprob < 0.0  # type: ignore[operator]
    from dlm_tui.scoring.backends.mixed_model import _token_dist

    certain = torch.tensor([0.0, -200.0, -300.0], dtype=torch.float64)
    assert _token_dist(certain, 1).tail_logprob == 0.0
    assert _token_dist(certain, 3).tail_logprob is None


def test_one_view_at_a_time(model: MixedModel) -> None:
    backend = TorchDifferentialBackend(model)
    with backend.as_finetuned() as view:
        for other in (backend.as_base, lambda: backend.as_null_adapter(1), lambda: backend.as_scaled_adapter(0.5)):
            with pytest.raises(RuntimeError, match="'ft' is still open"), other():
                pass
        view.next_token_dist("a")
    with pytest.raises(RuntimeError, match="after its block"):
        view.next_token_dist("a")
    with pytest.raises(ZeroDivisionError), backend.as_null_adapter(1):
        raise ZeroDivisionError
    with backend.as_base():
        pass


def test_swapping_an_adapter_drops_the_cache(base: Base, model: MixedModel) -> None:
    backend = TorchDifferentialBackend(model, {"tone": 1.0})
    with backend.as_finetuned() as view:
        before = view.next_token_dist("a")
        model.swap("tone", random_adapter(base, "tone", rank=4, seed=9, size=0.15))
        with pytest.raises(RuntimeError, match="exchanged while view 'ft' was open"):
            view.next_token_dist("a")
    with backend.as_finetuned() as view:
        after = view.next_token_dist("a")
    assert kl_divergence(after, before) > 1e-4
    assert backend.cache_stats.entries == 1


def test_writing_to_a_base_weight_drops_the_cache(tmp_path: Path) -> None:
    own = tiny_base(tmp_path)
    model = MixedModel(own, {}, fast=False)
    backend = TorchDifferentialBackend(model)
    with backend.as_base() as view:
        before = view.next_token_dist("a")
        own.model.get_submodule("model.norm").weight.data.mul_(1.0)
        assert view.next_token_dist("a") is before
        with torch.no_grad():
            own.model.get_submodule("model.norm").weight.mul_(0.5)
        assert kl_divergence(view.next_token_dist("a"), before) > 1e-4


def test_null_adapters_are_seeded_extra_columns(base: Base, model: MixedModel, adapters) -> None:
    backend = TorchDifferentialBackend(model)
    with backend.as_base() as view:
        plain = view.next_token_dist(PROMPTS[0])
    effects = []
    for seed in (5, 6, 7):
        with backend.as_null_adapter(seed) as view:
            effects.append(kl_divergence(view.next_token_dist(PROMPTS[0]), plain))
            assert len(view.generate("Hello", max_new_tokens=3)) > 0
    assert len(set(effects)) == 3 and min(effects) > 0
    assert model.names == ("tone", "style") and model.adapters == adapters
    for scale, rank in ((0.0, 1.0), (0.02, -1.0), (math.nan, 1.0), (0.02, math.inf)):
        with pytest.raises(ValueError, match="must be positive and finite"), backend.as_null_adapter(1, scale, rank):
            pass
    with (
        pytest.raises(ScoringError, match="no adapter is trained"),
        TorchDifferentialBackend(MixedModel(base, {})).as_null_adapter(1),
    ):
        pass


def test_null_entries_have_the_given_deviation(adapters: dict[str, Adapter]) -> None:
    shapes = null_shapes(adapters)
    null = null_adapter(shapes, seed=3, init_scale=0.05, rank_scale=4.0)
    assert set(null.modules) == {module for adapter in adapters.values() for module in adapter.modules}
    values = torch.cat([t.flatten() for pair in null.modules.values() for t in (pair.lora_B, pair.lora_A)])
    assert values.std() == pytest.approx(0.1, rel=0.03) and abs(values.mean()) < 0.003
    again = null_adapter(shapes, seed=3, init_scale=0.05, rank_scale=4.0)
    assert all(torch.equal(again.modules[m].lora_B, null.modules[m].lora_B) for m in null.modules)


def test_matched_nulls_are_as_large_as_the_trained_adapters(adapters: dict[str, Adapter]) -> None:
    shapes = null_shapes(adapters)
    for module, shape in shapes.items():
        trained = [a.modules[module] for a in adapters.values() if module in a.modules]
        dense = sum(float((p.scale * p.lora_B.double() @ p.lora_A.double()).square().sum()) for p in trained) / 2
        drawn = [squared_norm(null_adapter({module: shape}, seed).modules[module]) for seed in range(200)]
        assert np.mean(drawn) == pytest.approx(dense, rel=0.15)
        assert shape.rank == max(pair.rank for pair in trained)
    total = sum(float(squared_norm(p)) for a in adapters.values() for p in a.modules.values()) / 2
    expected = sum(s.scale**2 * s.rank * s.d_in * s.d_out * s.matched**4 for s in shapes.values())
    assert expected == pytest.approx(total, rel=1e-6)
    assert len(set(null_seeds(0, 100))) == 100 and null_seeds(0, 3) == null_seeds(0, 5)[:3]


def test_generation_follows_the_view(base: Base, model: MixedModel) -> None:
    backend = TorchDifferentialBackend(model, {"tone": 1.0})
    with backend.as_base() as view:
        plain = view.generate(PROMPTS[0], max_new_tokens=8)
    ids = base.encode_raw(PROMPTS[0])
    for _ in range(8):
        token = int(plain_logprobs(base.model, ids)[-1].argmax())
        if token in base.stop_ids:
            break
        ids.append(token)
    assert plain == base.tokenizer.decode(ids[len(base.encode_raw(PROMPTS[0])) :], skip_special_tokens=True)
    with backend.as_finetuned() as view:
        assert view.generate(PROMPTS[0], max_new_tokens=8) != plain
        one = view.generate(PROMPTS[0], max_new_tokens=8, temperature=1.0, seed=1)
        assert one == view.generate(PROMPTS[0], max_new_tokens=8, temperature=1.0, seed=1)


def test_preflight_names_the_view_whose_logits_are_not_finite(base: Base, model: MixedModel) -> None:
    assert TorchDifferentialBackend(model).preflight_finite_check() == (True, "")
    name = target_names(base, "down_proj")[0]  # attention kernels may swallow NaN
    huge = Adapter("huge", {name: LowRank(torch.full((1, 64), math.inf), torch.ones(32, 1), 1.0)})
    broken = MixedModel(base, {"huge": huge}, fast=False)
    backend = TorchDifferentialBackend(broken, {"huge": 0.5})
    good, reason = backend.preflight_finite_check()
    assert not good and "'huge'" in reason and "not finite" in reason
    with backend.as_finetuned() as view, pytest.raises(NonFiniteScores, match="'ft'"):
        view.next_token_dist("a")
    with backend.as_base() as view:
        view.next_token_dist("a")


def test_unknown_adapters_are_refused_at_once(model: MixedModel) -> None:
    with pytest.raises(UsageError, match="nobody"):
        TorchDifferentialBackend(model, {"nobody": 1.0})
