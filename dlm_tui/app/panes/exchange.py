"""Cards in the place of other cards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from textual.widget import Widget

from dlm_widgets.throttled import Throttled


def exchange(pane: Throttled, holder: Widget, gone: Sequence[Widget], made: Sequence[Widget]) -> asyncio.Future[None]:
    """Take some of a holder's children away and put others behind what stays; `pane` draws these when they are there.

    Whoever waits for that may be cancelled: what is there is already what its pane knows, and the wait alone ends. A
    removal would end with it, half done, as the library's own wait for it cancels the widgets' tasks.
    """
    removed, mounted = holder.remove_children(gone), holder.mount_all(made)

    async def settled() -> None:
        await removed
        await mounted
        pane.ask()

    return asyncio.shield(settled())
