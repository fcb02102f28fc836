"""Arranging the screen: pages, zoom, sizes, jump mode, the status line and the footer."""

from __future__ import annotations

from textual import events, on
from textual.content import Content
from textual.widget import Widget

from dlm_tui.app.engine_link import LinkState
from dlm_tui.app.hints import edge_offers, footer_hints, hint
from dlm_tui.app.keys import Key
from dlm_tui.app.layout import PAGE_TITLES, PANES, Arrangement, arrange
from dlm_tui.app.panes.pane import Pane
from dlm_tui.app.progress import progress_words
from dlm_tui.app.training import Training
from dlm_widgets.border_button import BorderButtonPressed
from dlm_widgets.key_bar import KeyBar
from dlm_widgets.literal_static import ThrottledStatic
from dlm_widgets.page_tabs import Page, PageTabs
from dlm_widgets.sanitize import assemble
from dlm_widgets.splitter import Splitter

_ENGINE_GLYPH = {
    "ready": ("\u25cf", "$success"),
    "loading": ("\u25cc", "$primary"),
    "starting": ("\u25cc", "$primary"),
    "restarting": ("\u21bb", "$warning"),
    "failed": ("\u2717", "bold $error"),
    "closed": ("\u25cc", "dim"),
}


class Viewing(Training):
    """What is where."""

    zoom: str | None = None
    arrangement: Arrangement | None = None

    # ---- arrangement -----------------------------------------------------------------------------------------------

    def rearrange(self) -> None:
        """Show the panes that belong on a screen of this size."""
        width, height = self.app.size
        self.arrangement = here = arrange(width, height, self.state.page, self.zoom)
        for size in ("narrow", "normal", "wide", "ultra"):
            self.set_class(here.size == size, f"-{size}")
        self.set_class(here.zoom is not None, "-zoomed")
        self.set_class(height < 24, "-short")
        for pane_id in PANES:
            pane = self.query_one(f"#{pane_id}", Pane)
            pane.display = pane_id in here.visible
        self._arrange_columns(here)
        self._apply_sizes(here)
        self._draw_tabs()
        if self.focused is None or not self.focused.is_on_screen:
            self._focus_visible()
        if "insight" in here.visible:
            self.explain_soon()

    def _arrange_columns(self, here: Arrangement) -> None:
        stacked, zoomed, ultra = here.size in {"narrow", "normal"}, here.zoom is not None, here.size == "ultra"
        centre, side = self.query_one("#centre"), self.query_one("#side")
        outline_shown = "outline" in here.visible
        centre.display = bool(here.visible & {"prompt", "desk", "answers"})
        side.display = bool(here.visible & {"insight", "runs", "jobs"})
        self.query_one("#outline-column").display = outline_shown
        for tabs, shown in (
            ("#tabs-top", stacked),
            ("#tabs-side", here.size == "wide"),
            ("#tabs-outline", here.size == "wide"),
            ("#tabs-lower", ultra),
            ("#split-width", not stacked),
            ("#split-height", not stacked),
        ):
            self.query_one(tabs).display = shown and not zoomed
        centre.set_class(stacked and "answers" not in here.visible and not zoomed, "-compact")

    def _apply_sizes(self, here: Arrangement) -> None:
        prompt, sizes, width = self.query_one("#prompt"), self.state.sizes, self.app.size.width
        usual = {"narrow": 4, "normal": 5, "wide": 7, "ultra": 9}[here.size]
        height = max(3, min(self.app.size.height - 12, usual + sizes.height))
        prompt.styles.height = "1fr" if here.zoom == "prompt" else height
        side, outline = self.query_one("#side"), self.query_one("#outline-column")
        outline.styles.dock = "left" if here.size == "ultra" and here.zoom is None else "none"
        if here.size in {"wide", "ultra"} and here.zoom is None:
            share = 0.40 if here.size == "wide" else 0.30
            side.styles.width = max(30, min(width - 60, round(width * share) - sizes.width))
            outline.styles.width = 38 if here.size == "ultra" else side.styles.width
        else:
            side.styles.width = outline.styles.width = "1fr"

    def _draw_tabs(self) -> None:
        here = self.arrangement
        if here is None:
            return
        running = self.board.running() is not None
        pages = [Page(page, PAGE_TITLES[page], page == "jobs" and running) for page in here.tabs]
        for tabs in self.query(PageTabs):
            tabs.show(pages, here.page, edge_offers(here.page))

    def _focus_visible(self) -> None:
        here = self.arrangement
        if here is None:
            return
        for pane_id in (here.zoom, "prompt", here.page):
            if pane_id and pane_id in here.visible and self.focus_pane(pane_id):
                return

    def focus_pane(self, pane_id: str) -> bool:
        """Give a pane the focus; False when it has nothing to focus."""
        target = self.query_one(f"#{pane_id}", Pane).focus_target()
        if target is None:
            return False
        # at once, as the next key or an action may already ask where the focus is
        self.set_focus(target)
        return True

    def pane_of(self, widget: Widget | None) -> str | None:
        """The id of the pane a widget is in."""
        while widget is not None:
            if isinstance(widget, Pane):
                return widget.id
            widget = widget.parent if isinstance(widget.parent, Widget) else None
        return None

    def show_page(self, page: str) -> None:
        """Bring a page to the front; a zoom on something else ends."""
        if self.zoom not in {None, page}:
            self.zoom = None
        if page in PAGE_TITLES:
            self.state.page = page
        self.rearrange()
        self.save_soon()

    def go_to(self, pane_id: str) -> None:
        """Show a pane and focus it."""
        if self.zoom not in {None, pane_id}:
            self.zoom = None
        if pane_id in PAGE_TITLES:
            self.show_page(pane_id)
        self.call_after_refresh(self.focus_pane, pane_id)

    @on(PageTabs.Chosen)
    def _tab_chosen(self, event: PageTabs.Chosen) -> None:
        self.go_to(event.page)

    def action_page(self, step: int) -> None:
        """Next or previous page."""
        here = self.arrangement
        if here and here.zoom is None:
            index = (here.tabs.index(here.page) + step) % len(here.tabs)
            inside = self.pane_of(self.focused) == here.page
            self.show_page(here.tabs[index])
            if inside:
                self.go_to(here.tabs[index])

    def action_zoom(self) -> None:
        """The focused pane alone, or everything again."""
        self.zoom = None if self.zoom else self.pane_of(self.focused) or "answers"
        self.rearrange()
        if self.zoom:
            self.call_after_refresh(self.focus_pane, self.zoom)

    def action_resize(self, what: str, step: int) -> None:
        """Move a border."""
        sizes = self.state.sizes
        if what == "width":
            sizes.width = max(-80, min(80, sizes.width + step))
        else:
            sizes.height = max(-8, min(30, sizes.height + step))
        self.rearrange()
        self.save_soon()

    @on(Splitter.Dragged)
    def _dragged(self, event: Splitter.Dragged) -> None:
        self.action_resize(event.name, event.delta)

    def action_reset_layout(self) -> None:
        """The usual sizes."""
        self.state.sizes.width = self.state.sizes.height = 0
        self.zoom = None
        self.rearrange()
        self.save_soon()

    def action_focus_prompt(self) -> None:
        """Go to the prompt."""
        self.go_to("prompt")

    def action_jump(self) -> None:
        """A letter on every pane."""
        from dlm_tui.app.screens.jump import JumpScreen

        targets = []
        for pane_id in PANES:
            pane = self.query_one(f"#{pane_id}", Pane)
            place = (
                (pane.region.x, pane.region.y) if pane_id in (self.arrangement or arrange(80, 24, "")).visible else None
            )
            targets.append((pane.JUMP, pane.TITLE, pane_id, place))
        self.app.push_screen(JumpScreen(targets), lambda chosen: self.go_to(chosen) if chosen else None)

    def on_resize(self, event: events.Resize) -> None:
        """Another size, another arrangement."""
        self.call_later(self.rearrange)

    # ---- status and footer -----------------------------------------------------------------------------------------

    def refresh_status(self) -> None:
        """Draw the status line and the tabs, in a moment."""
        self.query_one("#status", ThrottledStatic).ask()

    def status_words(self) -> Content:
        """Document, base, engine, running job."""
        self._draw_tabs()
        state, opened = self.link.state, self.opened
        glyph, style = _ENGINE_GLYPH[state.phase]
        parts: list[str | tuple[str, str]] = [(f" {self.setup.path.name}", "bold")]
        if self.document_error:
            parts += ["  ", (f"\u2717 {self.document_error}", "bold $error")]
        else:
            parts += ["  ", (self.document.base_model, "$foreground 65%")]
            if opened and opened.parameters:
                parts.append((f" {_count(opened.parameters)}", "$foreground 45%"))
        parts += [
            "  ",
            (f"{glyph} ", style),
            (_engine_words(state), "$foreground 65%"),
        ]
        record = self.board.running()
        if record:
            title = f"{record.title} \u00b7 " if record.kind == "export" else ""
            parts += ["  ", (f"\u25b8 {title}{record.detail()}", "$primary")]
        return assemble(*parts)

    def refresh_footer(self) -> None:
        """The keys that work where the focus is; those of the pane first."""
        self.query_one("#footer", KeyBar).show(*footer_hints(self.pane_of(self.focused), self.config.keys))
        self.query_one("#leave", KeyBar).show([], [hint("app.quit", self.config.keys)])

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Another pane, other keys."""
        self.refresh_footer()

    async def on_key_bar_pressed(self, event: KeyBar.Pressed) -> None:
        """A click on a footer key runs its action where the focus is."""
        event.stop()
        await self.run_in(self.pane_of(self.focused), event.action)

    @on(BorderButtonPressed)
    async def _offer_taken(self, event: BorderButtonPressed) -> None:
        """A click on a word of an edge goes to that pane and does there what the key does."""
        event.stop()
        self.focus_pane(event.place)
        await self.run_in(event.place, event.action)

    async def run_key(self, key: Key) -> None:
        """Do what a binding does; the pane it belongs to is shown first."""
        if key.where != "app":
            self.go_to(key.where)
        await self.run_in(key.where if key.where != "app" else None, key.action)

    async def run_in(self, pane_id: str | None, action: str) -> None:
        """Run an action of the key table where it belongs: in the pane, on the screen or in the program."""
        name = action.partition("(")[0]
        pane = self.query_one(f"#{pane_id}") if pane_id else self
        here = next((node for node in (pane, self) if hasattr(node, f"action_{name}")), self.app)
        await self.app.run_action(action, default_namespace=here)


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
