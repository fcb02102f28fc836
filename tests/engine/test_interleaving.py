"""Keystrokes and cancels while the real model decodes, counted in forward passes instead of seconds."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any

import pytest
from torch import Tensor

from dlm_tui.engine.handlers import Handlers
from dlm_tui.engine.protocol import (
    Cancel,
    Event,
    Failed,
    Generate,
    Generated,
    Open,
    Progress,
    Request,
    Route,
    Routed,
    Score,
    Stopped,
    Token,
)
from dlm_tui.engine.scheduler import Scheduler
from dlm_tui.model.views import BASE, UNIFORM, solo
from dlm_tui.progress import run_to_end

pytestmark = [pytest.mark.slow]
LONG = "The harbour master counts the boats when the tide turns. " * 40
_ENDS = (Generated, Stopped, Failed)


@pytest.fixture(scope="module")
def handlers(routed: Open) -> Handlers:
    handlers = Handlers(threads=1)
    run_to_end(handlers(routed))
    return handlers


class Wire:
    """A channel in memory. Forward passes under a mix are counted, and `at` puts requests into the inbox after them."""

    def __init__(self, at: dict[int, list[Request]]) -> None:
        self.inbox: SimpleQueue[Request | None] = SimpleQueue()
        self.at, self.passes = at, 0
        self.sent: list[tuple[int, Event]] = []

    def send(self, event: Event) -> None:
        self.sent.append((self.passes, event))
        if event.id == 1 and isinstance(event, _ENDS):
            self.inbox.put(None)

    def counted(self, forward: Any) -> Any:
        def run(ids: Tensor, cache: Any = None, coefficients: Tensor | None = None, **more: Any) -> Tensor:
            hidden: Tensor = forward(ids, cache, coefficients, **more)
            if coefficients is not None:  # the router runs without
                self.passes += 1
                for request in self.at.pop(self.passes, []):
                    self.inbox.put(request)
            return hidden

        return run

    def when(self, kind: type[Event]) -> int:
        """After how many passes the first event of a kind was sent."""
        return next(passes for passes, event in self.sent if isinstance(event, kind))


def run(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch, request: Request, at: dict[int, list[Request]]
) -> tuple[Wire, Event]:
    """Serve one request; the wire and how the request ended."""
    wire = Wire(at)
    model = handlers.session.model
    model.prefilled = None
    monkeypatch.setattr(model.generation, "forward", wire.counted(model.generation.forward))
    request.id = 1
    wire.inbox.put(request)
    Scheduler(wire, handlers).run()  # type: ignore[arg-type]
    return wire, wire.sent[-1][1]


def test_a_keystroke_is_answered_within_one_decode_step(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = Generate(prompt="Tell me more.", views=[BASE, UNIFORM, solo("tone")], max_tokens=30)
    wire, last = run(handlers, monkeypatch, generate, {9: [Route(id=2, prompt="Say hello")]})
    assert isinstance(last, Generated)
    assert wire.when(Routed) == 9, "no further pass before the keystroke's answer"
    assert wire.passes > 9


def test_a_keystroke_is_answered_between_two_pieces_of_a_long_prompt(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = Generate(prompt=LONG, views=[UNIFORM, solo("tone")], max_tokens=2)
    wire, last = run(handlers, monkeypatch, generate, {2: [Route(id=2, prompt="Say hello")]})
    assert isinstance(last, Generated) and wire.when(Routed) == 2
    read = [event.done for _, event in wire.sent if isinstance(event, Progress) and event.id == 1]
    assert len(read) > 3 and read == sorted(read)


@pytest.mark.parametrize("after", [2, 9], ids=["while reading", "while decoding"])
def test_cancelling_takes_no_further_pass(handlers: Handlers, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    prompt = LONG if after == 2 else "Go on."
    generate = Generate(prompt=prompt, views=[BASE, UNIFORM], max_tokens=60)
    wire, last = run(handlers, monkeypatch, generate, {after: [Cancel(id=2, target=1)]})
    assert isinstance(last, Stopped) and last.reason == "cancelled"
    assert wire.passes == after
    assert any(isinstance(event, Token) for _, event in wire.sent) == (after == 9)


def test_a_keystroke_is_answered_between_two_pieces_of_scoring(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Score(prompt=LONG[:400], views=[BASE, UNIFORM], nulls=0)
    wire = Wire({1: [Route(id=2, prompt="Say hello")], 3: [Cancel(id=3, target=1)]})
    backbone = handlers.session.model.backbone
    monkeypatch.setattr(backbone, "forward", wire.counted(backbone.forward))
    score.id = 1
    wire.inbox.put(score)
    Scheduler(wire, handlers).run()  # type: ignore[arg-type]
    assert wire.when(Routed) == 1
    assert isinstance(wire.sent[-1][1], Stopped) and wire.passes == 3
