"""Everything that takes a while says how much of it is done."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from dlm_tui.engine.client import EngineClient
from dlm_tui.engine.protocol import (
    Drift,
    Drifted,
    Evaluate,
    Evaluated,
    Event,
    GateTrained,
    Generate,
    Generated,
    GetStatus,
    Message,
    Open,
    Opened,
    Progress,
    Route,
    Routed,
    Score,
    Scored,
    Status,
    TrainGate,
)
from dlm_tui.model.views import BASE, UNIFORM

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
LONG = "The harbour master counts the boats when the tide turns. " * 30
# the search for the best mix may end before its last step
_OPEN_ENDED = {"best"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opening(routed: Open) -> AsyncIterator[tuple[EngineClient, list[Event]]]:
    """An engine child and everything it said while a document was opened."""
    client = EngineClient(threads=1)
    await client.start()
    events = [event async for event in client.stream(routed)]
    yield client, events
    await client.close()


def stages(events: list[Event]) -> list[str]:
    """The stages in their order, each once in a row; every one counts up to its total without falling."""
    found: list[Progress] = []
    for event in events:
        if isinstance(event, Progress):
            assert event.total > 0, f"{event.stage} does not say of how many"
            if found and found[-1].stage == event.stage:
                assert event.done >= found[-1].done and event.total == found[-1].total, event
                found[-1] = event
            else:
                found.append(event)
    unfinished = [event for event in found if event.done != event.total and event.stage not in _OPEN_ENDED]
    assert unfinished == []
    return [event.stage for event in found]


async def test_opening_counts_every_stage(opening: tuple[EngineClient, list[Event]]) -> None:
    _, events = opening
    assert isinstance(events[-1], Opened)
    assert stages(events) == ["base", "adapters", "prepare", "warm-up"]
    assert all(event.text for event in events if isinstance(event, Progress))


@pytest.mark.parametrize(
    ("request_", "answer", "expected"),
    [
        (Route(prompt=LONG), Routed, ["prefill"]),
        (Generate(prompt=LONG, views=[BASE, UNIFORM], max_tokens=2), Generated, ["prefill"]),
        (Score(prompt=LONG, views=[BASE, UNIFORM], completion="Yes.", nulls=9), Scored, ["score"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Message) else "",
)
async def test_long_work_counts_to_its_total(
    opening: tuple[EngineClient, list[Event]], request_: Message, answer: type[Event], expected: list[str]
) -> None:
    engine, _ = opening
    events = [event async for event in engine.stream(request_)]
    assert isinstance(events[-1], answer), events[-1]
    assert stages(events) == expected


async def test_what_a_training_read_is_not_read_again(opening: tuple[EngineClient, list[Event]]) -> None:
    engine, _ = opening
    in_turn: list[tuple[Message, type[Event], list[str]]] = [
        (TrainGate(), GateTrained, ["embed", "surprise", "train"]),
        (Evaluate(folds=3), Evaluated, ["fold"]),
        (
            Drift(prompts=["Say hello."]),
            Drifted,
            ["embed", "live", "frozen", "search", "best", "best static", "answers"],
        ),
    ]
    for request, answer, expected in in_turn:
        events = [event async for event in engine.stream(request)]
        assert isinstance(events[-1], answer), events[-1]
        assert stages(events) == expected
    status = await engine.ask(GetStatus())
    assert isinstance(status, Status) and status.ood == ("distance", "surprise")
