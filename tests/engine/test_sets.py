"""A set of prompts through the real engine child: answers as they come, and stopped between two steps."""

from __future__ import annotations

import pytest

from dlm_tui.engine.client import EngineClient
from dlm_tui.engine.protocol import FormerAnswer, Generate, Progress, RunSet, SetAnswered, SetDone, Stopped, ViewDone
from dlm_tui.model.views import BASE, GATED

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
PROMPTS = ["Say hello to a new teammate.", "Wish my sister a happy birthday.", "Where is the key?"]


async def test_a_set_is_answered_as_its_prompts_alone_and_scored_again(engine: EngineClient) -> None:
    request = RunSet(prompts=PROMPTS, views=[GATED, BASE], max_tokens=10)
    events = [event async for event in engine.stream(request)]
    found = [event for event in events if isinstance(event, SetAnswered)]
    assert [(item.prompt, item.view) for item in found] == [(n, v) for n in range(3) for v in ("gated", "base")]
    done = events[-1]
    assert isinstance(done, SetDone) and done.versions and done.base
    assert any(isinstance(event, Progress) and event.total == 6 for event in events)
    alone = [event async for event in engine.stream(Generate(prompt=PROMPTS[1], views=[GATED, BASE], max_tokens=10))]
    texts = {event.view: event.text for event in alone if isinstance(event, ViewDone)}
    assert texts == {item.view: item.text for item in found if item.prompt == 1}
    former = [FormerAnswer(prompt=item.prompt, view=item.view, token_ids=item.token_ids) for item in found]
    again = [
        event async for event in engine.stream(RunSet(prompts=PROMPTS, views=[GATED], max_tokens=10, former=former))
    ]
    for item in (event for event in again if isinstance(event, SetAnswered)):
        assert item.former_logprob == pytest.approx(item.logprob, abs=1e-4)


async def test_a_set_is_stopped(engine: EngineClient) -> None:
    request = RunSet(prompts=PROMPTS * 20, views=[GATED, BASE], max_tokens=64)
    answers = 0
    async for event in engine.stream(request):
        answers += isinstance(event, SetAnswered)
        if isinstance(event, Progress) and not answers:
            await engine.cancel(request)
        last = event
    assert isinstance(last, Stopped) and answers < 120
