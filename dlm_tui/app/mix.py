"""What the mixing desk means: from switches and faders to a view. Plain data, no screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Literal, NamedTuple

import msgspec

from dlm_tui.model.views import GATED, UNIFORM, View, custom, solo

_MOST_UNDONE = 200
Mode = Literal["gate", "uniform", "custom"]
MODES: tuple[Mode, ...] = ("gate", "uniform", "custom")


class MixState(msgspec.Struct, kw_only=True):
    """Everything a person set on the desk.

    In `gate` mode a coefficient is the gate's weight, in `uniform` 1/N, in `custom` the fader's value in [-2, 2]. A pin
    holds one adapter at its value whatever the mode; mute puts it to 0; solo silences the others (a single solo is the
    adapter as trained, coefficient 1).
    """

    mode: Mode = "gate"
    faders: dict[str, float] = {}
    solos: list[str] = []
    mutes: list[str] = []
    pins: dict[str, float] = {}

    def keep_only(self, names: Sequence[str]) -> None:
        """Forget adapters that the document no longer has."""
        self.faders = {name: value for name, value in self.faders.items() if name in names}
        self.pins = {name: value for name, value in self.pins.items() if name in names}
        self.solos = [name for name in self.solos if name in names]
        self.mutes = [name for name in self.mutes if name in names]

    def coefficients(self, names: Sequence[str], weights: Mapping[str, float] | None) -> dict[str, float]:
        """Adapter -> coefficient for an answer asked now; without gate weights `gate` falls back to uniform."""
        if len(self.solos) == 1:
            only = self.solos[0]
            return {name: self.pins.get(name, 1.0) if name == only else 0.0 for name in names}
        result: dict[str, float] = {}
        for name in names:
            if name in self.mutes or (self.solos and name not in self.solos):
                result[name] = 0.0
            elif name in self.pins:
                result[name] = self.pins[name]
            elif self.mode == "custom":
                result[name] = self.faders.get(name, 0.0)
            elif self.mode == "gate" and weights:
                result[name] = weights.get(name, 0.0)
            else:
                result[name] = 1.0 / len(names)
        return result

    def view(self, names: Sequence[str], weights: Mapping[str, float] | None) -> View:
        """The view that asks with this mix."""
        if len(self.solos) == 1 and self.solos[0] not in self.pins:
            return solo(self.solos[0])
        if not (self.solos or self.mutes or self.pins):
            if self.mode == "gate":
                return GATED
            if self.mode == "uniform":
                return UNIFORM
        return custom(self.coefficients(names, weights))

    def title(self) -> str:
        """A word for the pane's title."""
        if len(self.solos) == 1:
            return f"solo {self.solos[0]}"
        extras = [word for word, on in (("solo", self.solos), ("mute", self.mutes), ("pin", self.pins)) if on]
        return " + ".join([self.mode, *extras])

    def next_mode(self) -> Mode:
        """The mode after this one."""
        return MODES[(MODES.index(self.mode) + 1) % len(MODES)]

    def set_mode(self, mode: Mode, names: Sequence[str], weights: Mapping[str, float] | None) -> None:
        """Change the mode; custom starts from the coefficients that are in force."""
        if mode == "custom" and self.mode != "custom":
            self.faders = {name: round(value, 2) for name, value in self.coefficients(names, weights).items()}
        self.mode = mode

    def move_fader(self, name: str, value: float, names: Sequence[str], weights: Mapping[str, float] | None) -> None:
        """Set one fader, in [-2, 2]. A pinned adapter's pin moves; else the desk becomes custom and lets go of solo."""
        value = min(2.0, max(-2.0, value))
        if name in self.pins:
            self.pins[name] = value
            return
        self.set_mode("custom", names, weights)
        self.faders[name] = value
        self.solos = [other for other in self.solos if other == name] if len(self.solos) > 1 else []
        self.mutes = [other for other in self.mutes if other != name]

    def toggle(self, name: str, part: str, coefficient: float) -> None:
        """Press solo, mute or pin of an adapter; a pin takes the coefficient in force."""
        if part == "pin":
            if name in self.pins:
                del self.pins[name]
            else:
                self.pins[name] = round(coefficient, 2)
            return
        switch = self.solos if part == "solo" else self.mutes
        if name in switch:
            switch.remove(name)
        else:
            switch.append(name)

    def reset(self) -> None:
        """Back to the gate alone."""
        self.mode = "gate"
        self.faders, self.pins, self.solos, self.mutes = {}, {}, [], []


class MixChoice(NamedTuple):
    """What is to be done with saved mixes."""

    what: Literal["recall", "compare", "export"]
    mixes: dict[str, dict[str, float]]


class DeskHistory:
    """The desk before each of its last changes."""

    def __init__(self) -> None:
        self._before: list[tuple[MixState, list[str]]] = []

    def note(self, mix: MixState, added: Sequence[str] = ()) -> None:
        """The desk is about to change from `mix`, and to get faders for the earlier versions `added`."""
        self._before.append((deepcopy(mix), list(added)))
        del self._before[:-_MOST_UNDONE]

    def take_back(self) -> tuple[MixState, list[str]] | None:
        """The desk before the last change, and the faders that the change added; None when there is none."""
        return self._before.pop() if self._before else None
