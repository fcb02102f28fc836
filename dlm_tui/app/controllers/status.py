"""The first and the last line: document, base, engine and running job above, the keys that work below."""

from __future__ import annotations

from textual.content import Content

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.views import KeysView, Pages, Redrawn
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
}


class StatusLines:
    """Words for both lines."""

    def __init__(self, context: Context, pages: Pages, line: Redrawn, footer: KeysView, leave: KeysView) -> None:
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

    def words(self) -> Content:
        """Document, base, engine, running job."""
        self._pages.draw_tabs()
        self.show_keys()
        context = self._context
        state, opened = context.link.state, context.opened
        glyph, style = _ENGINE_GLYPH[state.phase]
        parts: list[str | tuple[str, str]] = [(f" {context.setup.path.name}", "bold")]
        if context.document_error:
            parts += ["  ", (f"\u2717 {context.document_error}", "bold $error")]
        else:
            parts += ["  ", (context.document.base_model, "$foreground 65%")]
            if opened and opened.parameters:
                parts.append((f" {_count(opened.parameters)}{opened.kept and f' {opened.kept}'}", "$foreground 45%"))
        parts += ["  ", (f"{glyph} ", style), (_engine_words(state), "$foreground 65%")]
        if context.news:
            parts += ["  ", (f"\u2191 {context.news}", "bold $warning")]
        record = context.board.running()
        if record:
            title = f"{record.title} \u00b7 " if record.kind not in ("train", "gate") else ""
            waiting = len(context.board.waiting())
            behind = f" \u00b7 {waiting} more" if waiting else ""
            parts += ["  ", (f"\u25b8 {title}{record.detail()}{behind}", "$primary")]
        elif failure := context.board.failure:
            parts += ["  ", (f"\u2717 {_KIND_WORDS[failure.kind]} failed, see Jobs", "bold $error")]
        return assemble(*parts)


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
