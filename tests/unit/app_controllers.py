"""Controllers without a screen: a recorded engine, surfaces that note what is drawn on them, work as asyncio tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textual.content import Content

from dlm_tui.app.cards import CardKey, FinishedCard
from dlm_tui.app.config import Config
from dlm_tui.app.controllers.context import Context, open_context
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.app.controllers.wiring import Controllers, Surfaces
from dlm_tui.app.setup import Setup
from dlm_tui.app.state import StateFile
from dlm_tui.app.themes import DLM_DARK
from dlm_tui.document import load
from dlm_tui.engine.protocol import ExportJob, Message, TrainJob
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.turn_card import ShownTurn
from tests.tui.document import write_document
from tests.tui.recorded import RecordedEngine, RecordedJob, World

LASTING = {"engine", "watch", "queue"}


class FakeUi:
    """`controllers.ui.Ui` that keeps what was said, opened and copied."""

    theme = DLM_DARK
    is_open = True

    def __init__(self) -> None:
        self.said: list[str] = []
        self.lasting: list[str] = []
        self.dialogs: list[Any] = []
        self.answers: list[Callable[[Any], None] | None] = []
        self.copied: list[str] = []
        self.keys: dict[str, str] = {}
        self.left = False
        self.tasks: list[tuple[str, asyncio.Task[object]]] = []

    def use_theme(self, name: str) -> None:
        self.said.append(f"theme {name}")

    def say(
        self, text: str, *, error: bool = False, warning: bool = False, title: str = "", lasting: bool = False
    ) -> None:
        kind = "error: " if error else "warning: " if warning else ""
        self.said.append(f"{kind}{title} {text}".replace("  ", " ").strip())
        if lasting:
            self.lasting.append(self.said[-1])

    def clear_lasting(self) -> None:
        self.lasting.clear()

    def run(
        self, work: Callable[[], Coroutine[Any, Any, object]], group: str, description: str, *, exclusive: bool = False
    ) -> asyncio.Task[object]:
        if exclusive:
            self.cancel(group)
        task = asyncio.ensure_future(work())
        self.tasks.append((group, task))
        return task

    def run_to_dialog(
        self, work: Callable[[], Coroutine[Any, Any, object]], group: str, description: str, *, exclusive: bool = False
    ) -> asyncio.Task[object]:
        return self.run(work, group, description, exclusive=exclusive)

    def cancel(self, group: str) -> None:
        for name, task in self.tasks:
            if name == group:
                task.cancel()

    async def settled(self) -> None:
        """Until all work that ends by itself has ended; what it raised is raised here."""
        while pending := [task for group, task in self.tasks if group not in LASTING and not task.done()]:
            await asyncio.wait(pending)
        for _, task in self.tasks:
            if task.done() and not task.cancelled():
                task.result()

    def open_dialog(self, dialog: Any, then: Callable[[Any], None] | None = None) -> Awaitable[object]:
        self.dialogs.append(dialog)
        self.answers.append(then)
        opened = asyncio.get_running_loop().create_future()
        opened.set_result(None)
        return opened

    def choose(self, result: object) -> None:
        """Leave the newest dialog with a result."""
        then = self.answers[-1]
        assert then is not None
        then(result)

    def after_refresh(self, then: Callable[[], object]) -> None:
        then()

    def copy(self, text: str) -> None:
        self.copied.append(text)

    def suspended(self) -> nullcontext[None]:
        return nullcontext()

    def save_screenshot(self, folder: str) -> str:
        return f"{folder}/screen.svg"

    def use_keys(self, keys: dict[str, str]) -> None:
        self.keys = keys

    def exit(self) -> None:
        self.left = True

    def leave_for(self, document: Path, *, new: bool) -> None:
        self.left, self.next_document = True, document


@dataclass
class FakePrompt:
    text: str = ""

    title: tuple[str, ...] = ()

    def set_text(self, text: str) -> None:
        self.text = text

    def retitle(self, *details: str | Content) -> None:
        self.title = tuple(str(detail) for detail in details)


@dataclass
class Card:
    view: str
    text: str = ""
    note: str = ""
    past: str = ""


@dataclass
class FakeAnswers:
    cards: dict[str, Card] = field(default_factory=dict)
    title: tuple[str, ...] = ()
    shown_hint: str = ""

    @property
    def current(self) -> Card | None:
        return next(iter(self.cards.values()), None)

    @property
    def answers(self) -> list[Card]:
        return list(self.cards.values())

    def hint(self, content: str | Content) -> None:
        self.shown_hint = str(content)

    @property
    def current_index(self) -> int | None:
        return 0 if self.cards else None

    async def begin(self, keys: Sequence[CardKey], marks: Mapping[str, object]) -> None:
        self.cards = {name(key): Card(key.view) for key in keys}

    async def show_finished(self, cards: Sequence[FinishedCard], marks: Mapping[str, object]) -> None:
        self.cards = {}
        for card in cards:
            await self.lay_beside(card, marks)

    async def lay_beside(self, card: FinishedCard, marks: Mapping[str, object]) -> None:
        text = "".join(piece for piece, _ in card.pieces)
        self.cards[f"{name(card.key)}{'+' * (name(card.key) in self.cards)}"] = Card(card.key.view, text, card.note)

    def mark_past(self, words: Sequence[str]) -> None:
        for card, word in zip(self.cards.values(), words, strict=True):
            card.past = word

    def recolour(self, marks: Mapping[str, object], card_width: int) -> None:
        """Colours are not kept here."""

    def reading(self, words: str) -> None:
        for card in self.cards.values():
            card.note = words

    def add(self, key: CardKey, text: str, heat: float | None) -> None:
        self.cards[name(key)].text += text

    def finish(self, key: CardKey, text: str, note: str) -> None:
        self.cards[name(key)].text, self.cards[name(key)].note = text, note

    def stop(self, note: str) -> None:
        for card in self.cards.values():
            card.note = note

    def took(self, words: str) -> None:
        self.title = (words,)


def name(key: CardKey) -> str:
    """A card by its view, further samples with their number."""
    return f"{key.view} #{key.sample + 1}" if key.sample else key.view


class Recorder:
    """A surface that keeps every call made on it: `calls["show"][-1]` are the arguments of the last `show`."""

    def __init__(self, **facts: object) -> None:
        self.calls: dict[str, list[tuple[Any, ...]]] = {}
        self.__dict__.update(facts)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def note(*args: object, **more: object) -> None:
            self.calls.setdefault(name, []).append(args)

        return note


class FakePages:
    """Pages and focus as plain facts."""

    def __init__(self) -> None:
        self.rearranged: Signal[[]] = Signal()
        self.page = ""
        self.focused_pane: str | None = "prompt"
        self.zoomed = False

    def show_page(self, page: str) -> None:
        self.page = page
        self.rearranged.emit()

    def go_to(self, pane_id: str) -> None:
        self.focused_pane = pane_id

    def focus_pane(self, pane_id: str) -> bool:
        self.focused_pane = pane_id
        return True

    def end_zoom(self) -> bool:
        zoomed, self.zoomed = self.zoomed, False
        return zoomed

    def is_shown(self, pane_id: str) -> bool:
        return pane_id == self.page

    def draw_tabs(self) -> None:
        """Nothing to draw."""


class FakeTalk(Recorder):
    """A conversation that is shown nowhere; the last turn is the marked one."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[ShownTurn] = []

    @property
    def marked(self) -> int | None:
        return self.turns[-1].turn if self.turns else None

    async def show(self, turns: Sequence[ShownTurn], marks: Mapping[str, Mark]) -> None:
        self.turns = list(turns)


