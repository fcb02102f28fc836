"""Runs laid over one another: what is read, smoothed, compared and exported."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dlm_tui.app.run_curves import (
    METRICS,
    RunCurves,
    as_csv,
    as_svg,
    differing,
    logarithmic,
    metrics_of,
    read_runs,
    smoothed,
    value_at,
)
from dlm_tui.store import MetricsWriter, Store

LINE = tuple((float(step), 2.0 / step) for step in range(1, 21))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path, "01KTESTTESTTESTTESTTESTTES")
    with MetricsWriter(store.create()) as writer:
        for run, rate in ((1, 0.01), (2, 0.02)):
            settings = {"learning_rate": rate, "lora_r": 8}
            writer.start_run(run, "sft", 42, adapter_name="facts", details={"settings": settings})
            for step in range(1, 5):
                writer.record_step(run, step, 2.0 / step + rate, rate)
            writer.record_eval(run, 4, 0.5 + rate)
            writer.finish_run(run, "ok")
        writer.start_run(3, "gate", 42)
        writer.record_gate_steps(3, [(1, 1.0, 1.1), (2, 0.5, 0.7)])
        writer.record_gate_events(3, [("facts", 0.75, 4), ("tone", 0.25, 4)], "trained", 0.5)
        writer.start_run(4, "sft", 42)  # nothing is known of it yet
    return store


def test_the_newest_runs_with_curves_are_read(store: Store) -> None:
    gate, second, first = read_runs(store)
    assert [run.run_id for run in (gate, second, first)] == [3, 2, 1]
    assert first.label == "run 1 facts", "it was never put in force"
    assert gate.label == "1 gate", "the first training that came to an end"
    assert first.curves["loss"] == tuple((float(step), 2.0 / step + 0.01) for step in range(1, 5))
    assert first.curves["val_loss"] == ((4.0, 0.51),)
    assert gate.curves["gate_entropy"] == ((1.0, 1.1), (2.0, 0.7)) and gate.weights == {"facts": 0.75, "tone": 0.25}
    assert differing([first, second]) == {"learning_rate": [0.01, 0.02]}
    assert differing([first, gate])["lora_r"] == [8, None] and differing([first]) == {}
    assert first.matches("FACTS learning_rate=0.01") and not first.matches("facts 0.02") and second.matches("")


def test_preference_losses_have_curves_of_their_own(store: Store) -> None:
    before = read_runs(store)
    assert "dpo" not in metrics_of(before) and metrics_of(before)[:2] == ["loss", "val_loss"]
    with MetricsWriter(store) as writer:
        writer.record_loss_kind(2, "sft", 1)
        writer.record_loss_kind(2, "dpo", 3)
    runs = read_runs(store)
    found = next(run for run in runs if run.run_id == 2)
    assert [x for x, _ in found.curves["loss"]] == [1.0, 2.0] and [x for x, _ in found.curves["dpo"]] == [3.0, 4.0]
    assert set(metrics_of(runs)) - set(metrics_of(before)) == {"dpo"} and METRICS["dpo"] == "dpo loss, nats per pair"
    rows = list(csv.DictReader(io.StringIO(as_csv(runs))))
    assert [row["step"] for row in rows if (row["run_id"], row["metric"]) == ("2", "dpo")] == ["3", "4"]


def test_smoothing_is_the_debiased_mean_of_what_came_before() -> None:
    found = smoothed(LINE, 0.6)
    for number in (1, 2, 7, 20):
        weights = [0.6 ** (number - place) for place in range(1, number + 1)]
        wanted = math.fsum(w * y for w, (_, y) in zip(weights, LINE, strict=False)) / math.fsum(weights)
        assert found[number - 1] == (float(number), pytest.approx(wanted))
    assert smoothed(LINE, 0.0) == LINE and smoothed((), 0.9) == ()


def test_logarithms_have_no_place_for_what_is_not_positive() -> None:
    assert logarithmic(((1.0, 100.0), (2.0, 0.0), (3.0, -1.0), (4.0, 0.1))) == ((1.0, 2.0), (4.0, pytest.approx(-1.0)))


def test_the_value_under_the_cursor_is_the_last_one_known_there() -> None:
    assert value_at(LINE, 4.0) == 0.5 and value_at(LINE, 4.9) == 0.5
    assert value_at(LINE, 99.0) == 0.1 and value_at(LINE, 0.5) is None and value_at((), 1.0) is None


def test_csv_has_every_point_as_recorded(store: Store) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(read_runs(store)))))
    losses = [float(row["value"]) for row in rows if (row["run_id"], row["metric"]) == ("1", "loss")]
    assert losses == [2.0 / step + 0.01 for step in range(1, 5)]
    assert {row["adapter"]: float(row["value"]) for row in rows if row["metric"] == "mean_weight"} == {
        "facts": 0.75,
        "tone": 0.25,
    }
    assert len(rows) == 2 * 5 + 4 + 2


def test_svg_places_the_points_and_escapes_names() -> None:
    text = as_svg("a < b", {"x & <y>": ((0.0, 0.0), (10.0, 4.0)), "flat": ((5.0, 2.0),)}, {"flat": "#123456"})
    root = ElementTree.fromstring(text)
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert [line.get("points") for line in lines] == ["70.0,370.0 600.0,30.0", "335.0,200.0"]
    assert lines[1].get("stroke") == "#123456"
    assert {"a < b", "x & <y>", "flat"} <= {item.text for item in root.iter()}
    ElementTree.fromstring(as_svg("nothing", {}, {}))


def test_a_run_without_settings_is_compared_as_unknown() -> None:
    bare = RunCurves(1, "sft", "ok", "2026-01-01T00:00:00Z", "facts")
    assert differing([bare, RunCurves(2, "sft", "ok", "", "facts", settings={"lora_r": 4})]) == {"lora_r": [None, 4]}
