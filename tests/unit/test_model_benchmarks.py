"""The benchmark runner itself: ratios, goals, and a report that says when something was not measured."""

from __future__ import annotations

import io

from rich.console import Console

from tests.benchmarks.harness import Timing, at_most, faster, machine, paired, skipped
from tests.benchmarks.run import measure, table, topics


def test_goals_are_judged_in_their_own_direction() -> None:
    timing = Timing(ours=0.010, baseline=0.025, speedup=2.5, rounds=3)
    assert faster("a", timing, "b", 2.0, "same").met
    assert not faster("a", timing, "b", 3.0, "same").met
    slower = Timing(ours=0.025, baseline=0.020, speedup=0.8, rounds=3)
    row = at_most("a", slower, "b", 1.2, "same")
    assert (row.ratio, row.goal, row.met) == (1.25, "≤ 1.2×", False)
    assert at_most("a", slower, "b", 1.25, "same").met


def test_rounds_are_paired_and_alternate() -> None:
    order: list[str] = []
    timing = paired(lambda: order.append("o"), lambda: order.append("b"), rounds=4, warmup=1)
    assert order == ["o", "b", "o", "b", "b", "o", "o", "b", "b", "o"]
    assert timing.rounds == 4
    assert timing.ours > 0


def test_a_broken_topic_is_a_row_that_is_not_met() -> None:
    row = measure("no_such_topic", quick=True)[0]
    assert row.met is False
    assert "failed" in row.exact
    screen = io.StringIO()
    Console(file=screen, width=200).print(table([row, skipped("x", "y", "≤ 1×", "no peer")]))
    assert "not measured: no peer" in screen.getvalue()


def test_the_topics_and_the_machine_are_named() -> None:
    assert {"model_decode", "model_memory", "model_llama"} <= set(topics())
    assert machine()["cores"]
