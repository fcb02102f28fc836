"""Mixes with names: the desk is saved under one, put back, compared, exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.mix import MixChoice
from dlm_tui.app.screens.beside import FileBeside
from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.document.named_mixes import NamedMixes, NamedMixesError, check_mix_name
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.key_bar import KeyBar
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, literal


class NamedMixesScreen(Dialog[MixChoice]):
    """The accept key saves the desk under the typed name; Enter on a mix puts it on the desk."""

    TITLE_TEXT = "Named mixes"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Save desk"),
        ("dialog.close", "Close"),
    )
    WITH_A_MIX: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.mark", "Mark"),
        ("dialog.compare", "Compare"),
        ("dialog.export", "Export"),
        ("dialog.delete", "Drop"),
    )

    def __init__(
        self, file: NamedMixes, desk: Mapping[str, float], adapters: Sequence[str], marks: Mapping[str, Mark]
    ) -> None:
        super().__init__()
        self._file, self._desk, self._adapters, self._marks = file, dict(desk), adapters, marks
        self._held = FileBeside(self, file.load, file.update, self._changed)
        self._marked: set[str] = set()

    @property
    def _mixes(self) -> dict[str, dict[str, float]]:
        return self._held.items

    def compose_body(self) -> ComposeResult:
        """The name to save under, and what is saved."""
        yield LiteralStatic(assemble(("On the desk: ", "dim")) + self._words(self._desk))
        yield LiteralStatic("Save it under the name", classes="field")
        yield Input(placeholder="a-z, 0-9, _ and -", id="mix-name")
        yield PickList(id="mix-list", markup=False)
        yield KeyBar(id="mix-keys")
        yield LiteralStatic(assemble(("Kept in ", "dim"), self._file.path.name), classes="note", id="mix-note")

    def on_mount(self) -> None:
        """Read the file."""
        super().on_mount()
        self.query_one("#mix-keys", KeyBar).show([self.hint(key_id, label) for key_id, label in self.WITH_A_MIX])
        if unread := self._held.read():
            self._say(unread, wrong=True)
        self._show()
        (self.query_one(PickList) if self._mixes else self.query_one(Input)).focus()

    def _show(self) -> None:
        listing = self.query_one(PickList)
        at = listing.highlighted
        listing.set_options(Option(self._row(name, mix)) for name, mix in self._mixes.items())
        listing.highlighted = min(at or 0, len(self._mixes) - 1) if self._mixes else None
        listing.display = self.query_one("#mix-keys", KeyBar).display = bool(self._mixes)

    def _row(self, name: str, mix: Mapping[str, float]) -> Content:
        lead = "\u25c6 " if name in self._marked else "  "
        return assemble((lead, "bold"), (f"{name}  ", "bold")) + self._words(mix)

    def _words(self, mix: Mapping[str, float]) -> Content:
        parts = []
        for name, value in mix.items():
            mark = self._marks.get(name.partition("@")[0])
            if value:
                parts.append(
                    assemble((f"{mark.glyph} " if mark else "", mark.color if mark else ""), f"{name} {value:+.2f}")
                )
        return Content("  ").join(parts) if parts else literal("the base alone", "dim")

    def _say(self, text: str, *, wrong: bool = False) -> None:
        self.query_one("#mix-note", LiteralStatic).show(literal(text, "$error" if wrong else ""))

    @property
    def _highlighted(self) -> str | None:
        index = self.query_one(PickList).highlighted
        return list(self._mixes)[index] if index is not None and self._mixes else None

    def _chosen(self) -> dict[str, dict[str, float]]:
        """The marked mixes, without marks the highlighted one."""
        names = [name for name in self._mixes if name in self._marked] or [
            name for name in self._mixes if name == self._highlighted
        ]
        return {name: self._mixes[name] for name in names}

    @on(OptionList.OptionSelected)
    def _recalled(self) -> None:
        name = self._highlighted
        if name is not None:
            self.dismiss(MixChoice("recall", {name: self._mixes[name]}))

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Save the desk under the name."""
        name = self.query_one(Input).value.strip()
        try:
            check_mix_name(name, self._adapters)
        except NamedMixesError as error:
            self._say(str(error), wrong=True)
            return
        again = name in self._mixes
        desk = dict(self._desk)
        self._held.change(
            lambda mixes: mixes.update({name: desk}),
            f"{'Saved anew' if again else 'Saved'}: --mix {name} asks with it on the command line, too.",
        )

    def action_mark(self) -> None:
        """Mark the highlighted mix for Compare."""
        name = self._highlighted
        if name is not None:
            self._marked ^= {name}
            self._show()

    def action_compare(self) -> None:
        """Answer under the marked mixes beside the desk's."""
        if chosen := self._chosen():
            self.dismiss(MixChoice("compare", chosen))

    def action_export(self) -> None:
        """Export the highlighted mix."""
        name = self._highlighted
        if name is not None:
            self.dismiss(MixChoice("export", {name: self._mixes[name]}))

    def action_delete(self) -> None:
        """Remove the highlighted mix."""
        name = self._highlighted
        if name is not None:
            self._marked.discard(name)
            self._held.change(lambda mixes: mixes.pop(name, None), f"{name} is removed.")

    def _changed(self, text: str, wrong: bool) -> None:
        self._say(text, wrong=wrong)
        self._show()
