"""What a training moved: every remembered prompt before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.app import ComposeResult
from textual.content import Content

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.document.comparison import Moved, top
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble, sanitize


class MovedScreen(Dialog[None]):
    """Prompts whose strongest adapter changed come first."""

    TITLE_TEXT = "What the last training moved"

    SCROLLS = True

    def __init__(self, moved: Sequence[Moved], names: Sequence[str], marks: Mapping[str, Mark]) -> None:
        super().__init__()
        self._moved = sorted(moved, key=lambda change: (not change.top_changed, -change.distance))
        self._names, self._marks = names, marks

    def compose_body(self) -> ComposeResult:
        """One block per prompt."""
        saved = [change for change in self._moved if change.saved]
        recent = [change for change in self._moved if not change.saved]
        for title, changes in (("Saved prompts", saved), ("Recent prompts", recent)):
            if changes:
                yield LiteralStatic(title, classes="field")
                blocks = (moved_block(change, self._names, self._marks) for change in changes)
                yield LiteralStatic(Content("\n").join(blocks))
        if not self._moved:
            yield LiteralStatic("No remembered prompt has been routed before and after a training yet.")


def moved_block(change: Moved, names: Sequence[str], marks: Mapping[str, Mark]) -> Content:
    """A prompt, and below it each adapter's weight before and after."""
    parts: list[str | tuple[str, str]] = [
        ("\u2192 " if change.top_changed else "  ", "bold $warning"),
        (sanitize(change.text, one_line=True)[:200], "bold" if change.top_changed else ""),
        "\n    ",
    ]
    strongest = top(change.after)
    for name in names:
        if name in change.after and name in change.before:
            text = f"{marks[name].glyph} {change.before[name]:.2f} \u2192 {change.after[name]:.2f}   "
            parts.append((text, f"{'bold ' if name == strongest else ''}{marks[name].color}"))
    return assemble(*parts)
