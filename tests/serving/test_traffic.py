"""What is kept of the traffic: weights always, prompts only where that was asked for; and the report over it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.serving.native.backend import NativeBackend
from dlm_tui.serving.traffic import TrafficLog
from dlm_tui.store import MetricsWriter, Store
from dlm_tui.store.traffic import TrafficRow, TrafficWriter, traffic_rows, traffic_time
from dlm_tui.store.traffic_report import traffic_report
from tests.serving.conftest import open_again
from tests.serving.running import serving, until
from tests.serving.test_native_answers import PROMPTS, user


def row(number: int, **changes: Any) -> TrafficRow:
    values: dict[str, Any] = {
        "at": traffic_time(1_700_000_000 + 60 * number),
        "route": "/v1/chat/completions",
        "view": "gated",
        "mode": "trained",
        "weights": {"tone": 0.75, "facts": 0.25},
        "entropy": 0.5,
        "normalised_entropy": 0.5,
        "ood_score": 0.1,
        "is_ood": False,
        "prompt_tokens": 10,
        "answer_tokens": 5,
        "first_token": 0.1 * (number + 1),
        "seconds": 1.0,
        "finish": "ok",
        "prompt": f"prompt {number}",
    }
    return TrafficRow(**{**values, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, "01JEXPXRTTESTSEXPXRTTESTSE")


@pytest.mark.parametrize("keep", [0, 2])
def test_requests_are_recorded_and_prompts_only_on_demand(served_folder: Path, tmp_path: Path, keep: int) -> None:
    session = open_again(served_folder)
    store = Store(tmp_path / "home", session.document.dlm_id)
    log = TrafficLog(store, keep)
    with serving(NativeBackend(session), recorder=log) as running:
        client = running.client()
        for prompt in PROMPTS[:3]:
            answer = client.chat.completions.create(model="gated", messages=user(prompt), max_tokens=4, temperature=0)
        client.chat.completions.create(model="mix:tone:-0.5", messages=user("x"), max_tokens=2, temperature=0)
        stream = client.chat.completions.create(model="base", messages=user("x"), max_tokens=1500, n=8, stream=True)
        next(stream)
        stream.close()
        until(lambda: len(traffic_rows(store)) == 5)
    log.close()
    rows = traffic_rows(store)
    assert [one.view for one in rows] == ["gated"] * 3 + ["mix:tone:-0.5", "base"]
    assert rows[2].weights == (answer.model_extra or {})["dlm"]["weights"]
    assert answer.usage is not None
    assert (rows[2].prompt_tokens, rows[2].answer_tokens) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )
    assert [one.finish for one in rows] == ["ok"] * 4 + ["gone"]
    assert all(one.first_token is not None and 0 < one.first_token <= one.seconds for one in rows)
    assert [one.prompt for one in rows if one.prompt] == (["x", "x"] if keep else [])
    if not keep:
        assert PROMPTS[0].encode() not in store.metrics_path.read_bytes()


def test_the_newest_prompts_are_kept_and_the_others_forgotten(store: Store) -> None:
    writer = TrafficWriter(store, 3)
    writer.add([row(number) for number in range(5)])
    writer.add([row(5)])
    assert [one.prompt for one in traffic_rows(store)] == [None] * 3 + ["prompt 3", "prompt 4", "prompt 5"]
    writer.close()
    silent = TrafficWriter(store, 0)
    silent.add([row(6)])
    assert [one.prompt for one in traffic_rows(store)] == [None] * 7
    silent.close()
    assert b"prompt 5" not in store.metrics_path.read_bytes()
    assert [one.traffic_id for one in traffic_rows(store, after=4, limit=2)] == [6, 7]
    assert len(traffic_rows(store, since=traffic_time(1_700_000_000 + 60 * 4))) == 3


def test_the_table_is_additive(store: Store) -> None:
    writer = TrafficWriter(store)
    writer.add([row(0)])
    writer.close()
    with MetricsWriter(store) as metrics:
        metrics.start_run(1, "sft", 0)
    assert len(traffic_rows(store)) == 1
    with sqlite3.connect(store.metrics_path) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {"runs", "tui_traffic"} <= tables


def test_the_report_tells_shares_drift_and_what_to_label(store: Store) -> None:
    with MetricsWriter(store) as metrics:
        metrics.start_run(1, "gate", 0)
        metrics.record_gate_events(1, [("tone", 0.5, 4), ("facts", 0.5, 4)], "trained", prompt_entropy=0.25)
    writer = TrafficWriter(store, 100)
    rows = [row(number) for number in range(8)]
    rows += [row(8, weights={"tone": 0.25, "facts": 0.75}, is_ood=True, normalised_entropy=0.2, prompt="odd")]
    rows += [row(9, normalised_entropy=0.9, prompt="unsure"), row(10, normalised_entropy=0.9, prompt="unsure")]
    rows += [row(11, view="base", weights={}, entropy=None, normalised_entropy=None, finish="gone", first_token=None)]
    writer.add(rows)
    writer.close()
    report = traffic_report(store)
    assert (report.requests, report.routed, report.unfinished) == (12, 11, 1)
    assert report.views == {"gated": 11, "base": 1}
    assert report.weights == pytest.approx({"tone": (10 * 0.75 + 0.25) / 11, "facts": (10 * 0.25 + 0.75) / 11})
    assert report.entropy == pytest.approx(0.5) and report.training_entropy == pytest.approx(0.25)
    assert report.ood_share == pytest.approx(1 / 11)
    assert (report.first_token_p50, report.first_token_p99) == (pytest.approx(0.6), pytest.approx(1.1))
    assert [(one.prompt, one.times) for one in report.worth_labelling[:2]] == [("odd", 1), ("unsure", 2)]
    assert sum(span.requests for span in report.spans) == 12 and len(report.spans) == 12
    assert report.spans[8].ood_share == 1.0 and report.spans[0].ood_share == 0.0


@pytest.mark.parametrize(("seconds", "spans"), [(0, 1), (0.4, 1), (3.5, 3), (600, 12)])
def test_no_two_spans_begin_in_the_same_second(store: Store, seconds: float, spans: int) -> None:
    writer = TrafficWriter(store, 0)
    writer.add([row(0), row(1, at=traffic_time(1_700_000_000 + seconds))])
    writer.close()
    found = traffic_report(store).spans
    assert len(found) == len({span.begins for span in found}) == spans
    assert found[0].requests + found[-1].requests * (spans > 1) == 2


def test_a_store_that_was_never_served_has_an_empty_report(
    served_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = served_folder / "doc.dlm"
    assert main(["traffic", str(document), "--home", str(tmp_path)]) == 0
    assert "no request was served" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert main(["traffic", str(document), "--since", "yesterday"]) == 2


def test_the_command_shows_hostile_prompts_as_text(
    served_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = served_folder / "doc.dlm"
    writer = TrafficWriter(Store(tmp_path, load(document).dlm_id), 10)
    writer.add([row(0, prompt="[bold]\x1b[31mred\u202e"), row(1)])
    writer.close()
    assert main(["traffic", str(document), "--home", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "\\x1b[31mred\\u202e" in shown and "\x1b" not in shown
    assert "share: tone 0.750, facts 0.250" in shown
    assert main(["traffic", str(document), "--home", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["requests"] == 2
