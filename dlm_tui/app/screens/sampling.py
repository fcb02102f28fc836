"""How the next answers are sampled: five numbers."""

from __future__ import annotations

from typing import ClassVar

import msgspec
from textual.app import ComposeResult
from textual.containers import Grid
from textual.widgets import Input

from dlm_tui.app.config import MOST_SAMPLES, SamplingSettings
from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.plain_numbers import number, whole_number
from dlm_tui.refused_field import place_of
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import literal

_FIELDS = (
    ("temperature", "Temperature", "0 is greedy, at most 10", "from 0 to 10"),
    ("top_p", "Top-p", "likeliest share, 1 is all", "above 0, and at most 1"),
    ("max_tokens", "Tokens", "at most, 1 to 4096", "from 1 to 4096"),
    ("seed", "Seed", "same seed, same answer", f"from 0 to {2**31 - 1}"),
    ("samples", "Samples", f"side by side, 1 to {MOST_SAMPLES}", f"from 1 to {MOST_SAMPLES}"),
)
"""Name, label, a word about it, and which numbers it may be, as `SamplingSettings` checks them."""


class SamplingScreen(Dialog[SamplingSettings]):
    """Enter goes on, in the last field it asks."""

    TITLE_TEXT = "How answers are sampled"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.accept", "Ask with these"), ("dialog.close", "Cancel"))

    def __init__(self, settings: SamplingSettings) -> None:
        super().__init__()
        self._settings = settings

    def compose_body(self) -> ComposeResult:
        """A name, a field and a word about it in each row."""
        with Grid(id="sampling-fields"):
            for name, label, note, _ in _FIELDS:
                yield LiteralStatic(label, classes="sampling-label")
                yield Input(value=_number(getattr(self._settings, name)), id=f"sampling-{name}")
                yield LiteralStatic(note, classes="sampling-note")
        yield LiteralStatic(classes="note", id="sampling-problem")

    def on_mount(self) -> None:
        """Begin with the temperature."""
        super().on_mount()
        self.query_one("#sampling-temperature", Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The next field, after the last one the answer."""
        if event.input.id == f"sampling-{_FIELDS[-1][0]}":
            self.action_accept()
        else:
            self.focus_next()

    def action_accept(self) -> None:
        """Ask, if the numbers can be used."""
        found: dict[str, float | int] = {}
        for name, label, _, _ in _FIELDS:
            text = self.query_one(f"#sampling-{name}", Input).value.strip()
            broken = name in ("temperature", "top_p")
            try:
                found[name] = number(text) if broken else whole_number(text)
            except ValueError:
                self._refuse(name, f"{label}: {text!r} is not a {'number' if broken else 'whole number'}")
                return
        try:
            settings = msgspec.convert(found, SamplingSettings)
        except msgspec.ValidationError as error:
            name, label, _, allowed = next(field for field in _FIELDS if field[0] == place_of(error))
            self._refuse(name, f"{label} is {allowed}, not {found[name]}")
            return
        self.dismiss(settings)

    def _refuse(self, name: str, why: str) -> None:
        self.query_one("#sampling-problem", LiteralStatic).show(literal(why, "$error"))
        self.query_one(f"#sampling-{name}", Input).focus()


def _number(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
