"""What is where: pages, zoom, sizes, tabs and jump mode. The one controller that knows the screen's containers."""

from __future__ import annotations

from textual.screen import Screen
from textual.widget import Widget

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.app.hints import edge_offers
from dlm_tui.app.layout import PAGE_TITLES, PANES, Arrangement, arrange
from dlm_tui.app.panes.pane import Pane
from dlm_widgets.page_tabs import Page, PageTabs
from dlm_widgets.throttled import is_displayed

_DESK_SHARE = 0.4
"""How much of a screen in one column the mixing desk takes at most."""


class Layout:
    """Shows the panes that belong on a screen of this size, and moves the focus among them."""

    def __init__(self, context: Context, screen: Screen[None]) -> None:
        self._context, self._screen = context, screen
        self.zoom: str | None = None
        self.arrangement: Arrangement | None = None
        self.rearranged: Signal[[]] = Signal()
        """Other panes may be visible now."""

    # ---- arrangement -----------------------------------------------------------------------------------------------

    def rearrange(self) -> None:
        """Show the panes that belong on a screen of this size."""
        screen, state, (width, height) = self._screen, self._context.state, self._screen.app.size
        self.arrangement = here = arrange(width, height, state.page, self.zoom, talk=state.talk.in_front)
        for size in ("narrow", "normal", "wide", "ultra"):
            screen.set_class(here.size == size, f"-{size}")
        screen.set_class(here.zoom is not None, "-zoomed")
        screen.set_class(height < 24, "-short")
        for pane_id in PANES:
            self._pane(pane_id).display = pane_id in here.visible
        self._arrange_columns(here)
        self._apply_sizes(here)
        self.draw_tabs()
        if screen.focused is None or not is_displayed(screen.focused):
            self._focus_visible(here)
        self.rearranged.emit()

    def _arrange_columns(self, here: Arrangement) -> None:
        query = self._screen.query_one
        stacked, zoomed, ultra = here.size in {"narrow", "normal"}, here.zoom is not None, here.size == "ultra"
        centre, side = query("#centre"), query("#side")
        centre.display = bool(here.visible & {"prompt", "desk", "answers", "talk"})
        side.display = bool(here.visible & {"insight", "runs", "jobs"})
        query("#outline-column").display = "outline" in here.visible
        for tabs, shown in (
            ("#tabs-top", stacked),
            ("#tabs-side", here.size == "wide"),
            ("#tabs-outline", here.size == "wide"),
            ("#tabs-lower", ultra),
            ("#split-width", not stacked),
            ("#split-height", not stacked),
        ):
            query(tabs).display = shown and not zoomed
        centre.set_class(stacked and not here.visible & {"answers", "talk"} and not zoomed, "-compact")

    def _apply_sizes(self, here: Arrangement) -> None:
        query, sizes, (width, screen_height) = self._screen.query_one, self._context.state.sizes, self._screen.app.size
        prompt, desk, side, outline = query("#prompt"), query("#desk"), query("#side"), query("#outline-column")
        usual = {"narrow": 4, "normal": 5, "wide": 7, "ultra": 9}[here.size]
        height = max(3, min(screen_height - 12, usual + sizes.height))
        prompt.styles.height = "1fr" if here.zoom == "prompt" else height
        # Above a page of its own the centre is as high as what is in it, where a share of that height means nothing.
        most = round(_DESK_SHARE * screen_height) if here.size in {"narrow", "normal"} else "50%"
        desk.styles.max_height = "100%" if here.zoom == "desk" else most
        outline.styles.dock = "left" if here.size == "ultra" and here.zoom is None else "none"
        if here.size in {"wide", "ultra"} and here.zoom is None:
            share = 0.40 if here.size == "wide" else 0.30
            side.styles.width = max(30, min(width - 60, round(width * share) - sizes.width))
            outline.styles.width = 38 if here.size == "ultra" else side.styles.width
        else:
            side.styles.width = outline.styles.width = "1fr"

    def is_shown(self, pane_id: str) -> bool:
        """Whether a pane is on the screen."""
        return self.arrangement is not None and pane_id in self.arrangement.visible

    def draw_tabs(self) -> None:
        """The tabs, with a mark on the jobs while one runs, or failed and nobody has looked."""
        here = self.arrangement
        if here is None:
            return
        board = self._context.board
        attention = board.running() is not None or board.failure is not None
        pages = [Page(page, PAGE_TITLES[page], page == "jobs" and attention) for page in here.tabs]
        for tabs in self._screen.query(PageTabs):
            tabs.show(pages, here.page, edge_offers(self.front(here.page), self._context.labels))

    # ---- focus -----------------------------------------------------------------------------------------------------

    def _pane(self, pane_id: str) -> Pane:
        return self._screen.query_one(f"#{pane_id}", Pane)

    def _focus_visible(self, here: Arrangement) -> None:
        for pane_id in (here.zoom, "prompt", here.page):
            if pane_id and pane_id in here.visible and self.focus_pane(pane_id):
                return

    def focus_pane(self, pane_id: str) -> bool:
        """Give a pane the focus; False when it has nothing to focus."""
        target = self._pane(pane_id).focus_target()
        if target is None:
            return False
        # at once, as the next key or an action may already ask where the focus is
        self._screen.set_focus(target)
        return True

    @property
    def focused_pane(self) -> str | None:
        """The id of the pane that has the focus."""
        widget = self._screen.focused
        while widget is not None:
            if isinstance(widget, Pane):
                return widget.id
            widget = widget.parent if isinstance(widget.parent, Widget) else None
        return None

    # ---- pages -----------------------------------------------------------------------------------------------------

    def show_page(self, page: str) -> None:
        """Bring a page to the front; a zoom on something else ends."""
        if self.zoom not in {None, page}:
            self.zoom = None
        if page in ("answers", "talk"):
            self._context.state.talk.in_front = page == "talk"
            page = "answers"
        if page in PAGE_TITLES:
            self._context.state.page = page
        self.rearrange()
        self._context.saver.soon()

    def front(self, page: str) -> str:
        """The pane that is in front under a page's name: the conversation may be in the place of the answers."""
        return "talk" if page == "answers" and self._context.state.talk.in_front else page

    def go_to(self, pane_id: str) -> None:
        """Show a pane and focus it."""
        if pane_id in PAGE_TITLES or pane_id == "talk":
            self.show_page(pane_id)
        elif self.zoom not in {None, pane_id}:
            self.end_zoom()
        self._screen.call_after_refresh(self.focus_pane, pane_id)

    def turn_page(self, step: int) -> None:
        """Next or previous page; a zoom ends."""
        here = self.arrangement
        if here:
            self.zoom = None
            page = here.tabs[(here.tabs.index(here.page) + step) % len(here.tabs)]
            inside = self.focused_pane == here.page
            page = self.front(page)
            self.show_page(page)
            if inside:
                self.go_to(page)

    def jump(self) -> None:
        """A letter on every pane."""
        from dlm_tui.app.screens.jump import JumpScreen

        visible = (self.arrangement or arrange(80, 24, "")).visible
        targets = []
        for pane_id in PANES:
            pane = self._pane(pane_id)
            place = (pane.region.x, pane.region.y) if pane_id in visible else None
            targets.append((pane.JUMP, pane.TITLE, pane_id, place))
        self._context.ui.open_dialog(JumpScreen(targets), lambda chosen: self.go_to(chosen) if chosen else None)

    def end_zoom(self) -> bool:
        """Show everything again; False when nothing is zoomed."""
        if self.zoom is None:
            return False
        self.toggle_zoom()
        return True

    # ---- sizes -----------------------------------------------------------------------------------------------------

    def toggle_zoom(self) -> None:
        """The focused pane alone, or everything again."""
        self.zoom = None if self.zoom else self.focused_pane or "answers"
        self.rearrange()
        if self.zoom:
            self._screen.call_after_refresh(self.focus_pane, self.zoom)

    def resize(self, what: str, step: int) -> None:
        """Move a border: `width` of the left part or `height` of the prompt, by cells."""
        sizes = self._context.state.sizes
        if what == "width":
            sizes.width = max(-80, min(80, sizes.width + step))
        else:
            sizes.height = max(-8, min(30, sizes.height + step))
        self.rearrange()
        self._context.saver.soon()

    def reset(self) -> None:
        """The usual sizes."""
        sizes = self._context.state.sizes
        sizes.width = sizes.height = 0
        self.zoom = None
        self.rearrange()
        self._context.saver.soon()
