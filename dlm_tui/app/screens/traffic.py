"""The last requests that were served, with the weights the gate gave them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.keys import BY_ID
from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.moments import local_time
from dlm_tui.store.traffic import TrafficRow
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, literal, sanitize

_NO_PROMPT = "Its text was not kept; keep_prompts under [serve] in config.toml keeps the last ones."


@dataclass(frozen=True)
class Taken:
    """A request's prompt, to look at or to label."""

    prompt: str
    label: bool = False


class TrafficScreen(Dialog[Taken]):
    """Newest first; Enter takes a prompt into the editor, the mark key labels it."""

    TITLE_TEXT = "Served requests"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Take it"),
        ("dialog.mark", "Label"),
        ("dialog.copy", "Copy address"),
        ("dialog.close", "Close"),
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(BY_ID["serve.toggle"].keys, "toggle_server", show=False, id="serve.toggle")
    ]

    def __init__(self, marks: Mapping[str, Mark]) -> None:
        super().__init__()
        self._marks = marks
        self._rows: list[TrafficRow] = []
        self.on_copy: Callable[[], object] = lambda: None
        self.on_toggle: Callable[[], object] = lambda: None

    def compose_body(self) -> ComposeResult:
        """A line about the server, the requests, and a line for what cannot be done."""
        yield LiteralStatic(id="traffic-state")
        yield PickList(id="traffic-list", markup=False)
        yield LiteralStatic(classes="note", id="traffic-note")

    def on_mount(self) -> None:
        """The list has the focus."""
        super().on_mount()
        self.query_one(PickList).focus()

    def action_toggle_server(self) -> None:
        """Start the server, or stop it, as the line above the requests says."""
        self.on_toggle()

    def show(self, rows: Sequence[TrafficRow], state: str) -> None:
        """Requests oldest first, and a line about the server; the highlighted request stays highlighted."""
        self.query_one("#traffic-state", LiteralStatic).show(literal(state, "dim"))
        if [row.traffic_id for row in reversed(rows)] == [row.traffic_id for row in self._rows]:
            return
        listing = self.query_one(PickList)
        chosen = self.chosen.traffic_id if self.chosen is not None and listing.highlighted else None
        self._rows = list(reversed(rows))
        listing.set_options([Option(self._row(row)) for row in self._rows])
        places = [place for place, row in enumerate(self._rows) if row.traffic_id == chosen]
        listing.highlighted = places[0] if places else (0 if self._rows else None)

    @property
    def chosen(self) -> TrafficRow | None:
        """The highlighted request."""
        index = self.query_one(PickList).highlighted
        return self._rows[index] if index is not None and index < len(self._rows) else None

    def _row(self, row: TrafficRow) -> Content:
        parts: list[str | tuple[str, str]] = [(f"{local_time(row.at, '%H:%M:%S')} ", "dim")]
        for name, weight in row.weights.items():
            mark = self._marks.get(name)
            parts.append((f"{mark.glyph if mark else name} {weight:.2f} ", mark.color if mark else ""))
        if row.view != "gated":
            parts.append((f"{sanitize(row.view, one_line=True)[:24]} ", "dim"))
        if row.is_ood:
            parts.append(("unlike ", "bold $warning"))
        if row.finish != "ok":
            parts.append((f"{row.finish} ", "$warning"))
        prompt = sanitize(row.prompt, one_line=True)[:300] if row.prompt else "\u2013"
        return assemble(*parts, prompt)

    @on(OptionList.OptionSelected)
    def _selected(self) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Take the highlighted prompt into the editor."""
        self._take(label=False)

    def action_mark(self) -> None:
        """Take it and say which adapter it belongs to."""
        self._take(label=True)

    def action_copy_command(self) -> None:
        """Copy the address."""
        self.on_copy()

    def _take(self, *, label: bool) -> None:
        if self.chosen is None:
            return
        if not self.chosen.prompt:
            self.query_one("#traffic-note", LiteralStatic).show(literal(_NO_PROMPT, "$warning"))
            return
        self.dismiss(Taken(self.chosen.prompt, label))
