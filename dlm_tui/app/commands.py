"""The command palette: every action, grouped by a prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from dlm_tui.app.keys import WHERE_TEXT, Key
from dlm_widgets.sanitize import literal

_PREFIX = {
    "Prompt": "prompt",
    "Mix": "gate",
    "Train": "train",
    "Export": "export",
    "View": "view",
    "Program": "program",
}


def command_name(key: Key) -> str:
    """What the palette calls a binding: its group, what it does, and where if that is one pane."""
    where = WHERE_TEXT[key.where]
    return f"{_PREFIX[key.group]}: {(key.label or key.description).lower()}{f' ({where})' if where else ''}"


@dataclass(frozen=True)
class Command:
    """A line of the palette."""

    name: str
    help: str
    run: Callable[[], object]


class OffersCommands(Protocol):
    """The app, as the palette sees it."""

    def palette_commands(self) -> Iterable[Command]:
        """Every command, in the order in which they are listed."""


class WorkbenchCommands(Provider):
    """prompt:, gate:, train:, export:, view:, theme: and program:."""

    def _commands(self) -> Iterable[Command]:
        return cast("OffersCommands", self.app).palette_commands()

    async def discover(self) -> Hits:
        """Everything, when nothing is typed."""
        for command in self._commands():
            yield DiscoveryHit(literal(command.name), command.run, text=command.name, help=command.help)

    async def search(self, query: str) -> Hits:
        """What matches."""
        matcher = self.matcher(query)
        for command in self._commands():
            score = matcher.match(command.name)
            if score > 0:
                yield Hit(score, matcher.highlight(command.name), command.run, text=command.name, help=command.help)
