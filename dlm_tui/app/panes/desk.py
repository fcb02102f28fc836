"""The mixing desk with the gate's live weights, entropy and mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from dlm_tui.app.keys import bindings_for
from dlm_tui.app.panes.pane import Pane
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.mixing_desk import Channel, MixingDesk, Part
from dlm_widgets.throttled import Throttled


class DeskPane(Pane, Throttled):
    """One strip per adapter, and one line that says what the gate is doing; `fill` puts in what they show."""

    TITLE = "Mix"
    JUMP = "m"
    DRAWS_PER_SECOND: ClassVar[float] = 30.0  # it follows the fingers
    BINDINGS: ClassVar[list[BindingType]] = list(bindings_for("desk"))

    class ResetPressed(Message):
        """Back to the gate alone."""

    class SweepPressed(Message):
        """Sweep the selected adapter."""

    def __init__(self, fill: Callable[[], None]) -> None:
        super().__init__(id="desk")
        self._fill = fill

    def compose(self) -> ComposeResult:
        """Strips, then the note."""
        yield MixingDesk(id="strips")
        yield LiteralStatic(id="desk-turns")
        yield LiteralStatic(id="desk-note")

    @property
    def strips(self) -> MixingDesk:
        """The strips."""
        return self.query_one(MixingDesk)

    @property
    def selected(self) -> str | None:
        """The adapter of the selected strip."""
        return self.strips.selected

    def show(self, channels: Sequence[Channel], *, stale: bool) -> None:
        """The strips; `stale` while no engine answers."""
        self.strips.stale = stale
        self.strips.set_channels(channels)

    def draw(self) -> None:
        """Show the mix as it is now."""
        self._fill()

    def note(self, content: str | Content) -> None:
        """The line under the strips; empty hides it."""
        self._say("#desk-note", content)

    def turns(self, content: Content) -> None:
        """The mixes of a conversation's turns, in one line; empty hides it."""
        self._say("#desk-turns", content)

    def _say(self, name: str, content: str | Content) -> None:
        line = self.query_one(name, LiteralStatic)
        line.show(content)
        if line.display != bool(line.text):
            line.display = bool(line.text)
            # a row below that only moved was once left unpainted by the library
            self.call_after_refresh(self.screen.refresh)

    def on_mount(self) -> None:
        """No conversation yet."""
        super().on_mount()
        self.turns(Content(""))

    def focus_target(self) -> Widget:
        """The strips."""
        return self.strips

    def action_cursor(self, step: int) -> None:
        """Select another strip."""
        self.strips.move_cursor(step)

    def action_nudge(self, amount: float) -> None:
        """Move the selected fader."""
        self.strips.nudge(amount)

    def action_press_part(self, part: Part) -> None:
        """Solo, mute or pin."""
        self.strips.press(part)

    def action_mix_reset(self) -> None:
        """Back to the gate."""
        self.post_message(self.ResetPressed())

    def action_sweep(self) -> None:
        """Sweep the selected adapter."""
        self.post_message(self.SweepPressed())
