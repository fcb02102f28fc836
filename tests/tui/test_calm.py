"""However much happens, panes draw a few times a second, hidden ones not at all, and what they show last is right."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from time import monotonic

import pytest
from textual.app import App, ComposeResult
from textual.events import Hide
from textual.widget import Widget
from textual.widgets import Static

from dlm_tui.app.cards import CardKey
from dlm_tui.app.panes.answers import AnswersPane
from dlm_tui.app.panes.desk import DeskPane
from dlm_tui.app.panes.insight import InsightPane
from dlm_tui.app.panes.jobs import JobsPane
from dlm_tui.app.panes.runs import RunsPane
from dlm_tui.engine.protocol import Event, Progress, Trained
from dlm_widgets.answer_card import AnswerCard
from dlm_widgets.literal_static import ThrottledStatic
from dlm_widgets.throttled import Throttled
from tests.tui.conftest import Bench, Opener
from tests.tui.recorded import train_report

TWICE = 2  # as it is shown, and again where its place changes its size a moment later
DRAWN = (AnswerCard, AnswersPane, DeskPane, InsightPane, JobsPane, RunsPane, ThrottledStatic)


class Draws(Counter[str]):
    """How often each kind of widget was drawn since `begin`, and for how long that has been watched."""

    def begin(self) -> None:
        self.clear()
        self._began = monotonic()

    def allowed(self, kind: type[Widget]) -> float:
        """What one such widget may have drawn meanwhile: at once, at the end, and in between at its rate."""
        return 2 + (monotonic() - self._began) * getattr(kind, "DRAWS_PER_SECOND", AnswersPane.DRAWS_PER_SECOND)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    found = Draws()
    for kind in DRAWN:

        def counted(self: Widget, kind: type[Widget] = kind, real: object = kind.draw) -> None:
            found[kind.__name__] += 1
            real(self)  # type: ignore[operator]

        monkeypatch.setattr(kind, "draw", counted)
    found.begin()
    return found


async def train(bench: Bench, steps: int) -> None:
    """A job that reports every step as fast as it can."""

    async def events() -> AsyncIterator[Event]:
        for step in range(1, steps + 1):
            yield Progress(
                stage="train", scope="tone", done=step, total=steps, loss=2.0 - step / steps, loss_kind="sft"
            )
            if step % 20 == 0:
                await asyncio.sleep(0)
        yield Trained(report=train_report())

    await bench.context.board.follow(events(), "train", "train everything")


async def answered(bench: Bench) -> None:
    """Until the answer is complete, which takes long on a busy machine, and everything is drawn."""
    await bench.until(lambda: not bench.controllers.generation.running, "answered", seconds=100.0)
    await bench.idle()


async def route(bench: Bench, times: int) -> None:
    for _ in range(times):
        await bench.routing.ask(bench.screen.prompt_pane.text)


async def test_two_thousand_tokens_are_a_few_repaints(workbench: Opener, draws: Draws) -> None:
    async with workbench(size=(120, 40)) as bench:
        await bench.type("what is")
        await bench.idle()
        bench.world.words = 2_000
        draws.begin()
        await bench.press("ctrl+g")
        await answered(bench)
        assert 1 <= draws["AnswerCard"] <= draws.allowed(AnswerCard)
        card = bench.screen.answers.current
        assert card is not None and card.text.endswith("word1999 ")
        await bench.until(lambda: "word1999" in bench.text, "the end is in view")
        assert "2000 tokens" in bench.text or card.scroll_offset.y > 0


async def test_a_flood_of_everything_is_bounded_for_every_pane(workbench: Opener, draws: Draws) -> None:
    async with workbench(size=(200, 60)) as bench:
        await bench.type("what is the tide")
        await bench.idle()
        bench.world.words = 400  # five views: 2,000 tokens
        bench.panes.show_page("runs")
        bench.screen.runs.showing_loss = True
        await bench.idle()
        draws.begin()
        await bench.press("ctrl+o")
        await asyncio.gather(train(bench, 2_000), route(bench, 500))
        await answered(bench)
        for kind, count in (
            (AnswerCard, 5),
            (AnswersPane, 1),
            (DeskPane, 1),
            (InsightPane, 1),
            (RunsPane, 1),
            (ThrottledStatic, 1),
        ):
            assert draws[kind.__name__] <= count * draws.allowed(kind), kind
            assert kind is InsightPane or draws[kind.__name__] >= count, kind
        assert draws["JobsPane"] == 0
        assert [len(card.text.split()) for card in bench.screen.answers.cards] == [800] * 5
        assert "train everything" not in bench.text


async def test_hidden_panes_are_not_drawn_and_right_once_shown(workbench: Opener, draws: Draws) -> None:
    async with workbench(size=(80, 24)) as bench:
        await bench.type("what is the tide")
        bench.panes.show_page("outline")
        await bench.idle()
        draws.begin()
        bench.world.words = 50
        await bench.screen.answers.begin([CardKey("gated")], bench.context.marks)
        for word in range(200):
            bench.screen.answers.add(CardKey("gated"), f"hidden{word} ", None)
        await train(bench, 300)
        await bench.idle()
        for kind in (AnswerCard, InsightPane, JobsPane, RunsPane):
            assert draws[kind.__name__] == 0, kind
        draws.begin()
        bench.panes.show_page("jobs")
        await bench.until(lambda: "train everything  done" in bench.text, "the job's end", seconds=60.0)
        assert 1 <= draws["JobsPane"] <= TWICE and draws["AnswerCard"] == 0
        bench.panes.show_page("answers")
        await bench.until(lambda: "hidden199" in bench.text, "the answer's end", seconds=60.0)
        assert 1 <= draws["AnswerCard"] <= TWICE and draws["RunsPane"] == 0
        bench.panes.show_page("runs")
        await bench.until(lambda: "No gate has been trained yet" in bench.text, "the runs", seconds=60.0)
        assert 1 <= draws["RunsPane"] <= TWICE and draws["JobsPane"] <= TWICE


async def test_a_desk_behind_a_zoomed_pane_rests(workbench: Opener, draws: Draws) -> None:
    async with workbench(size=(120, 40)) as bench:
        await bench.type("please")
        await bench.idle()
        bench.panes.go_to("prompt")
        await bench.press("f3")
        await bench.until(lambda: bench.panes.zoom == "prompt", "zoomed")
        draws.begin()
        bench.screen.prompt_pane.set_text("what is the tide at the wharf")
        await bench.idle()
        await route(bench, 50)
        await bench.idle()
        assert draws["DeskPane"] == 0
        bench.screen.action_zoom()
        await bench.idle()
        shown = {channel.name: channel.weight for channel in bench.screen.desk.strips.channels}
        assert 1 <= draws["DeskPane"] <= 2  # once as it is shown, once as the insight beside it asks for pulls
        assert shown == bench.routing.weights


class Counting(Static, Throttled):
    """Remembers when it drew."""

    times: list[float]

    def draw(self) -> None:
        self.times.append(monotonic())


class OneCounting(App[None]):
    def compose(self) -> ComposeResult:
        yield Counting()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that stands where the test puts it."""
    now = [100.0]
    monkeypatch.setattr("dlm_widgets.throttled.monotonic", lambda: now[0])
    yield now


