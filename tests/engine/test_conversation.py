"""A conversation in a real engine: routed turn by turn, exact, and only what is new under a mix is run."""

from __future__ import annotations

import pytest

from dlm_tui.engine.client import EngineClient
from dlm_tui.engine.protocol import Failed, Generate, Generated, Open, Route, Routed, Turn, ViewDone
from dlm_tui.model.views import BASE, GATED, View, custom, solo
from tests.engine.conftest import running

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
QUESTIONS = ("What is the tide?", "Say good morning", "Write it as a list")


async def ask(
    engine: EngineClient, question: str, view: View, before: list[Turn], seed: int = 0
) -> tuple[ViewDone, Generated]:
    """One answer of twelve tokens."""
    request = Generate(
        prompt=question, views=[view], before=before, max_tokens=12, temperature=0.8, top_p=0.95, seed=seed
    )
    events = [event async for event in engine.stream(request)]
    failed = [event.text for event in events if isinstance(event, Failed)]
    assert not failed
    done, last = events[-2], events[-1]
    assert isinstance(done, ViewDone) and isinstance(last, Generated)
    return done, last


@pytest.mark.parametrize("views", [[GATED] * 3, [solo("tone")] * 3, [GATED, BASE, solo("style")]])
async def test_every_answer_is_that_of_a_fresh_engine(engine: EngineClient, routed: Open, views: list[View]) -> None:
    before: list[Turn] = []
    said: list[tuple[str, dict[str, float]]] = []
    for question, view in zip(QUESTIONS, views, strict=True):
        answered, generated = await ask(engine, question, view, before)
        if view.kind == "gated":
            alone = await engine.ask(Route(prompt=question))
            assert isinstance(alone, Routed) and generated.weights == alone.weights, "the newest message alone decides"
        said.append((answered.text, answered.mix))
        before.append(Turn(prompt=question, answer=answered.text))
    async with running(routed) as fresh:
        done, _ = await ask(fresh, QUESTIONS[2], views[2], before[:2])
        assert done.text == said[2][0] and done.mix == pytest.approx(said[2][1], abs=1e-6)
        assert done.run_tokens == done.prompt_tokens
        done, _ = await ask(fresh, QUESTIONS[1], views[1], before[:1])
        assert done.text == said[1][0] and done.mix == pytest.approx(said[1][1], abs=1e-6)


async def test_under_the_same_mix_only_what_is_new_is_run(engine: EngineClient) -> None:
    before: list[Turn] = []
    held = custom({"tone": 0.25, "knowledge": 0.5, "style": 0.25}, "held")
    first, _ = await ask(engine, QUESTIONS[0], held, before, seed=3)
    before.append(Turn(prompt=QUESTIONS[0], answer=first.text))
    second, timed = await ask(engine, QUESTIONS[1], held, before, seed=3)
    assert second.run_tokens < second.prompt_tokens - first.prompt_tokens, "the first question was not run again"
    assert timed.prefill_seconds > 0
    fork, _ = await ask(engine, QUESTIONS[2], held, before, seed=3)
    assert fork.run_tokens < fork.prompt_tokens - first.prompt_tokens, "nor for another question in the same place"
    moved, _ = await ask(engine, QUESTIONS[1], custom({"tone": 0.26, "knowledge": 0.5, "style": 0.25}), before, seed=3)
    assert moved.run_tokens == moved.prompt_tokens == second.prompt_tokens


async def test_turns_that_do_not_fit_are_left_out_and_counted(engine: EngineClient) -> None:
    long = [Turn(prompt=f"question {n}", answer="tide and harbour " * 40) for n in range(30)]
    done, generated = await ask(engine, QUESTIONS[0], GATED, long)
    assert 0 < generated.dropped < 30
    assert done.reason in ("stop", "length")
    fitting, again = await ask(engine, QUESTIONS[0], GATED, long[generated.dropped :])
    assert again.dropped == 0 and fitting.text == done.text and fitting.prompt_tokens == done.prompt_tokens
    more, _ = await ask(engine, QUESTIONS[0], GATED, long[generated.dropped - 1 :])
    assert more.prompt_tokens == done.prompt_tokens, "one more turn would not have fitted"
