"""What is drawn to pick from: which prompts, under which views, how many answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.app.screens.view_list import ViewList
from dlm_tui.plain_numbers import whole_number
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import literal

MOST = 16


@dataclass(frozen=True)
class Draw:
    """The prompts of `source`, each answered `count` times under the views taken together."""

    source: str
    views: list[str]
    count: int


class DrawScreen(Dialog[Draw]):
    """Answers are drawn from the prompts and views that are marked, then shown in pairs without their names."""

    TITLE_TEXT = "Draw answers and pick the better ones"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Draw"),
        ("dialog.mark", "Mark view"),
        ("dialog.close", "Cancel"),
    )

    def __init__(
        self,
        sources: Mapping[str, str],
        views: Sequence[str],
        marked: Sequence[str],
        marks: Mapping[str, Mark],
        counter: str,
        note: str,
    ) -> None:
        """`sources`: name of a source of prompts → how it is called here; `counter` and `note` are sentences."""
        super().__init__()
        self._sources, self._views, self._marked, self._marks = dict(sources), views, marked, marks
        self._counter, self._note = counter, note

    def compose_body(self) -> ComposeResult:
        """Prompts and views beside each other, how many answers, what there is already."""
        with Horizontal(id="draw-lists"):
            with Vertical():
                yield LiteralStatic("Prompts", classes="field")
                rows = [Option(literal(text, one_line=True)) for text in self._sources.values()]
                yield PickList(*rows, id="draw-source", markup=False)
            with Vertical():
                yield LiteralStatic("Views", classes="field")
                yield ViewList(self._views, self._marked, self._marks, id="draw-views")
        yield LiteralStatic(f"Answers per prompt, 2 to {MOST}", classes="field")
        yield Input(value="4", id="draw-count", type="integer")
        yield LiteralStatic(literal(self._note), classes="note")
        yield LiteralStatic(literal(self._counter), classes="note", id="draw-counter")
        yield LiteralStatic(id="draw-problem")

    def on_mount(self) -> None:
        """Start at the prompts."""
        super().on_mount()
        source = self.query_one("#draw-source", PickList)
        source.highlighted = 0
        source.focus()

    def action_mark(self) -> None:
        """Take the highlighted view in, or leave it out."""
        self.query_one(ViewList).toggle()

    @on(OptionList.OptionSelected, "#draw-views")
    def _view_chosen(self) -> None:
        self.action_mark()

    @on(OptionList.OptionSelected, "#draw-source")
    @on(Input.Submitted)
    def _accepted(self) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Draw."""
        problem = self.query_one("#draw-problem", LiteralStatic)
        views = self.query_one(ViewList).marked
        text = self.query_one(Input).value.strip()
        try:
            count = whole_number(text)
        except ValueError:
            count = 0
        if not views or not 2 <= count <= MOST:
            problem.show(literal("Mark a view first." if not views else f"2 to {MOST} answers.", "$error"))
            return
        source = list(self._sources)[self.query_one("#draw-source", PickList).highlighted or 0]
        self.dismiss(Draw(source, views, count))
