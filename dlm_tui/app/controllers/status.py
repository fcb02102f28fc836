"""The first and the last line: document, base, engine and running job above, the keys that work below."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len
from textual.content import Content

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.surfaces import KeysSurface, Pages, Redrawn
from dlm_tui.app.engine_link import LinkState
from dlm_tui.app.hints import footer_hints, hint
from dlm_tui.app.jobs import Kind
from dlm_tui.app.progress import progress_words
from dlm_widgets.sanitize import assemble

_ENGINE_GLYPH = {
    "ready": ("\u25cf", "$success"),
    "loading": ("\u25cc", "$primary"),
    "starting": ("\u25cc", "$primary"),
    "restarting": ("\u21bb", "$warning"),
    "failed": ("\u2717", "bold $error"),
    "closed": ("\u25cc", "dim"),
}

_KIND_WORDS: dict[Kind, str] = {
    "train": "training",
    "gate": "gate training",
    "export": "export",
    "serve": "serving",
    "evaluate": "judging",
    "sweep": "sweep",
    "import": "import",
}


@dataclass(eq=False)
class _Piece:
    """Words that are shown as a whole or not at all, with their styles; the highest rank goes first, 0 stays."""

    parts: list[tuple[str, str]]
    rank: int = 0


class StatusLines:
    """Words for both lines."""

    def __init__(self, context: Context, pages: Pages, line: Redrawn, footer: KeysSurface, leave: KeysSurface) -> None:
        self._context, self._pages, self._line = context, pages, line
        self._footer, self._leave = footer, leave

    def redraw(self, *_: object) -> None:
        """Draw the status line, in a moment."""
        self._line.ask()

    def show_keys(self) -> None:
        """The keys that work where the focus is; those of the pane first."""
        keys = self._context.config.keys
        self._footer.show(*footer_hints(self._pages.focused_pane, keys, self._context.labels))
        self._leave.show([], [hint("app.quit", keys)])

    def words(self, width: int) -> Content:
        """Document, base, engine, running job; what has no room in `width` cells is left out, a piece at a time."""
        self._pages.draw_tabs()
        self.show_keys()
        pieces = self._pieces()
        for piece in sorted((piece for piece in pieces if piece.rank), key=lambda piece: -piece.rank):
            if sum(cell_len(text) for piece in pieces for text, _ in piece.parts) <= width:
                break
            pieces.remove(piece)
        return assemble(*(part for piece in pieces for part in piece.parts))

    def _pieces(self) -> list[_Piece]:
        context = self._context
        state, opened = context.link.state, context.opened
        glyph, style = _ENGINE_GLYPH[state.phase]
        pieces = [_Piece([(f" {context.setup.path.name}", "bold")])]
        if context.document_error:
            pieces.append(_Piece([(f"  \u2717 {context.document_error}", "bold $error")]))
        else:
            pieces.append(_Piece([(f"  {context.document.base_model}", "$foreground 65%")], 3))
            if opened and opened.parameters:
                count = f" {_count(opened.parameters)}{opened.kept and f' {opened.kept}'}"
                pieces.append(_Piece([(count, "$foreground 45%")], 4))
        pieces.append(_Piece([(f"  {glyph} ", style), (_engine_words(state), "$foreground 65%")]))
        if context.news:
            pieces.append(_Piece([(f"  \u2191 {context.news}", "bold $warning")]))
        record = context.board.running()
        if record:
            title = f"{record.title} \u00b7 " if record.kind not in ("train", "gate") else ""
            first, *more = record.details()
            pieces.append(_Piece([(f"  \u25b8 {title}{first}", "$primary")]))
            # the share stays, and the time left goes last of all; the losses go before the base
            for rank, text in zip((0, 1, 5, 6), more, strict=False):
                pieces.append(_Piece([(f" \u00b7 {text}", "$primary")], rank))
            if waiting := len(context.board.waiting()):
                pieces.append(_Piece([(f" \u00b7 {waiting} more", "$primary")], 2))
        elif failure := context.board.failure:
            pieces.append(_Piece([(f"  \u2717 {_KIND_WORDS[failure.kind]} failed, see Jobs", "bold $error")]))
        return pieces


def _engine_words(state: LinkState) -> str:
    if state.phase == "ready":
        return state.device
    if state.phase == "loading":
        return progress_words(state.progress) if state.progress else f"opening: {state.text}"
    return state.text or state.phase


def _count(parameters: int) -> str:
    """4,200,000 as 4.2M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.1f}{unit}"
    return str(parameters)
