"""Time left from the pace of late, with a clock of its own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dlm_tui.engine.pace import Pace
from dlm_tui.engine.relay import Relay
from dlm_tui.gate.training import GateProgress
from dlm_tui.progress import Progress
from dlm_tui.training import TrainProgress


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(clock)


def steps(pace: Pace, clock: Clock, seconds: float, counts: range, total: float, stage: str = "embed") -> float | None:
    """Feed counts that are `seconds` apart; the last answer."""
    left = None
    for count in counts:
        left = pace.left(stage, count, total)
        clock.now += seconds
    clock.now -= seconds
    return left


def test_an_even_pace_is_told_exactly(pace: Pace, clock: Clock) -> None:
    assert steps(pace, clock, 0.5, range(11), 100) == pytest.approx(45.0)
    clock.now += 0.2
    assert pace.left("embed", 10, 100) == pytest.approx(44.8), "a step under way counts down"
    clock.now += 0.3
    assert pace.left("embed", 11, 100) == pytest.approx(44.5)
    assert steps(pace, clock, 0.5, range(11, 101), 100) == 0.0


def test_nothing_is_said_before_it_can_be_known(pace: Pace, clock: Clock) -> None:
    assert pace.left("embed", 0, 10) is None
    clock.now += 60
    assert pace.left("embed", 0, 10) is None, "no step is done"
    assert steps(Pace(clock), clock, 0.1, range(2), 10) is None, "a tenth of a second is chance"
    assert steps(Pace(clock), clock, 1.0, range(5), 0) is None, "no total"


def test_a_slow_step_slows_the_estimate(pace: Pace, clock: Clock) -> None:
    before = steps(pace, clock, 1.0, range(6), 10)
    assert before == pytest.approx(5.0)
    found = []
    for _ in range(5):
        clock.now += 2.0
        found.append(pace.left("embed", 5, 10))
    assert all(value is not None for value in found)
    assert found == sorted(found, key=float) and found[-1] > before


def test_only_the_pace_of_late_counts(pace: Pace, clock: Clock) -> None:
    steps(pace, clock, 0.1, range(101), 1000)
    left = steps(pace, clock, 1.0, range(101, 130), 1000)
    assert left == pytest.approx(871, rel=0.02)


def test_another_stage_or_a_count_that_falls_starts_afresh(pace: Pace, clock: Clock) -> None:
    steps(pace, clock, 1.0, range(6), 10)
    assert pace.left("train", 6, 10) is None
    clock.now += 3.0
    assert pace.left("train", 7, 10) == pytest.approx(9.0)
    assert pace.left("train", 2, 10) is None
    clock.now += 1.0
    assert pace.left("train", 3, 20) is None


def test_every_rooms_progress_gets_its_time_left(clock: Clock) -> None:
    relay = Relay("gate", Pace(clock))
    assert relay.progress(GateProgress("train", 0, 200)).eta is None
    clock.now += 2.0
    event = relay.progress(GateProgress("train", 100, 200, 0.5, 0.7))
    assert (event.stage, event.scope, event.done, event.total) == ("train", "gate", 100.0, 200.0)
    assert (event.loss, event.entropy) == (0.5, 0.7) and event.eta == pytest.approx(2.0)
    step = relay.progress(Progress("base", 1, 4, "reading the base's tokenizer"))
    assert step.text == "reading the base's tokenizer" and step.eta is None
    known = relay.progress(TrainProgress(stage="sft", scope="tone", done=1, total=2, loss=1.0, eta=75.0))
    assert (known.scope, known.eta) == ("tone", 75.0), "what the room knows itself stands"


def test_closing_a_relay_closes_the_work() -> None:
    closed = []

    def work():  # type: ignore[no-untyped-def]
        try:
            yield None
            yield Progress("x", 1, 2)
        finally:
            closed.append(True)

    relay = Relay().run(work())
    assert next(relay) is None
    relay.close()
    assert closed == [True]
