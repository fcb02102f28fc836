"""A list in which views are marked: those that are to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.content import Content
from textual.widgets.option_list import Option

from dlm_tui.model.views import adapter_of
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, sanitize


class ViewList(PickList):
    """Views with a box each, adapters with their glyph and colour."""

    def __init__(self, views: Sequence[str], marked: Sequence[str], marks: Mapping[str, Mark], *, id: str) -> None:
        super().__init__(id=id, markup=False)
        self._views, self._marked, self._marks = list(views), set(marked), marks
        self._show()
        self.highlighted = 0 if views else None

    @property
    def marked(self) -> list[str]:
        """The marked views, in the order of the list."""
        return [name for name in self._views if name in self._marked]

    def toggle(self) -> None:
        """Mark the highlighted view, or no longer."""
        if self.highlighted is not None:
            self._marked ^= {self._views[self.highlighted]}
            self._show()

    def _show(self) -> None:
        before = self.highlighted
        self.set_options([Option(self._row(name)) for name in self._views])
        self.highlighted = before

    def _row(self, name: str) -> Content:
        mark = self._marks.get(adapter_of(name) or "")
        box = "\u25a0" if name in self._marked else "\u25a1"
        shown = f"{mark.glyph} {name}" if mark else f"  {name}"
        return assemble(f"{box} ", (sanitize(shown, one_line=True), mark.color if mark else ""))
