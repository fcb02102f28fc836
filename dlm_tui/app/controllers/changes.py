"""What was changed in the document since the start, so that the newest change is taken back first, whatever it was."""

from __future__ import annotations

from collections.abc import Callable

from dlm_tui.app.controllers.context import Context


class Changes:
    """A stack of ways back. An entry goes when its change has really been taken back."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ways_back: list[Callable[[], object]] = []

    @property
    def hint(self) -> str:
        """The sentence that tells how a change is taken back."""
        return f"{self._context.key('prompt.undo_label')} takes it back."

    def note(self, way_back: Callable[[], object]) -> None:
        """Something was changed; calling `way_back` begins to undo it."""
        self._ways_back.append(way_back)

    def taken_back(self) -> None:
        """The newest change is undone."""
        self._ways_back.pop()

    def undo(self) -> None:
        """Take the newest change back."""
        if self._ways_back:
            self._ways_back[-1]()
        else:
            self._context.ui.say("Nothing in the document was changed since the start.", warning=True)
