"""One turn of a conversation: a heading with a strip of bars, what was asked, and an answer that may still grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content

from dlm_widgets.adapter_palette import Mark
from dlm_widgets.growing_text import GrowingText
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble, literal

_LEVELS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_UNKNOWN = Mark("\u25cb", "dim")


def weight_strip(weights: Mapping[str, float], marks: Mapping[str, Mark]) -> Content:
    """A glyph and a bar of one cell for every adapter that has a mark, in their order; weights outside [0, 1] are
    drawn as its ends.

    What else has a weight comes behind them: a version (`name@3`) with its adapter's glyph and its number, an adapter
    that has no mark any more with a neutral one and its name.
    """
    parts: list[str | tuple[str, str]] = [
        (f"{mark.glyph}{_bar(weights.get(name, 0.0))}", mark.color) for name, mark in marks.items()
    ]
    for name, weight in weights.items():
        if weight and name not in marks:
            adapter, at, number = name.partition("@")
            mark, label = (marks[adapter], f"{at}{number}") if adapter in marks else (_UNKNOWN, f" {name}")
            parts += [" ", (f"{mark.glyph}{_bar(weight)}{label}", mark.color)]
    return assemble(*parts)


def _bar(weight: float) -> str:
    weight = min(1.0, max(0.0, weight)) if weight == weight else 0.0
    return _LEVELS[round(weight * (len(_LEVELS) - 1))]


@dataclass(frozen=True)
class TurnHead:
    """What stands above a turn: its place, of which branch, the view that answers, the mix, and what is said of it."""

    number: int
    view: str
    weights: Mapping[str, float]
    branch: int = 1
    branches: int = 1
    note: str = ""


@dataclass(frozen=True)
class ShownTurn:
    """A turn as it is shown; `turn` is the id by which its owner knows it."""

    turn: int
    prompt: str
    text: str
    head: TurnHead


class TurnCard(Vertical, can_focus=True):
    """A turn that can be marked. What holds the cards draws them: `draw` shows what arrived since."""

    DEFAULT_CSS: ClassVar[str] = """
    TurnCard { height: auto; padding: 0 0 0 1; border-left: blank; margin: 0 0 1 0; }
    TurnCard:focus { border-left: heavy $primary; }
    TurnCard > .turn--head { color: $foreground 70%; }
    TurnCard:focus > .turn--head { text-style: bold; color: $foreground; }
    TurnCard > .turn--prompt { text-style: bold; }
    """

    def __init__(self, turn: int, prompt: str, text: str, head: TurnHead, marks: Mapping[str, Mark]) -> None:
        """`turn` is the id by which the owner knows it."""
        super().__init__()
        self.turn = turn
        self.prompt = prompt
        self._text = text
        self._drawn = 0  # characters of the text that the body has
        self._head, self._marks = head, marks
        self._changed = True

    def compose(self) -> ComposeResult:
        """Heading, question, answer."""
        yield LiteralStatic(self._heading(), classes="turn--head")
        yield LiteralStatic(f"> {self.prompt}", classes="turn--prompt")
        yield GrowingText(classes="turn--answer")

    def on_mount(self) -> None:
        """Show the answer as far as it is known."""
        self.draw()

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._text

    @property
    def is_behind(self) -> bool:
        """Whether something came that is not drawn and can be: not before its parts are there."""
        return self._changed and bool(self.children)

    @property
    def head(self) -> TurnHead:
        """What stands above it."""
        return self._head

    def _heading(self) -> Content:
        head = self._head
        branch = f" \u2039{head.branch}/{head.branches}\u203a" if head.branches > 1 else ""
        strip = weight_strip(head.weights, self._marks) if head.weights else Content("")
        front = literal(f"{head.number}{branch} {head.view} ", "bold", one_line=True)
        return front + strip + literal(f"  {head.note}", one_line=True)

    def retitle(self, head: TurnHead, marks: Mapping[str, Mark] | None = None) -> None:
        """Another heading, or other colours."""
        self._head, self._marks = head, self._marks if marks is None else marks
        self._changed = True

    def add(self, piece: str) -> None:
        """More of the answer."""
        self._text += piece
        self._changed = True

    def finish(self, turn: int, text: str, head: TurnHead) -> None:
        """The answer is complete and has its id."""
        self.turn, self._head = turn, head
        if text != self._text:
            self._text, self._drawn = text, 0
        self._changed = True

    def draw(self) -> None:
        """Show what arrived since the last time."""
        self._changed = False
        self.query_one(".turn--head", LiteralStatic).show(self._heading())
        body = self.query_one(GrowingText)
        if not self._drawn:
            body.clear()
        body.add(self._text[self._drawn :])
        self._drawn = len(self._text)
        body.show_added()