@dataclass
class Bench:
    """Controllers with everything that a test may want to touch."""

    controllers: Controllers
    context: Context
    ui: FakeUi
    world: World
    prompt: FakePrompt
    answers: FakeAnswers
    talk: FakeTalk
    pages: FakePages
    desk: Recorder
    insight: Recorder
    runs: Recorder
    outline: Recorder
    engines: list[RecordedEngine]
    jobs: list[RecordedJob]

    def requests(self, kind: type[Message]) -> list[Any]:
        """What the engine was asked, of one kind."""
        return [request for request in self.world.requests if isinstance(request, kind)]

    async def type(self, text: str) -> None:
        """The prompt becomes this, and everything it sets off ends."""
        self.prompt.text = text
        self.controllers.routing.typed(text)
        await self.ui.settled()


@asynccontextmanager
async def running(
    folder: Path, *, world: World | None = None, config: Config | None = None, **more: Any
) -> AsyncIterator[Bench]:
    """All controllers on a recorded engine that has opened the document."""
    world = world or World()
    path = folder / "harbour.dlm"
    if not path.exists():
        write_document(folder)
    engines: list[RecordedEngine] = []
    jobs: list[RecordedJob] = []

    def engine() -> RecordedEngine:
        engines.append(RecordedEngine(world))
        return engines[-1]

    async def start(request: TrainJob | ExportJob) -> RecordedJob:
        jobs.append(RecordedJob(world, request))
        return jobs[-1]

    setup = Setup(
        document=load(path),
        path=path,
        home=folder / "home",
        base=None,
        config=config or Config(),
        state_file=StateFile(path, folder / "state"),
        engine_factory=engine,
        job_starter=start,
        **more,
    )
    ui = FakeUi()
    context = open_context(setup, ui)
    prompt, answers, pages = FakePrompt(context.state.prompt), FakeAnswers(), FakePages()
    desk, insight = Recorder(selected="tone"), Recorder(display=False)
    runs, outline, talk = Recorder(), Recorder(), FakeTalk()
    surfaces = Surfaces(
        prompt=prompt,
        desk=desk,  # type: ignore[arg-type]
        answers=answers,
        talk=talk,  # type: ignore[arg-type]
        insight=insight,  # type: ignore[arg-type]
        runs=runs,
        jobs=Recorder(),
        outline=outline,
        status=Recorder(),
        footer=Recorder(),
        leave=Recorder(),
        pages=pages,
    )
    controllers = Controllers(context, surfaces)
    settled = asyncio.Event()
    context.engine_changed.connect(lambda state: settled.set() if state.phase in {"ready", "failed"} else None)
    controllers.start()
    await settled.wait()
    await ui.settled()
    try:
        yield Bench(
            controllers, context, ui, world, prompt, answers, talk, pages, desk, insight, runs, outline, engines, jobs
        )  # fmt: skip
    finally:
        for _, task in ui.tasks:
            task.cancel()
        await asyncio.gather(*(task for _, task in ui.tasks), return_exceptions=True)
