"""The screen: first paint, event-loop lag while children work and in a flood of tokens; each in fresh processes."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dlm_tui.assets import asset
from tests.benchmarks.harness import Row

EMPTY = """
import time; began = time.perf_counter()
from textual.app import App
class Empty(App):
    def on_ready(self): self.call_after_refresh(self.painted)
    def painted(self): print(time.perf_counter() - began); self.exit()
Empty().run(headless=True)
"""
OURS = """
import sys, time; began = time.perf_counter()
from pathlib import Path
from dlm_tui.app.launch import make_app
app = make_app(Path(sys.argv[1]), Path(sys.argv[2]), None)
def painted(): print(time.perf_counter() - began); app.exit(0)
app._start_opening = painted  # called once the first frame is out
app.run(headless=True)
"""
TICKS = """
import asyncio, json, sys, time
from pathlib import Path
from dlm_tui.app.launch import make_app

async def lags(going):
    found = []
    while going():
        began = time.perf_counter()
        await asyncio.sleep(0.005)
        found.append(time.perf_counter() - began - 0.005)
    return sorted(found)

def until(seconds):
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() < end

def summary(values):
    at = lambda share: values[int(len(values) * share)]
    return {"p50": at(0.5), "p99": at(0.99), "worst": values[-1], "samples": len(values)}

async def opened(app, pilot):
    while not (app.is_open and app.workbench.context.link.ready):
        await pilot.pause(0.05)
    await pilot.pause(1.0)
    return app.workbench
"""
LAG = """
async def main():
    app = make_app(Path(sys.argv[1]), Path(sys.argv[2]), None)
    seconds = float(sys.argv[3])
    async with app.run_test(size=(200, 60)) as pilot:
        bench = await opened(app, pilot)
        idle = await lags(until(seconds))
        bench.controllers.training.start()
        bench.prompt_pane.set_text("What does the harbour master write down?")
        while not bench.context.board.records or bench.context.board.records[0].progress is None:
            await pilot.pause(0.05)
        async def ask():
            while True:
                bench.action_compare()
                while bench.controllers.generation.running:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.02)
        asking = asyncio.create_task(ask())
        busy = await lags(until(seconds))
        asking.cancel()
        for record in list(bench.context.board.records):
            await bench.context.board.cancel(record)
        app.exit(0)
    assert "torch" not in sys.modules
    print(json.dumps({"idle": summary(idle), "busy": summary(busy)}))

asyncio.run(main())
"""
FLOOD = """
from dlm_tui.app.cards import CardKey
from dlm_tui.engine.protocol import Token
from dlm_widgets.answer_card import AnswerCard

drawn = 0
def counted(card, real=AnswerCard.draw):
    global drawn
    drawn += 1
    real(card)
AnswerCard.draw = counted

async def main():
    app = make_app(Path(sys.argv[1]), Path(sys.argv[2]), None)
    async with app.run_test(size=(120, 40)) as pilot:
        bench = await opened(app, pilot)
        bench.panes.show_page("answers")
        views = ["base", "gated", "one", "two"]
        await bench.answers.begin([CardKey(view) for view in views], {})
        await pilot.pause(0.5)
        global drawn
        drawn = 0
        began = time.perf_counter()
        async def feed():
            for number in range(500):
                for view in views:
                    bench.controllers.generation.take(Token(view=view, text=f"harbour{number} ", heat=0.1))
                await asyncio.sleep(0.002)
        feeding = asyncio.create_task(feed())
        found = await lags(lambda: not feeding.done())
        await pilot.pause(0.2)
        print(json.dumps({"lag": summary(found), "drawn": drawn, "seconds": time.perf_counter() - began}))
        app.exit(0)

asyncio.run(main())
"""
BARS = """
import asyncio, json, time
from textual.app import App
from textual.containers import Vertical
from textual.widgets import ProgressBar
from dlm_widgets.mixing_desk import Channel, MixingDesk

ROUNDS = 60

class One(App):
    def compose(self): yield MixingDesk()

