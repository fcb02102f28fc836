"""What all controllers share: the open document and its store, the remembered state, the engine, jobs, the screen."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from dlm_tui.app.config import Config
from dlm_tui.app.controllers.saving import StateSaver
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.app.controllers.ui import Ui
from dlm_tui.app.engine_link import EngineLink, LinkState
from dlm_tui.app.job_line import JobLine
from dlm_tui.app.jobs import JobBoard, JobRecord
from dlm_tui.app.keys import BY_ID, display, keys_of
from dlm_tui.app.setup import Setup
from dlm_tui.app.state import State
from dlm_tui.app.themes import adapter_palette
from dlm_tui.document import Document
from dlm_tui.document.sources import Survey
from dlm_tui.engine.protocol import Event, Open, Opened
from dlm_tui.store import KeptAnswers, Store, adapter_versions
from dlm_widgets.adapter_palette import Mark, marks_for


@dataclass
class Context:
    """Facts and services, no behaviour of the program. A controller reads and writes it and knows nobody above it."""

    setup: Setup
    ui: Ui
    config: Config
    document: Document
    store: Store
    state: State
    saver: StateSaver
    link: EngineLink
    board: JobBoard
    engine_changed: Signal[[LinkState]] = field(default_factory=Signal)
    job_changed: Signal[[JobRecord, Event | None]] = field(default_factory=Signal)
    document_error: str | None = None
    """Why the last save cannot be read; `document` is then the last good state."""
    survey: Survey | None = None
    """What the folders of `training.sources` hold; None while that is not known, or where there are none."""
    new_files: frozenset[str] = frozenset()
    """Ids of the survey's sections that no training has taken in yet."""
    news: str = ""
    """What was trained elsewhere and is not in force here yet, in a few words; empty where there is nothing."""
    on_disk: frozenset[str] = frozenset()
    """Adapters that were trained elsewhere, while the engine has nothing of them."""
    store_is_gone: bool = False
    """Whether the store was moved, removed or unmounted since its adapters were read from it."""
    gate_run: int | None = None
    """The training run that the gate in force comes from, as far as it is known."""

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters in declared order, or the one flat adapter."""
        return self.document.routing_names

    @property
    def archive(self) -> KeptAnswers:
        """The answers that were given to the document's prompts."""
        return self.setup.state_file.answers

    @property
    def opened(self) -> Opened | None:
        """What the engine last opened."""
        return self.link.state.opened

    @property
    def trained_names(self) -> tuple[str, ...]:
        """Adapters that the engine has weights of, in declared order; none until it has opened the document."""
        opened = self.opened
        return tuple(name for name in self.names if opened and name in opened.adapters)

    async def names_in_force(self) -> tuple[str, ...]:
        """Adapters that have weights, in declared order: what the engine opened; until it has, what the store says.

        Raises StoreError, OSError.
        """
        if self.opened is not None:
            return self.trained_names
        return tuple(await asyncio.to_thread(adapter_versions, self.store, self.names))

    @property
    def marks(self) -> dict[str, Mark]:
        """The adapters' colours and glyphs under the current theme."""
        return marks_for(self.names, adapter_palette(self.ui.theme, self.config.look.palette))

    @property
    def background(self) -> str:
        """The colour that tints are blended with."""
        return self.ui.theme.background or "#14171c"

    @property
    def labels(self) -> dict[str, str]:
        """What bindings do now, by id, where that is not what the key table says."""
        return {"jobs.pause": "Go on"} if self.board.line is not None and self.board.line.held else {}

    def key(self, key_id: str) -> str:
        """The key in force for a binding, as it is shown."""
        return display(keys_of(BY_ID[key_id], self.config.keys)[0])


def open_context(setup: Setup, ui: Ui) -> Context:
    """Read the remembered state and make ready an engine link and a job board; nothing is started yet."""
    state = setup.state_file.load()
    state.document = str(setup.path)
    state.mix.keep_only([*setup.document.routing_names, *state.desk_versions])
    engine_changed: Signal[[LinkState]] = Signal()
    job_changed: Signal[[JobRecord, Event | None]] = Signal()
    request = Open(document=str(setup.path), home=str(setup.home), base=setup.base, dtype=setup.config.generate.dtype)
    store, board = Store(setup.home, setup.document.dlm_id), JobBoard(setup.job_starter, job_changed.emit)
    if setup.runner_starter is not None:
        board.line = JobLine(store, board, setup.runner_starter)
    return Context(
        setup=setup,
        ui=ui,
        config=setup.config,
        document=setup.document,
        store=store,
        state=state,
        saver=StateSaver(setup.state_file, state, ui),
        link=EngineLink(setup.engine_factory, request, engine_changed.emit),
        board=board,
        engine_changed=engine_changed,
        job_changed=job_changed,
    )
