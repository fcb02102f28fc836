"""Typing first, everything else in turns of one step, and cancelling within one."""

from __future__ import annotations

from collections.abc import Generator
from queue import SimpleQueue

from dlm_tui.engine.protocol import Cancel, Event, Generate, Request, Route, Routed, Status, Stopped
from dlm_tui.engine.scheduler import Scheduler

STEPS = 20


class Wire:
    """A channel in memory; `at` puts requests into the inbox when so many steps were done."""

    def __init__(self, first: Request, at: dict[int, list[Request]]) -> None:
        self.inbox: SimpleQueue[Request | None] = SimpleQueue()
        self.inbox.put(first)
        self.at, self.steps, self.sent, self.closed = at, 0, [], False

    def send(self, event: Event) -> None:
        self.sent.append((self.steps, event))

    def handler(self, request: Request) -> Generator[Event | None, None, Event]:
        if isinstance(request, Route):
            return self.routing(request)
        return self.long_work()

    def routing(self, request: Route) -> Generator[Event | None, None, Event]:
        yield None
        return Routed(
            prompt=request.prompt,
            weights={},
            entropy=0.0,
            normalised_entropy=0.0,
            mode="none",
            tokens=len(request.prompt),
        )

    def long_work(self) -> Generator[Event | None, None, Event]:
        try:
            for _ in range(STEPS):
                self.steps += 1
                for request in self.at.pop(self.steps, []):
                    self.inbox.put(request)
                yield None
            return Status(rss=0, threads=1, tier="none", uptime=0.0, device="cpu")
        finally:
            self.closed = True
            self.inbox.put(None)


def run(at: dict[int, list[Request]]) -> Wire:
    wire = Wire(Generate(id=1, prompt="x", views=[]), at)
    Scheduler(wire, wire.handler).run()  # type: ignore[arg-type]
    return wire


def test_a_keystroke_waits_for_no_further_step() -> None:
    wire = run({7: [Route(id=2, prompt="a")]})
    answered = next(steps for steps, event in wire.sent if isinstance(event, Routed))
    assert answered == 7
    assert isinstance(wire.sent[-1][1], Status) and wire.steps == STEPS


def test_of_several_keystrokes_only_the_newest_is_answered() -> None:
    wire = run({3: [Route(id=2, prompt="a"), Route(id=3, prompt="ab"), Route(id=4, prompt="abc")]})
    ends = {event.id: event for _, event in wire.sent}
    assert isinstance(ends[4], Routed) and ends[4].prompt == "abc"
    for overtaken in (2, 3):
        end = ends[overtaken]
        assert isinstance(end, Stopped) and end.reason == "superseded"


def test_cancelling_takes_no_further_step_and_closes_the_work() -> None:
    wire = run({5: [Cancel(id=9, target=1)]})
    steps, event = wire.sent[-1]
    assert steps == wire.steps == 5 and wire.closed
    assert isinstance(event, Stopped) and event.id == 1 and event.reason == "cancelled"
