"""What controllers draw on: the part of each pane that they use, so that a test can stand in for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from textual.content import Content

from dlm_tui.app.cards import CardKey, FinishedCard
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.document import Document
from dlm_tui.document.problems import Problem
from dlm_tui.document.sources import Survey
from dlm_tui.engine.protocol import Routed, Scored
from dlm_tui.store import GateRun
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.key_bar import KeyHint
from dlm_widgets.mixing_desk import Channel
from dlm_widgets.turn_card import ShownTurn


class Redrawn(Protocol):
    """Anything that draws itself in a moment when it is asked."""

    def ask(self) -> None:
        """What is shown has changed."""


class TitledSurface(Protocol):
    """Anything with a title line."""

    def retitle(self, *details: str | Content) -> None:
        """Words on the title line."""


class PromptSurface(TitledSurface, Protocol):
    """The prompt that is being typed."""

    @property
    def text(self) -> str:
        """What is typed."""

    def set_text(self, text: str) -> None:
        """Replace it."""


class DeskSurface(Redrawn, TitledSurface, Protocol):
    """The mixing desk."""

    @property
    def selected(self) -> str | None:
        """The adapter of the selected strip."""

    def show(self, channels: Sequence[Channel], *, stale: bool) -> None:
        """The strips; `stale` while no engine answers."""

    def note(self, content: str | Content) -> None:
        """The line under the strips."""

    def turns(self, content: Content) -> None:
        """The mixes of a conversation's turns; empty hides them."""

    def draw(self) -> None:
        """Draw at once."""


class InsightSurface(Protocol):
    """Why the gate chose as it did."""

    @property
    def display(self) -> bool:
        """Whether it is on the screen."""

    def clear(self, hint: str) -> None:
        """Say why there is nothing to see."""

    def recolour(self, marks: Mapping[str, Mark], background: str) -> None:
        """Show what is shown in other colours."""

    def show_route(self, routed: Routed, names: Sequence[str], marks: Mapping[str, Mark], background: str) -> None:
        """Attributions and trajectory of an explained route."""

    def show_scores(self, scored: Scored, marks: Mapping[str, Mark]) -> None:
        """Effect sizes."""

    def effect_pending(self, text: str) -> None:
        """The effect size is being worked out, or cannot be."""


class CardSurface(Protocol):
    """One answer."""

    @property
    def view(self) -> str:
        """The name of the view that answered."""

    @property
    def text(self) -> str:
        """What it wrote so far."""


class AnswersSurface(Protocol):
    """The answers."""

    @property
    def current(self) -> CardSurface | None:
        """The answer a person looks at."""

    @property
    def answers(self) -> Sequence[CardSurface]:
        """All answers that are shown, in order."""

    def hint(self, content: str | Content) -> None:
        """What to do while there is no answer."""

    @property
    def current_index(self) -> int | None:
        """The place of that answer among those that are shown."""

    async def begin(self, keys: Sequence[CardKey], marks: Mapping[str, Mark]) -> None:
        """Make ready for these answers."""

    async def show_finished(self, cards: Sequence[FinishedCard], marks: Mapping[str, Mark]) -> None:
        """Show answers that were given before, in place of those that are there."""

    async def lay_beside(self, card: FinishedCard, marks: Mapping[str, Mark]) -> None:
        """Show one more answer behind the others."""

    def mark_past(self, words: Sequence[str]) -> None:
        """For each answer why it is not one of now, else an empty text."""

    def recolour(self, marks: Mapping[str, Mark], card_width: int) -> None:
        """The same answers in other colours, and in columns of at least so many cells."""

    def took(self, words: str) -> None:
        """How long the answers took."""

    def reading(self, words: str) -> None:
        """How much of the prompt has been read."""

    def add(self, key: CardKey, text: str, heat: float | None) -> None:
        """A token of one answer; `heat` is its log-probability above the base's, nats."""

    def finish(self, key: CardKey, text: str, note: str) -> None:
        """One answer is complete."""

    def stop(self, note: str) -> None:
        """Whatever is still being written has ended."""


class TalkSurface(Protocol):
    """A conversation: the turns of one branch."""

    @property
    def marked(self) -> int | None:
        """The id of the marked turn."""

    async def show(self, turns: Sequence[ShownTurn], marks: Mapping[str, Mark]) -> None:
        """These turns, the first one first."""

    def head_last(self, turn: ShownTurn) -> None:
        """Another heading for the turn that is being answered."""

    def add(self, piece: str) -> None:
        """More of the last turn's answer."""

    def finish(self, turn: ShownTurn) -> None:
        """The last turn's answer is complete."""

    def rename(self, turn: int, name: int) -> None:
        """A turn has another id now."""

    def hint(self, content: str | Content) -> None:
        """What to do while there is no turn."""

    def next_words(self, content: str | Content) -> None:
        """What is said about the turn that is asked next."""

    def retitle(self, *details: str | Content) -> None:
        """Words on the title line."""


class RunsSurface(Protocol):
    """The gate's history and the losses of the current run."""

    def show_history(
        self,
        history: Sequence[GateRun],
        names: Sequence[str],
        marks: Mapping[str, Mark],
        traffic: Mapping[int, float],
        *,
        has_gate: bool,
    ) -> None:
        """Runs with gate events, oldest first; run → mean entropy of the requests served under its gate, nats."""

    def show_kinds(self, kinds: Mapping[str, str]) -> None:
        """How the versions in force were trained, in words, by adapter."""

    def begin_losses(self, scope: str | None = None) -> None:
        """A training begins, of `scope` alone if that is given: what was drawn of it goes."""

    def add_loss(self, scope: str, kind: str | None, step: float, loss: float) -> None:
        """One step of the current run; the loss is of a kind of `losses.UNITS`."""


class OutlineSurface(Protocol):
    """The document's outline."""

    def show_error(self, text: str | None, at: int = 1) -> None:
        """Why the last save cannot be read, and the line where that is."""

    def show(
        self,
        document: Document,
        problems: Sequence[Problem],
        marks: Mapping[str, Mark],
        versions: Mapping[str, int | None] | None,
        trained_sections: set[str],
        from_files: Mapping[str | None, int],
    ) -> None:
        """Adapters with their sections, how many files teach each, and what is wrong.

        A version of None is on disk only.
        """

    def show_files(self, survey: Survey | None, new: Collection[str]) -> None:
        """What comes from source folders, below the sections; `new` are ids that no training has taken in."""

    def show_reading(self, text: str | None) -> None:
        """How far the pass over the source folders is."""


class Pages(Protocol):
    """What is in front and where the focus is, for controllers that have something to show there."""

    @property
    def rearranged(self) -> Signal[[]]:
        """Other panes may be visible now."""

    def show_page(self, page: str) -> None:
        """Bring a page to the front."""

    def go_to(self, pane_id: str) -> None:
        """Show a pane and give it the focus."""

    @property
    def focused_pane(self) -> str | None:
        """The id of the pane that has the focus."""

    def focus_pane(self, pane_id: str) -> bool:
        """Give a pane the focus; False when it has nothing to focus."""

    def end_zoom(self) -> bool:
        """Show everything again; False when nothing is zoomed."""

    def is_shown(self, pane_id: str) -> bool:
        """Whether a pane is on the screen."""

    def draw_tabs(self) -> None:
        """The tabs, with a mark on the jobs while one runs, or failed and nobody has looked."""


class KeysSurface(Protocol):
    """A row of keys."""

    def show(self, hints: Sequence[KeyHint], always: Sequence[KeyHint] = ()) -> None:
        """These, and at the end those that always stay."""
