"""What the command palette offers: every key of the table, and what has no key of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from dlm_tui.app.commands import Command, command_name
from dlm_tui.app.controllers.wiring import Controllers
from dlm_tui.app.keys import KEYS, Key, display, keys_of
from dlm_tui.app.mix import MODES
from dlm_widgets.sanitize import sanitize


def palette_commands(controllers: Controllers, run_key: Callable[[Key], object]) -> Iterator[Command]:
    """prompt:, gate:, train:, export:, view: and program:."""
    context = controllers.context
    for key in KEYS:
        if key.where == "dialog" or key.id == "app.palette":
            continue
        keys = ", ".join(display(one) for one in keys_of(key, context.config.keys))
        yield Command(command_name(key), f"{key.description} ({keys})", partial(run_key, key))
    for mode in MODES:
        yield Command(f"gate: {mode} mix", f"Use the {mode} mix", partial(controllers.mixing.set_mode, mode))
    yield Command(
        "gate: what moved", "Remembered prompts before and after the last training", controllers.comparison.show
    )
    for name in context.names:
        yield Command(
            f"train: only {sanitize(name, one_line=True)}",
            "Train one adapter, then the gate",
            partial(controllers.training.start, [name]),
        )
    yield Command(
        "train: continue interrupted", "Go on with a training that was cut off", controllers.queue.continue_training
    )
    yield Command(
        "train: import adapter", "One that was trained elsewhere: PEFT or modulated", controllers.adapters.ask_import
    )
    yield Command("view: edit the configuration", "Open config.toml in the editor", controllers.settings.edit)
    yield Command(
        "program: new document",
        "From a template or a folder of notes, then open it",
        controllers.interrupts.begin_document,
    )
    yield Command(
        "program: open document",
        "Another one: opened before, beside this one, or by its path",
        controllers.interrupts.open_document,
    )
    yield Command("program: about the engine", "Device, threads, memory, adapters", controllers.engine.show_facts)
    yield Command("view: engine log", "The last lines the engine wrote", controllers.engine.show_log)
