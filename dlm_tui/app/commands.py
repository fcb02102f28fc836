"""The command palette: every action, grouped by a prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from dlm_tui.app.keys import KEYS, WHERE_TEXT, Key, display, keys_of
from dlm_widgets.sanitize import literal, sanitize

if TYPE_CHECKING:
    from dlm_tui.app.app import WorkbenchApp

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


class WorkbenchCommands(Provider):
    """prompt:, gate:, train:, export:, view:, theme: and program:."""

    def _commands(self) -> Iterator[Command]:
        app = cast("WorkbenchApp", self.app)
        bench = app.workbench
        for key in KEYS:
            if key.where == "dialog" or key.id == "app.palette":
                continue
            keys = ", ".join(display(one) for one in keys_of(key, app.config.keys))
            yield Command(command_name(key), f"{key.description} ({keys})", partial(bench.run_key, key))
        for mode in ("gate", "uniform", "custom"):
            yield Command(f"gate: {mode} mix", f"Use the {mode} mix", partial(bench.set_mix_mode, mode))
        yield Command("gate: what moved", "Remembered prompts before and after the last training", bench.action_moved)
        for name in bench.names:
            yield Command(
                f"train: only {sanitize(name, one_line=True)}",
                "Train one adapter, then the gate",
                partial(bench.start_training, [name]),
            )
        for theme in sorted(app.available_themes):
            yield Command(f"theme: {theme}", "Use these colours", partial(app.choose_theme, theme))
        yield Command("view: edit the configuration", "Open config.toml in the editor", bench.action_edit_config)
        yield Command("program: about the engine", "Device, threads, memory, adapters", bench.action_engine_facts)
        yield Command("view: engine log", "The last lines the engine wrote", bench.action_engine_log)

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
