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


_NAMES = {"prompt.focus": "go to prompt", "mix.reset": "reset mix"}
"""Where neither label nor description says it outside of its pane."""


def command_name(key: Key) -> str:
    """What the palette calls a binding: its group, what it does, and where if that is one pane."""
    if key.id in _NAMES:
        return f"{_PREFIX[key.group]}: {_NAMES[key.id]}"
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
        """What has all words in its name or its explanation, in any order; after that what has the letters in order."""
        matcher, words = self.matcher(query), query.casefold().split()
        for command in self._commands():
            name, everything = command.name.casefold(), f"{command.name} {command.help}".casefold()
            score = matcher.match(command.name)
            if all(word in name for word in words):
                score += 2.0
            elif all(word in everything for word in words):
                score += 1.0
            if score > 0:
                yield Hit(score, matcher.highlight(command.name), command.run, text=command.name, help=command.help)
