"""Answers that begin behind what was run before: the same text, fewer tokens, never another mix's states."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm_tui.gate.router import PromptRouter
from dlm_tui.model.backbone import Backbone, KVCache
from dlm_tui.model.base import Base
from dlm_tui.model.generation import Generated, generate
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.prefix_reuse import CachedPrefix, common_prefix
from dlm_tui.model.sampling import Sampling
from dlm_tui.progress import run_to_end
from tests.tiny_models import random_adapter, target_names, tiny_base

Row = Mapping[str, float]
GATED: Row = {"x": 0.3, "y": 0.7}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    return {name: tiny_base(tmp_path_factory.mktemp(name), name, seed=4) for name in ("llama", "mistral")}


@pytest.fixture(params=["fused", "reference", "sliding window"])
def fresh(bases: dict[str, Base], request: pytest.FixtureRequest) -> Callable[[], MixedModel]:
    """Makes models that have answered nothing yet."""
    base = bases["mistral" if request.param == "sliding window" else "llama"]
    adapters = {
        "x": random_adapter(base, "x"),
        "y": random_adapter(base, "y", rank=2, seed=1, targets=target_names(base)[1::2]),
    }
    return lambda: MixedModel(base, adapters, fast=request.param == "fused")


class Counter:
    """Counts the tokens that a backbone runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *backbones: Backbone) -> None:
        self.tokens = 0
        for backbone in backbones:
            monkeypatch.setattr(backbone, "forward", self._counting(backbone.forward))

    def _counting(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(ids: Tensor, *rest: Any, **named: Any) -> Tensor:
            self.tokens += ids.numel()
            return forward(ids, *rest, **named)

        return counted

    def taken(self) -> int:
        """How many since the last time."""
        tokens, self.tokens = self.tokens, 0
        return tokens


def ask(model: MixedModel, prompt: Any, rows: Sequence[Row], tokens: int = 8, **more: Any) -> list[list[int]]:
    """The token ids of greedy answers."""
    answers: list[Generated] = run_to_end(
        generate(model, prompt, rows, Sampling(max_tokens=tokens), stop_ids=(), **more)
    )
    return [answer.token_ids for answer in answers]


def edits(count: int, seed: int, size: int = 300) -> Iterator[list[int]]:
    """Token ids as somebody types, deletes and changes them."""
    chance = random.Random(seed)
    ids = [chance.randrange(3, size) for _ in range(40)]
    for _ in range(count):
        place, more = chance.randrange(1, len(ids)), [chance.randrange(3, size) for _ in range(chance.randint(1, 9))]
        match chance.randrange(4):
            case 0:
                ids = [*ids, *more]
            case 1:
                ids = ids[: max(5, len(ids) - len(more))]
            case 2:
                ids = [*ids[:place], *more, *ids[place:]]
            case 3:
                ids = [*ids[:place], *more, *ids[place + len(more) :]]
        ids = ids[:150]
        yield ids


def test_any_edits_and_mixes_give_the_text_of_a_fresh_model(fresh: Callable[[], MixedModel]) -> None:
    chance = random.Random(5)
    model = fresh()
    for ids in edits(24, seed=2):
        gated = {"x": round(chance.random(), 2), "y": 0.5}
        rows = chance.sample([{}, {"x": 1.0}, {"y": 1.0}, gated, GATED], chance.randint(1, 5))
        heat = chance.random() < 0.3
        assert ask(model, ids, rows, heat=heat) == ask(fresh(), ids, rows, heat=heat)


def test_different_prompts_each_begin_where_they_can(fresh: Callable[[], MixedModel]) -> None:
    model = fresh()
    scripts = list(zip(edits(8, seed=7), edits(8, seed=8), edits(8, seed=9), strict=True))
    for prompts in scripts:
        rows: list[Row] = [{}, {"x": 1.0}, GATED]
        assert ask(model, prompts, rows) == ask(fresh(), prompts, rows)


def test_only_what_follows_the_common_tokens_is_run(
    fresh: Callable[[], MixedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh()
    counter = Counter(monkeypatch, model.generation)
    prompt = [5 + n for n in range(100)]
    rows: list[Row] = [{}, {"x": 1.0}, {"y": 1.0}, GATED]
    ask(model, prompt, rows, tokens=1)
    assert counter.taken() == 4 * 100
    ask(model, prompt, rows, tokens=1)
    assert counter.taken() == 0, "the same again"
    ask(model, [*prompt, 7, 8], rows, tokens=1)
    assert counter.taken() == 4 * 2, "an append"
    ask(model, [*prompt[:60], 9, *prompt[60:]], rows, tokens=1)
    assert counter.taken() == 4 * 41, "an insertion"
    ask(model, prompt[:30], rows, tokens=1)
    assert counter.taken() == 4 * 1, "a deletion runs the last token again"


def test_a_row_whose_mix_moved_is_run_alone(fresh: Callable[[], MixedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    counter = Counter(monkeypatch, model.generation)
    prompt = [5 + n for n in range(80)]
    ask(model, prompt, [{}, {"x": 1.0}, GATED], tokens=1)
    counter.taken()
    moved = {"x": 0.3000001, "y": 0.7}
    ask(model, prompt, [{}, {"x": 1.0}, moved], tokens=1)
    assert counter.taken() == 80
    ask(model, [*prompt, 7], [{}, {"x": 1.0}, GATED], tokens=1)
    assert counter.taken() == 81 + 2
    ask(model, [*prompt, 7], [{"x": 1.0}], tokens=1)
    assert counter.taken() == 0


def test_an_exchanged_adapter_is_run_again_and_the_others_are_not(
    fresh: Callable[[], MixedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh()
    prompt = [5 + n for n in range(80)]
    rows: list[Row] = [{}, {"x": 1.0}, {"y": 1.0}]
    before = ask(model, prompt, rows)
    model.swap("x", random_adapter(model.base, "x", seed=9))
    counter = Counter(monkeypatch, model.generation)
    assert ask(model, prompt, rows, tokens=1)[0] == before[0][:1]
    assert counter.taken() == 80
    other = fresh()
    other.swap("x", model.adapters["x"])
    assert ask(model, prompt, rows) == ask(other, prompt, rows)


def test_a_wider_backbone_takes_up_what_it_shares(
    fresh: Callable[[], MixedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh()
    prompt = [5 + n for n in range(80)]
    ask(model, prompt, [{}, {"x": 1.0}], tokens=1)
    extra = random_adapter(model.base, "null", seed=5)
    rows = [torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])]
    with model.with_extra([extra]) as wider:
        counter = Counter(monkeypatch, wider)
        first = ask(model, prompt, rows, tokens=1, backbone=wider)  # type: ignore[arg-type]
        assert counter.taken() == 80
        clean = fresh()
        with clean.with_extra([extra]) as other:
            assert ask(clean, prompt, rows, tokens=1, backbone=other) == first  # type: ignore[arg-type]


def test_the_routers_states_serve_the_base_and_nothing_else(
    fresh: Callable[[], MixedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh()
    router = PromptRouter(model.backbone, model.base, None)
    text = "The harbour master counts the boats when the tide turns."
    run_to_end(router.embed(text))
    ids, cache = router.known or ((), None)
    assert ids and ids == tuple(model.base.encode_raw(text)) and cache.lengths == [len(ids)]

    def known() -> CachedPrefix | None:
        return CachedPrefix(*router.known, model.backbone) if router.known else None

    expected = ask(fresh(), ids, [{}, GATED])
    counter = Counter(monkeypatch, model.generation)
    ask(model, ids, [{"x": 1.0}], tokens=1, known=known)
    assert counter.taken() == len(ids), "a mix is run from the beginning"
    ask(model, ids, [{}], tokens=1, known=known)
    assert counter.taken() == 1, "the base needs only its last token"
    model.prefilled = None
    assert ask(model, ids, [{}, GATED], known=known) == expected
    model.prefilled = None
    counter.taken()
    ask(model, [*ids, 9, 9], [{}, GATED], tokens=1, known=known)
    assert counter.taken() == 2 + len(ids) + 2
    run_to_end(router.embed(text[:20]))
    assert ask(model, ids, [{}], known=known) == expected[:1], "the router's memory moved on"


def test_half_precision_does_not_take_up_the_routers_float32(bases: dict[str, Base]) -> None:
    model = MixedModel(bases["llama"], {}, generation_dtype="bfloat16")
    router = PromptRouter(model.backbone, model.base, None)
    run_to_end(router.embed("The harbour master counts the boats."))
    assert router.known is not None
    known = CachedPrefix(*router.known, model.backbone)
    answer = ask(model, known.ids, [{}], known=lambda: known)
    assert answer == ask(MixedModel(bases["llama"], {}, generation_dtype="bfloat16"), known.ids, [{}])


@pytest.mark.parametrize("tier", ["backbone", "reference"])
def test_joined_caches_go_on_as_each_alone(bases: dict[str, Base], tier: str) -> None:
    model = MixedModel(bases["llama"], {})
    backbone: Backbone = getattr(model, tier)
    ids = torch.arange(5, 65).reshape(3, 20)
    alone: list[KVCache] = []
    for row, length in enumerate((20, 7, 13)):
        cache = backbone.new_cache(1, 32)
        backbone.forward(ids[row : row + 1, :length], cache)
        alone.append(cache)
    joined = alone[0].joined(alone[1:])
    assert joined.lengths == [20, 7, 13] and joined.batch == 3
    assert joined.nbytes >= sum(cache.nbytes for cache in alone) > 0
    step = torch.tensor([[4], [6], [8]])
    expected = torch.cat([backbone.forward(step[row : row + 1], cache) for row, cache in enumerate(alone)])
    torch.testing.assert_close(backbone.forward(step, joined), expected, atol=1e-5, rtol=1e-5)
    assert [cache.lengths for cache in alone] == [[21], [8], [14]], "the parts are copied, not shared"


def test_common_prefix() -> None:
    assert common_prefix([], [1]) == 0 and common_prefix([1, 2], [1, 2, 3]) == 2
    assert common_prefix((1, 2, 4), (1, 2, 3)) == 2 and common_prefix([9], [1]) == 0


@pytest.mark.parametrize("heat", [False, True])
def test_a_conversation_goes_on_behind_what_was_said(
    fresh: Callable[[], MixedModel], monkeypatch: pytest.MonkeyPatch, heat: bool
) -> None:
    model = fresh()
    counter = Counter(monkeypatch, model.generation)
    ids = [5 + n for n in range(60)]
    for question in ([7, 8, 9], [11, 12], [13]):
        (said,) = ask(model, ids, [GATED], tokens=6, heat=heat)
        ids = [*ids, *said, *question]
        counter.taken()
        again: list[Generated] = run_to_end(
            generate(model, ids, [GATED], Sampling(max_tokens=6), stop_ids=(), heat=heat)
        )
        # the last token of an answer that was cut is followed by nothing, so it was never run
        rows, run = (2 if heat else 1), 1 + len(question)
        assert again[0].run_tokens == run and again[0].prompt_tokens == len(ids)
        assert counter.taken() == rows * (run + 5)
        assert [again[0].token_ids] == ask(fresh(), ids, [GATED], tokens=6, heat=heat), "as a fresh model answers"
    moved: list[Generated] = run_to_end(
        generate(model, ids, [{"x": 0.30001, "y": 0.7}], Sampling(max_tokens=2), stop_ids=())
    )
    assert moved[0].run_tokens == len(ids), "another mix runs all of it"