async def test_a_draw_that_is_due_before_its_wait_begins_is_drawn(clock: list[float]) -> None:
    """A wait of a billionth of a second is over before anything can wait for it; the pane must not stand still."""
    async with OneCounting().run_test() as pilot:
        widget = pilot.app.query_one(Counting)
        widget.times = []
        widget.ask()
        await pilot.pause()
        drawn = len(widget.times)
        clock[0] = widget._drawn + 1 / 15 - 1e-9
        widget.ask()
        async with asyncio.timeout(10):
            while widget.is_behind:
                await pilot.pause(0.01)
        assert len(widget.times) == drawn + 1


async def test_the_first_is_at_once_and_the_last_is_never_lost(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, waits = OneCounting(), []
    async with app.run_test() as pilot:
        widget = app.query_one(Counting)
        widget.times = []
        monkeypatch.setattr(widget, "_after", waits.append)
        widget.ask()
        widget.ask()
        await pilot.pause()
        assert len(widget.times) == 1 and waits == []
        for _ in range(100):
            widget.ask()
            await pilot.pause()
        assert len(widget.times) == 1 and waits == [pytest.approx(1 / 15)]
        assert widget.is_behind
        waits.pop()
        widget._draw_asked()
        assert len(widget.times) == 2 and not widget.is_behind
        clock[0] += 1.0
        widget.ask()
        await pilot.pause()
        assert len(widget.times) == 3 and waits == []
        widget.display = False
        await pilot.pause()
        widget.ask()
        await pilot.pause()
        assert len(widget.times) == 3 and not widget.is_behind
        clock[0] += 0.01
        widget.display = True
        await pilot.pause()
        assert len(widget.times) == 4 and not widget.is_behind


async def test_a_hide_that_comes_late_does_not_blank_what_is_shown() -> None:
    app = OneCounting()
    async with app.run_test() as pilot:
        widget = app.query_one(Counting)
        await pilot.pause()
        widget.times = []
        widget.post_message(Hide())
        await pilot.pause()
        widget.ask()
        async with asyncio.timeout(10):
            while not widget.times:
                await pilot.pause(0.01)
        assert not widget.is_behind


async def test_who_asks_where_a_widget_is_does_not_blank_it() -> None:
    """The layout is then worked out before its time, and the one that follows finds nothing new to tell of."""
    app = OneCounting()
    async with app.run_test() as pilot:
        widget = app.query_one(Counting)
        widget.display = False
        await pilot.pause()
        widget.times = []
        widget.ask()
        widget.display = True
        app.screen._compositor._full_map_invalidated = True  # as after a scroll
        assert widget.region
        async with asyncio.timeout(10):
            while not widget.times:
                await pilot.pause(0.01)
        assert not widget.is_behind
