"""What moved between two gates, or between two versions of an adapter, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.app import ComposeResult
from textual.content import Content

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.app.screens.moved import moved_block
from dlm_tui.document.comparison import AnswerMoved, VersionComparison
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble, literal, sanitize


class ComparisonScreen(Dialog[None]):
    """Waits for the figures, then shows them: the sentence first, the largest changes before the others."""

    SCROLLS = True

    def __init__(self, before: str, after: str, names: Sequence[str], marks: Mapping[str, Mark]) -> None:
        super().__init__()
        self._between, self._names, self._marks = f"{before} \u2192 {after}", names, marks

    def compose_body(self) -> ComposeResult:
        """A line for how far it is, and the prompts."""
        yield LiteralStatic(classes="note", id="comparison-note")
        yield LiteralStatic(id="comparison-rows")

    def on_mount(self) -> None:
        """The two stand in the title."""
        super().on_mount()
        self.retitle(f"What moved: {self._between}")
        self.say("asking both \u2026")

    def say(self, text: str, *, error: bool = False) -> None:
        """How far it is, or why there is nothing."""
        self.query_one("#comparison-note", LiteralStatic).show(literal(text, "$error" if error else ""))

    def show(self, found: VersionComparison) -> None:
        """All prompts."""
        self.say(found.summary)
        moved = sorted(found.moved, key=lambda change: (not change.top_changed, -change.distance))
        answers = sorted(found.answers, key=lambda one: (one.saved, -_change(one)))
        blocks = [*(moved_block(one, self._names, self._marks) for one in moved), *map(_answer_block, answers)]
        self.query_one("#comparison-rows", LiteralStatic).show(Content("\n").join(blocks))


def _change(one: AnswerMoved) -> float:
    """How much the answer's likelihood moved, or the effect where there is no answer; nats."""
    if one.before_gain is not None and one.after_gain is not None:
        return abs(one.after_gain - one.before_gain)
    return abs(one.after - one.before)


def _answer_block(one: AnswerMoved) -> Content:
    parts: list[str | tuple[str, str]] = [(f"  {sanitize(one.text, one_line=True)[:200]}", ""), "\n    "]
    parts.append((f"effect {one.before:.3f} \u2192 {one.after:.3f} nats", "dim"))
    if one.before_gain is not None and one.after_gain is not None:
        color = "$success" if one.after_gain > one.before_gain else "$warning"
        parts.append((f"   its answer {one.before_gain:+.2f} \u2192 {one.after_gain:+.2f} nats a token", color))
    return assemble(*parts)
