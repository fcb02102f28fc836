"""A sweep: one adapter from -2 to 2, everything else as on the desk; where the document has a preference pair of the
adapter, also what becomes of both its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content

from dlm_tui.app.progress import progress_words
from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.engine.protocol import Progress
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.bars import bar_text
from dlm_widgets.literal_static import LiteralStatic, ThrottledStatic
from dlm_widgets.sanitize import assemble, fit, literal

SIDES = ("chosen", "rejected")
_LEAST_ROOM = 12


class SweepScreen(Dialog[None]):
    """Coefficient, KL to the base in nats, the answer."""

    SCROLLS: ClassVar[bool] = True
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.close", "Close"),)

    def __init__(self, name: str, mark: Mark, steps: Sequence[float]) -> None:
        super().__init__()
        self._adapter, self._mark = name, mark
        self._texts = {f"{step:+.1f}": "" for step in steps}
        self._kl: dict[str, float] = {}
        self._sides: dict[str, dict[str, float]] = {}
        self._steps = {f"{step:+.1f}": step for step in steps}
        self._note, self._failed = "measuring\u2026", False

    def compose_body(self) -> ComposeResult:
        """One growing text."""
        yield LiteralStatic(classes="note", id="sweep-pair")
        yield Vertical(id="sweep-chart")
        yield ThrottledStatic(self._rows, id="sweep")
        yield ThrottledStatic(lambda: fit(self._note, 88).rstrip(), classes="note", id="sweep-note")

    def on_mount(self) -> None:
        """Show the steps."""
        super().on_mount()
        self.retitle(f"Sweep of {self._adapter}: coefficient, KL to the base (nats), answer")
        for part in ("#sweep-chart", "#sweep-pair"):
            self.query_one(part).display = False
        self._ask()

    def on_resize(self) -> None:
        """Answers as wide as there is room."""
        super().on_resize()
        self.call_after_refresh(self._ask)

    def set_pair(self, prompt: str) -> None:
        """Both answers of a pair with this prompt will be followed, too."""
        self.retitle(f"Sweep of {self._adapter}: c, KL, log p chosen, log p rejected (nats), answer")
        note = self.query_one("#sweep-pair", LiteralStatic)
        note.show(literal(f"The pair is the document's at: {prompt}", one_line=True))
        note.display = True

    def set_side(self, side: str, logprobs: Mapping[str, float]) -> None:
        """Log-probability (nats) of the chosen or of the rejected answer at every step."""
        self._sides[side] = dict(logprobs)
        if len(self._sides) == len(SIDES):
            self._draw_chart()
        self._ask()

    def _draw_chart(self) -> None:
        """Both sides against the base, and the effect: all in nats, over the coefficient."""
        from dlm_widgets.history_chart import HistoryChart, Series

        zero = next(view for view, step in self._steps.items() if step == 0.0)
        theme = self.app.current_theme
        curves = {"chosen": theme.success or "ansi_green", "rejected": theme.error or "ansi_red"}
        lines = [
            Series(
                side,
                color,
                tuple((step, self._sides[side][view] - self._sides[side][zero]) for view, step in self._steps.items()),
            )
            for side, color in curves.items()
        ]
        if self._kl:
            effect = tuple((step, self._kl[view]) for view, step in self._steps.items())
            lines.append(Series("effect", self._mark.color, effect))
        area = self.query_one("#sweep-chart")
        area.display = True
        chart = HistoryChart("nats above the base, over c", lower=None)
        area.mount(chart)
        chart.show(lines)

    def _ask(self) -> None:
        for line in self.query(ThrottledStatic):
            line.ask()

    def add_text(self, view: str, text: str) -> None:
        """A token of one step."""
        self._texts[view] = self._texts.get(view, "") + text
        if not self._failed:
            self._note = "writing\u2026"
        self._ask()

    def set_scores(self, kl: Mapping[str, float]) -> None:
        """KL of every step."""
        self._kl = dict(kl)
        self._note = "writing\u2026"
        self._ask()

    def show_progress(self, event: Progress) -> None:
        """How far the measuring or the reading of the prompt is."""
        self._note = progress_words(event)
        self._ask()

    def set_problem(self, text: str) -> None:
        """What went wrong."""
        self._note, self._failed = text, True
        self._ask()

    def set_done(self) -> None:
        """Everything is here."""
        if not self._failed:
            self._note = "0 leaves the adapter out, 1 is the adapter as trained, negative turns it around."
        self._ask()

    def _rows(self) -> Content:
        top = max([1e-9, *(value for value in self._kl.values() if value == value)])
        rows: list[Content] = []
        for view, text in self._texts.items():
            kl = self._kl.get(view)
            bar = bar_text(kl / top, 8) if kl is not None else " " * 8
            shown = f"{kl:6.2f}" if kl is not None else "     \u2026"
            both = "".join(f"{self._sides[side][view]:8.2f}" for side in SIDES if side in self._sides)
            lead = assemble((f"{view} ", f"bold {self._mark.color}"), shown, " ", (bar, self._mark.color), both, " ")
            rows.append(_hanging(lead, literal(text), self.query_one("#sweep").content_size.width))
        return Content("\n").join(rows)


def _hanging(lead: Content, text: Content, width: int) -> Content:
    """Text beside `lead`, below itself where it is more than a line; as it comes where there is no room for that."""
    room = width - lead.cell_length
    if room < _LEAST_ROOM:
        return lead + text
    return lead + Content(f"\n{' ' * lead.cell_length}").join(text.wrap(room))
