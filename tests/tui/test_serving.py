"""Serving from the screen: one key starts and stops it, the gate is watched on real traffic, prompts are taken."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from dlm_tui.app.config import parse_config
from dlm_tui.app.controllers import serving
from dlm_tui.app.screens.label import LabelScreen
from dlm_tui.app.screens.traffic import TrafficScreen
from dlm_tui.app.server_process import server_words
from dlm_tui.child import module_words
from dlm_tui.store import MetricsError, MetricsWriter
from dlm_tui.store.traffic import TrafficRow, TrafficWriter, traffic_time
from dlm_widgets.pick_list import PickList
from tests.tui.conftest import Bench, Opener


def row(prompt: str | None, second: int = 0, **changes: Any) -> TrafficRow:
    values: dict[str, Any] = {
        "at": traffic_time(1_800_000_000 + second), "route": "/v1/chat/completions", "view": "gated", "mode": "trained",
        "weights": {"knowledge": 0.7, "tone": 0.2, "style": 0.1}, "entropy": 0.8, "normalised_entropy": 0.73,
        "ood_score": 0.2, "is_ood": False, "prompt_tokens": 9, "answer_tokens": 4, "first_token": 0.1, "seconds": 0.4,
        "finish": "ok", "prompt": prompt,
    }  # fmt: skip
    return TrafficRow(**{**values, **changes})


def serve(bench: Bench, *rows: TrafficRow, keep: int = 10) -> None:
    """What the server writes."""
    writer = TrafficWriter(bench.context.store, keep)
    writer.add(rows)
    writer.close()


def state_of_server(bench: Bench) -> list[str]:
    return [record.state for record in bench.context.board.records if record.kind == "serve"]


async def started(bench: Bench) -> None:
    await bench.press("alt+s")
    await bench.until(lambda: any("Copied the address" in toast for toast in bench.toasts), "serving")


async def test_one_key_starts_it_and_the_same_stops_it(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await started(bench)
        assert state_of_server(bench) == ["running"]
        assert bench.app.clipboard == "http://127.0.0.1:8321/v1"
        process = bench.controllers.serving.process
        assert process is not None
        await bench.press("alt+s")
        await bench.until(lambda: state_of_server(bench) == ["cancelled"], "stopped")
        assert bench.context.board.listed()[0].summary == "stopped after 0.0 s; 0 requests"
        assert any("The server: stopped." in toast for toast in bench.toasts)
        assert await process.cancel() == "already over"
        await started(bench)
        assert state_of_server(bench) == ["running", "cancelled"]


async def test_traffic_is_watched_and_a_prompt_taken_or_labelled(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await started(bench)
        await bench.press("alt+t")
        await bench.until(lambda: isinstance(bench.app.screen, TrafficScreen), "listed")
        assert "0 requests" in bench.text
        serve(bench, row("[bold]what is the tide", 1), row("who rings\x1b[31m the bell", 2, is_ood=True))
        await bench.until(lambda: "who rings" in bench.text, "news came")
        assert "0.2 requests/s · 2 so far" in bench.text
        assert "unlike" in bench.text and "[bold]what is the tide" in bench.text and "\x1b" not in bench.text
        assert "0.70" in bench.text
        bench.app.screen.query_one(PickList).highlighted = 1
        await bench.press("enter")
        await bench.until(lambda: bench.app.screen is bench.screen, "closed")
        assert bench.screen.prompt_pane.text == "[bold]what is the tide"
        await bench.idle()
        await bench.press("alt+t")
        await bench.until(lambda: "who rings" in bench.text, "listed again")
        await bench.press("space")
        await bench.until(lambda: isinstance(bench.app.screen, LabelScreen), "the label dialog")
        assert bench.screen.prompt_pane.text == "who rings\x1b[31m the bell"


async def test_requests_whose_text_was_not_kept_say_how_to_keep_it(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        serve(bench, row("gone", 1), row(None, 2, view="base", weights={}), keep=0)
        await bench.press("alt+t")
        await bench.until(lambda: "No server runs; alt+s starts one." in bench.text, "listed")
        await bench.press("enter")
        await bench.until(lambda: "keep_prompts under [serve]" in bench.text, "said")
        assert "gone" not in bench.text


async def test_a_server_that_does_not_start_says_why(workbench: Opener) -> None:
    words = (
        sys.executable,
        "-c",
        "import sys; print('noise', file=sys.stderr); sys.exit('dlm-tui: the port is taken')",
    )
    async with workbench(server_words=words) as bench:
        await bench.press("alt+s")
        await bench.until(lambda: state_of_server(bench) == ["failed"], "failed")
        assert any("the port is taken" in toast for toast in bench.toasts)


async def test_a_server_that_is_loading_is_stopped_by_the_same_key(workbench: Opener) -> None:
    async with workbench(server_words=(sys.executable, "-c", "import sys; sys.stdin.read()")) as bench:
        await bench.press("alt+s")
        await bench.until(lambda: state_of_server(bench) == ["running"], "begun")
        await bench.press("alt+t")
        await bench.until(lambda: "Server \u00b7 starting \u00b7 alt+s stops it" in bench.text, "told")
        await bench.press("alt+s")
        await bench.until(lambda: state_of_server(bench) == ["cancelled"], "stopped")
        await bench.until(lambda: any("The server: stopped." in toast for toast in bench.toasts), "said")
        assert bench.screen.failures == []


async def test_traffic_that_cannot_be_read_for_a_while_is_followed_on(
    workbench: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broken = serving.traffic_rows, [True]

    def reading(*given: Any, **more: Any) -> Any:
        if broken and "after" in more:
            raise MetricsError("the database is locked")
        return real(*given, **more)

    monkeypatch.setattr(serving, "traffic_rows", reading)
    async with workbench(size=(120, 40)) as bench:
        await started(bench)
        await bench.until(lambda: any("the database is locked" in toast for toast in bench.toasts), "told")
        broken.clear()
        serve(bench, row("what is the tide", 1))
        await bench.until(lambda: bool(bench.controllers.serving.record), "runs")
        await bench.until(lambda: "1 so far" in bench.controllers.serving.record.note, "followed on")
        assert sum("the database is locked" in toast for toast in bench.toasts) == 1


async def test_a_server_that_ends_by_itself_is_told(workbench: Opener) -> None:
    code = "import sys, time; print('{\"address\": \"http://x\"}', flush=True); sys.exit('dlm-tui: out of memory')"
    async with workbench(server_words=(sys.executable, "-c", code)) as bench:
        await bench.press("alt+s")
        await bench.until(lambda: state_of_server(bench) == ["failed"], "failed")
        assert any("out of memory" in toast for toast in bench.toasts)


KILLED, ABRUPT = "os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)"


@pytest.mark.parametrize(
    ("end", "told"),
    [(KILLED, "the server ended by SIGKILL"), (ABRUPT, "the server ended with code 3")],
    ids=["killed", "abrupt"],
)
async def test_a_server_that_ends_without_a_word_is_not_told_by_where_it_listened(
    workbench: Opener, end: str, told: str
) -> None:
    greeting = "print('dlm-tui: a base of old', 'small.dlm: http://x/v1', sep='\\n', file=sys.stderr, flush=True)"
    if end == ABRUPT:  # a sentence of its own would be the reason
        greeting = greeting.replace("dlm-tui: ", "")
    code = f'import os, signal, sys; {greeting}; print(\'{{"address": "http://x"}}\', flush=True); {end}'
    async with workbench(server_words=(sys.executable, "-c", code)) as bench:
        await bench.press("alt+s")
        await bench.until(lambda: state_of_server(bench) == ["failed"], "failed")
        (record,) = bench.context.board.records
        assert record.summary == told and f"No longer serving {told}" in bench.toasts
        assert list(record.log)[-2:] == ["small.dlm: http://x/v1", told]


async def test_a_server_that_is_killed_while_it_loads_says_so(workbench: Opener) -> None:
    code = f"import os, signal, sys; print('loading', file=sys.stderr, flush=True); {KILLED}"
    async with workbench(server_words=(sys.executable, "-c", code)) as bench:
        await bench.press("alt+s")
        await bench.until(lambda: state_of_server(bench) == ["failed"], "failed")
        assert "Not serving the server ended by SIGKILL" in bench.toasts


async def test_leaving_asks_while_it_serves(workbench: Opener) -> None:
    async with workbench() as bench:
        await started(bench)
        process = bench.controllers.serving.process
        await bench.press("f10")
        assert "Serving http://127.0.0.1:8321/v1 is running" in bench.text
    assert process is not None
    assert await process.cancel() in ("already over", "stopped")


async def test_the_runs_chart_shows_the_entropy_of_the_traffic(workbench: Opener) -> None:
    async with workbench(size=(200, 60)) as bench:
        with MetricsWriter(bench.context.store) as metrics:
            metrics.start_run(7, "gate", 0)
            events = [(name, 1 / 3, 4) for name in bench.context.names]
            metrics.record_gate_events(7, events, "trained", prompt_entropy=0.3)
        serve(bench, row("a", 1), row("b", 2, entropy=0.4), row("c", 3, view="base", entropy=None))
        await bench.until(lambda: bool(bench.screen.runs._traffic), "read")
        assert bench.screen.runs._traffic == {7: (0.8 + 0.4) / 2}
        assert bench.screen.runs._served() == ((1.0, (0.8 + 0.4) / 2),), "at the place of its training, not of its run"
        bench.panes.go_to("runs")
        await bench.until(lambda: "served traffic" in bench.text, "drawn")


def test_the_usual_command_ends_with_the_screen(tmp_path: Any) -> None:
    config = parse_config({"serve": {"port": 9000, "keep_prompts": 50}}, "config.toml")
    words = server_words(tmp_path / "a.dlm", tmp_path, "base", config.serve.port, config.serve.keep_prompts)
    assert words[: words.index("serve") + 1] == module_words("dlm_tui", "serve")
    assert "--until-eof" in words and words[words.index("--port") + 1] == "9000" and words[-2:] == ["--base", "base"]


async def test_the_key_that_the_traffic_names_works_there(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.press("alt+t")
        await bench.until(lambda: "No server runs; alt+s starts one." in bench.text, "said")
        await bench.press("alt+s")
        await bench.until(lambda: "alt+s stops it" in bench.text, "started, and said")
        await bench.press("alt+s")
        await bench.until(lambda: state_of_server(bench) == ["cancelled"], "stopped")
