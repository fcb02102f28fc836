"""Every version of every adapter: one key puts it in force, one goes back to before the last training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from rich.cells import cell_len
from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.counting import counted
from dlm_tui.losses import SFT
from dlm_tui.moments import local_time
from dlm_tui.store.adapter_history import VersionFacts
from dlm_tui.store.former_gates import GateFacts
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, literal

_DETAILS = 21
"""The column where the details of a version begin."""


class AdaptersScreen(Dialog[None]):
    """Newest versions first within each adapter; `*` is in force, `k` is kept, a square is on the desk. The effect on
    the adapter's own sections is in nats a token, with a `!` where it is next to nothing.

    The keys put a version in force, go back to before the last training, and give a version a fader of its own.
    """

    TITLE_TEXT = "Versions of the adapters"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Use"),
        ("dialog.back", "Back"),
        ("dialog.mark", "Desk"),
        ("dialog.keep", "Keep"),
        ("dialog.delete", "Drop"),
        ("dialog.moved", "Diff"),
        ("dialog.close", "Close"),
    )

    def __init__(
        self,
        facts: Sequence[VersionFacts],
        marks: Mapping[str, Mark],
        on_desk: Sequence[str],
        gates: Sequence[GateFacts] = (),
    ) -> None:
        super().__init__()
        self._marks, self._on_desk, self._gates = marks, tuple(on_desk), tuple(gates)
        self._facts: list[VersionFacts | GateFacts] = [*_ordered(facts), *gates]
        self._first = ""
        self.on_compare: Callable[[str, str], object] = lambda before, after: None
        self.on_use: Callable[[VersionFacts], object] = lambda chosen: None
        self.on_back: Callable[[], object] = lambda: None
        self.on_keep: Callable[[VersionFacts], object] = lambda chosen: None
        self.on_drop: Callable[[VersionFacts], object] = lambda chosen: None
        self.on_mark: Callable[[VersionFacts], object] = lambda chosen: None

    def compose_body(self) -> ComposeResult:
        """The list, and a line for what was done."""
        yield PickList(id="version-list", markup=False)
        yield LiteralStatic(classes="note", id="version-note")

    def on_mount(self) -> None:
        """The version in force of the first adapter is marked."""
        super().on_mount()
        self._fill(0)
        self.query_one(PickList).focus()

    def on_resize(self) -> None:
        """Lines as long as there is room."""
        super().on_resize()
        self.call_after_refresh(lambda: self._fill(self.query_one(PickList).highlighted or 0))

    def show(self, facts: Sequence[VersionFacts] | None, on_desk: Sequence[str]) -> None:
        """What there is now (None: the same versions), and which of them are on the desk."""
        if facts is not None:
            self._facts = [*_ordered(facts), *self._gates]
        self._on_desk = tuple(on_desk)
        self._fill(self.query_one(PickList).highlighted or 0)

    def say(self, text: str, *, error: bool = False) -> None:
        """What was done, or why not."""
        self.query_one("#version-note", LiteralStatic).show(literal(text, "$error" if error else ""))

    @property
    def chosen(self) -> VersionFacts | None:
        """The highlighted version of an adapter; a gate is only compared, which is then said."""
        row = self._highlighted
        if isinstance(row, GateFacts):
            self.say("Gates are trained, not chosen; c compares two of them.")
            return None
        return row

    @property
    def _highlighted(self) -> VersionFacts | GateFacts | None:
        index = self.query_one(PickList).highlighted
        return self._facts[index] if index is not None and index < len(self._facts) else None

    def _fill(self, index: int) -> None:
        listing = self.query_one(PickList)
        listing.set_options([Option(self._row(facts)) for facts in self._facts])
        listing.highlighted = min(index, len(self._facts) - 1) if self._facts else None

    def _row(self, facts: VersionFacts | GateFacts) -> Content:
        first = "c" if self._called(facts) == self._first else " "
        if isinstance(facts, GateFacts):
            when = local_time(facts.when or "", "%m-%d %H:%M")
            details = [when, f"training {facts.training or '?'}", facts.mode, counted(len(facts.names), "adapter")]
            return assemble(
                (f"  {self._called(facts):<14s}", "bold" if facts.in_force else ""),
                f" {'*' if facts.in_force else ' '} {first} ",
                (" \u00b7 ".join(part for part in details if part), "dim"),
            )
        mark, name = self._marks.get(facts.name), f"{facts.name}@{facts.version}"
        signs = ("*" if facts.in_force else " ") + ("k" if facts.kept else " ")
        desk = "\u25a0" if name in self._on_desk else " "
        told_by_one = facts.last_loss is None or facts.last_loss.kind in (None, SFT)
        details = [
            local_time(facts.when or "", "%m-%d %H:%M"),
            f"training {facts.training}" if facts.training is not None else facts.origin[:24],
            facts.kind.removeprefix("lora "),
            *(facts.loss_words[-1:] if told_by_one else facts.loss_words),
            f"effect {facts.effect.kl:.3g} nats a token{' (!)' if facts.effect.nothing else ''}"
            if facts.effect
            else "",
            f"{facts.size / 1e6:.1f} MB",
            counted(len(facts.exports), "export") if facts.exports else "",
        ]
        return assemble(
            (f"{mark.glyph if mark else ' '} ", mark.color if mark else ""),
            (f"{name:<14s}", "bold" if facts.in_force else ""),
            f" {signs}{desk if first == ' ' else first} ",
            (self._wrapped([part for part in details if part]), "dim"),
        )

    def _wrapped(self, details: Sequence[str]) -> str:
        """The details of a version, below one another where they are more than a line."""
        width = self.query_one(PickList).scrollable_content_region.width or self.app.size.width
        room = width - _DETAILS
        lines = [""]
        for part in details:
            joined = f"{lines[-1]} \u00b7 {part}" if lines[-1] else part
            if lines[-1] and cell_len(joined) > room:
                lines.append(part)
            else:
                lines[-1] = joined
        return f"\n{' ' * _DETAILS}".join(lines)

    @on(OptionList.OptionSelected)
    def _selected(self) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Put the highlighted version in force."""
        if self.chosen is not None:
            self.on_use(self.chosen)

    def action_back(self) -> None:
        """All adapters of the last training back to what they were before it."""
        self.on_back()

    def action_keep(self) -> None:
        """`prune` leaves it, or no longer."""
        if self.chosen is not None:
            self.on_keep(self.chosen)

    def action_delete(self) -> None:
        """Delete the highlighted version."""
        if self.chosen is not None:
            self.on_drop(self.chosen)

    def action_moved(self) -> None:
        """The first press marks, one on another version of the same adapter (or gate) shows what moved."""
        row = self._highlighted
        if row is None:
            return
        name, first = self._called(row), self._first
        if first and first != name and first.partition("@")[0] != name.partition("@")[0]:
            self.say(f"{first} and {name} are not versions of one thing.", error=True)
            return
        self._first = "" if first else name
        self._fill(self.query_one(PickList).highlighted or 0)
        if not first:
            self.say(f"{name} is marked; press it on another version to see what moved.")
        elif first == name:
            self.say("")
        else:
            self.say("")
            self.on_compare(first, name)

    def _called(self, facts: VersionFacts | GateFacts) -> str:
        """As it is called in a comparison; the gate has another word where an adapter has its."""
        if isinstance(facts, GateFacts):
            return f"{'_gate' if 'gate' in self._marks else 'gate'}@{facts.run}"
        return f"{facts.name}@{facts.version}"

    def action_mark(self) -> None:
        """A fader and a place in Compare for the highlighted version, or neither."""
        if self.chosen is not None:
            self.on_mark(self.chosen)


def _ordered(facts: Sequence[VersionFacts]) -> list[VersionFacts]:
    """Adapters in their order, newest versions first."""
    names = list(dict.fromkeys(one.name for one in facts))
    return sorted(facts, key=lambda one: (names.index(one.name), -one.version))
