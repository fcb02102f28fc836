"""The benchmark runner itself: ratios, goals, and a report that says when something was not measured."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks import bench_model_decode, harness, real_bases
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
    described = machine()
    assert described["cores"] and described["threads"] and described["memory_bytes"]
    assert described["read_gb_per_second"] > 0


@pytest.fixture
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmarks on a base so small that they take seconds."""
    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setattr(harness, "SMOL", {**harness.SMOL, **small, "intermediate_size": 96, "vocab_size": 4096})
    kept = (harness.scratch, harness.smol_folder, harness.smol_base, harness.adapters, bench_model_decode.model)
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    "topic", ["model_decode", "model_memory", "model_llama", "gate", "engine", "export", "sources"]
)
def test_every_row_runs_and_is_exact(tiny_shape: None, topic: str) -> None:
    """What is timed means nothing at this size; that each row compares equals and runs is what is tested."""
    found = measure(topic, quick=True)
    assert found
    for row in found:
        assert not row.exact.startswith("failed"), row.exact
        assert row.exact
        assert row.ours is None or row.ours > 0


@pytest.mark.slow
def test_a_base_of_ones_own_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    small |= {"head_dim": 32, "intermediate_size": 96, "vocab_size": 4096}
    monkeypatch.setattr(real_bases, "SIZE", real_bases.SIZE | small)
    folder = real_bases.random_folder("qwen3")
    found = real_bases.rows("qwen3", folder, rounds=1)
    assert len(found) == 13
    unmeasured = [row.name for row in found if row.ours is None]
    assert unmeasured == ([] if importlib.util.find_spec("xllamacpp") else [real_bases.IN_LLAMA_CPP])