class Eight(App):
    def compose(self):
        with Vertical():
            for _ in range(8): yield ProgressBar(total=1.0, show_eta=False)

def channels(step):
    return [Channel(f"a{i}", "*", "#e69f00", weight=((step * 7 + i * 13) % 100) / 100) for i in range(8)]

async def timed(app, change):
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        began = time.process_time()
        for step in range(ROUNDS):
            change(app, step)
            app.screen._on_timer_update()
            await asyncio.sleep(0)
            app.screen._on_timer_update()
        return (time.process_time() - began) / ROUNDS

def eight(app, step):
    for i, bar in enumerate(app.query(ProgressBar)):
        bar.update(progress=((step * 7 + i * 13) % 100) / 100)

ours = asyncio.run(timed(One(), lambda app, step: app.query_one(MixingDesk).set_channels(channels(step))))
base = asyncio.run(timed(Eight(), eight))
print(json.dumps({"ours": ours, "baseline": base}))
"""


def run(script: str, *arguments: str) -> str:
    """The last line a fresh interpreter prints."""
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if result.returncode:
        raise RuntimeError(result.stderr[-2000:])
    return result.stdout.strip().splitlines()[-1]


def rows(quick: bool) -> list[Row]:
    """First paint, lag, bars."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document = Path(shutil.copy(asset("demo") / "harbour.dlm", folder))
        home = folder / "home"
        paint, busy = first_paint(document, folder, 3 if quick else 9), lag(document, home, 3.0 if quick else 10.0)
        return [paint, busy, *flood(document, home), bars()]


def first_paint(document: Path, folder: Path, rounds: int) -> Row:
    """Process start of Python code to the first frame, against an app without widgets."""
    pairs = []
    for _ in range(rounds):
        pairs.append((float(run(OURS, str(document), str(folder))), float(run(EMPTY))))
    ours, empty = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    ratio = statistics.median(a / b for a, b in pairs)
    return Row("first paint", ours * 1e3, empty * 1e3, "an empty Textual app", ratio, "≤ 1.3×", ratio <= 1.3, "")


def lag(document: Path, home: Path, seconds: float) -> Row:
    """p99 of how late a 5 ms timer fires while the engine decodes all views and a job trains, against idle."""
    found: dict[str, Any] = json.loads(run(TICKS + LAG, str(document), str(home), str(seconds)))
    busy, idle = found["busy"]["p99"] * 1e3, found["idle"]["p99"] * 1e3
    note = f"{_spread(found['busy'])}; idle {_spread(found['idle'])}"
    return Row("event-loop lag p99, training and decoding", busy, idle, "idle", busy / idle, "< 16 ms", busy < 16, note)


def flood(document: Path, home: Path) -> list[Row]:
    """2,000 tokens of four views in about a second: how late a 5 ms timer fires, and how often a card is drawn."""
    found: dict[str, Any] = json.loads(run(TICKS + FLOOD, str(document), str(home)))
    late, drawn = found["lag"]["p99"] * 1e3, float(found["drawn"])
    took = f"in {found['seconds']:.1f} s, four cards side by side"
    return [
        Row("event-loop lag p99, 2,000 tokens", late, None, "", None, "report", None, _spread(found["lag"])),
        Row("repaints, 2,000 tokens", drawn, 2e3, "one for each token", 2e3 / drawn, "report", None, took, "times"),
    ]


def _spread(found: dict[str, float]) -> str:
    figures = f"p50 {found['p50'] * 1e3:.1f} ms, worst {found['worst'] * 1e3:.1f} ms"
    return f"{figures} of {found['samples']} ticks"


def bars() -> Row:
    """CPU time of redrawing eight gate bars."""
    found = json.loads(run(BARS))
    ours, base = found["ours"] * 1e3, found["baseline"] * 1e3
    return Row("redraw 8 gate bars", ours, base, "eight ProgressBar widgets", base / ours, "report", None, "")


if __name__ == "__main__":
    for row in rows("--quick" in sys.argv):
        print(row)
