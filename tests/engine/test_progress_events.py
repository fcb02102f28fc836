"""Progress: its time left (with a clock of its own), its way through generators, its messages on the wire."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise

import pytest

from dlm_tui.engine.progress_events import ProgressEvents, progress_events
from dlm_tui.engine.protocol import Log
from dlm_tui.engine.protocol import Progress as Event
from dlm_tui.progress import NOTE, WARNING, Eta, Progress, map_steps, part_of, run_to_end


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def eta(clock: Clock) -> Eta:
    return Eta(clock)


def steps(eta: Eta, clock: Clock, seconds: float, counts: range, total: float, stage: str = "embed") -> float | None:
    """Feed counts that are `seconds` apart; the last answer."""
    left = None
    for count in counts:
        left = eta.left(stage, count, total)
        clock.now += seconds
    clock.now -= seconds
    return left


def test_an_even_pace_is_told_exactly(eta: Eta, clock: Clock) -> None:
    assert steps(eta, clock, 0.5, range(11), 100) == pytest.approx(45.0)
    clock.now += 0.2
    assert eta.left("embed", 10, 100) == pytest.approx(44.8), "a step under way counts down"
    clock.now += 0.3
    assert eta.left("embed", 11, 100) == pytest.approx(44.5)
    assert steps(eta, clock, 0.5, range(11, 101), 100) == 0.0


def test_nothing_is_said_before_it_can_be_known(eta: Eta, clock: Clock) -> None:
    assert eta.left("embed", 0, 10) is None
    clock.now += 60
    assert eta.left("embed", 0, 10) is None, "no step is done"
    assert steps(Eta(clock), clock, 0.1, range(2), 10) is None, "a tenth of a second is chance"
    assert steps(Eta(clock), clock, 1.0, range(5), 0) is None, "no total"


def test_a_slow_step_slows_the_estimate(eta: Eta, clock: Clock) -> None:
    before = steps(eta, clock, 1.0, range(6), 10)
    assert before == pytest.approx(5.0)
    found = []
    for _ in range(5):
        clock.now += 2.0
        found.append(eta.left("embed", 5, 10))
    assert all(value is not None for value in found)
    assert found == sorted(found, key=float) and found[-1] > before


def test_only_the_pace_of_late_counts(eta: Eta, clock: Clock) -> None:
    steps(eta, clock, 0.1, range(101), 1000)
    left = steps(eta, clock, 1.0, range(101, 130), 1000)
    assert left == pytest.approx(871, rel=0.11)


def test_a_pause_between_two_adapters_is_not_the_pace(eta: Eta, clock: Clock) -> None:
    steps(eta, clock, 0.5, range(121), 240)  # a minute
    clock.now += 8.0  # the next adapter is made ready
    left = steps(eta, clock, 0.5, range(121, 125), 240)
    assert left is not None and 58 < left < 90


def test_another_stage_or_a_count_that_falls_starts_afresh(eta: Eta, clock: Clock) -> None:
    steps(eta, clock, 1.0, range(6), 10)
    assert eta.left("train", 6, 10) is None
    clock.now += 3.0
    assert eta.left("train", 7, 10) == pytest.approx(9.0)
    assert eta.left("train", 2, 10) is None
    clock.now += 1.0
    assert eta.left("train", 3, 20) is None


def test_the_time_told_is_raised_only_for_a_reason(eta: Eta, clock: Clock) -> None:
    told = []
    for count in range(200):
        # steps of 0.4 and 0.6 s in turn, on which the plain estimate rises at every second step
        clock.now += 0.4 if count % 2 else 0.6
        told.append(eta.left("embed", count, 200))
    known = [value for value in told if value is not None][10:]  # what one or two steps say is a guess
    rises = [later - earlier for earlier, later in pairwise(known) if later > earlier]
    assert len(known) > 180 and not rises, rises
    clock.now += 60
    assert (eta.left("embed", 199, 200) or 0) > known[-1], "a step that hangs is told"


def test_every_step_becomes_a_message_with_its_time_left(clock: Clock) -> None:
    events = ProgressEvents("gate", Eta(clock))
    first = events.event(Progress("train", 0, 200))
    assert isinstance(first, Event) and first.eta is None
    clock.now += 2.0
    event = events.event(Progress("train", 100, 200, loss=0.5, entropy=0.7))
    assert isinstance(event, Event)
    assert (event.stage, event.scope, event.done, event.total) == ("train", "gate", 100.0, 200.0)
    assert (event.loss, event.entropy) == (0.5, 0.7) and event.eta == pytest.approx(2.0)
    step = events.event(Progress("base", 1, 4, "reading the base's tokenizer"))
    assert isinstance(step, Event) and step.text == "reading the base's tokenizer" and step.eta is None
    known = events.event(Progress("sft", 1, 2, scope="tone", loss=1.0, eta=75.0))
    assert isinstance(known, Event) and (known.scope, known.eta) == ("tone", 75.0), "what the work knows itself stands"


def test_notes_and_warnings_are_lines_of_the_log() -> None:
    events = ProgressEvents()
    lines = [events.event(Progress(NOTE, text="three rows were cut")), events.event(Progress(WARNING, text="diverged"))]
    assert [(line.text, line.level) for line in lines if isinstance(line, Log)] == [
        ("three rows were cut", "info"),
        ("diverged", "warning"),
    ]


def work(closed: list[bool], steps: int = 2) -> Generator[Progress, None, str]:
    try:
        for number in range(1, steps + 1):
            yield Progress("x", number, steps, loss=float(number))
    finally:
        closed.append(True)
    return "result"


def test_steps_are_passed_on_with_the_result_and_closed_with_the_work() -> None:
    closed: list[bool] = []
    seen: list[int] = []
    assert run_to_end(map_steps(work(closed), lambda step: int(step.done)), seen.append) == "result"
    assert seen == [1, 2] and closed == [True]
    events = progress_events(work(closed))
    next(events)
    events.close()
    assert closed == [True, True]


def test_what_the_reporter_raises_closes_the_work() -> None:
    closed: list[bool] = []

    def stop(step: Progress) -> None:
        raise StopIteration  # must not be taken for the work's own end

    with pytest.raises(StopIteration):
        run_to_end(work(closed), stop)
    assert closed == [True]


def test_equal_parts_count_on_as_one_stage() -> None:
    seen: list[Progress] = []
    for turn in range(3):
        assert run_to_end(part_of(work([]), "fold", turn, 3), seen.append) == "result"
    assert [(step.stage, step.done, step.total) for step in seen] == [("fold", done, 6) for done in range(1, 7)]
    assert [step.loss for step in seen] == [1.0, 2.0] * 3, "the rest of a step stays"
