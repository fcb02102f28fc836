"""Views: named mixes under which the model is asked. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from dlm_tui.document.names import split_version
from dlm_tui.errors import UsageError
from dlm_tui.meant import meant

ViewKind = Literal["base", "gated", "uniform", "static", "solo", "custom", "null"]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One way to ask the model.

    `name` is what the screen shows; `adapter` belongs to `solo`; `mix` (adapter -> coefficient, missing ones 0)
    to `custom`; `seed` to `null`, a random adapter of the same shape as the trained ones.
    """

    name: str
    kind: ViewKind
    adapter: str | None = None
    mix: dict[str, float] | None = None
    seed: int = 0


BASE = View(name="base", kind="base")
GATED = View(name="gated", kind="gated")
UNIFORM = View(name="uniform", kind="uniform")
STATIC = View(name="static", kind="static")


VIEWS = {view.name: view for view in (BASE, GATED, UNIFORM, STATIC)}
RESERVED = frozenset({*VIEWS, "static_mean", "custom", "null"})
_ALSO = {"static_mean": STATIC}
"""What the server and the formats call a view."""
_ADAPTER = "adapter:"


def solo(adapter: str) -> View:
    """The view of one adapter as trained, all others off; called `adapter:NAME` where NAME alone means another view."""
    return View(name=f"{_ADAPTER}{adapter}" if adapter in RESERVED else adapter, kind="solo", adapter=adapter)


def named_view(name: str) -> View:
    """The view called `name`: base, gated, uniform, static or static_mean, else an adapter's: NAME or adapter:NAME."""
    return VIEWS.get(name) or _ALSO.get(name) or solo(name.removeprefix(_ADAPTER))


def named_views(text: str, trained: Sequence[str]) -> list[View]:
    """The views of a list such as `base,gated,tone@2`; adapters in any of their versions.

    Raises UsageError for a list of nothing, a view named twice, and an adapter that is not among `trained`.
    """
    views = [named_view(name.strip()) for name in text.split(",") if name.strip()]
    if not views:
        raise UsageError(f"no view is named in {text!r}: give {', '.join(VIEWS)} or adapters, separated by commas")
    for place, view in enumerate(views):
        if view in views[:place]:
            raise UsageError(f"the view {view.name!r} is named twice")
        if view.adapter is not None and split_version(view.adapter)[0] not in trained:
            known = [*VIEWS, *(solo(name).name for name in trained)]
            raise UsageError(f"there is no view {view.name!r} (known: {', '.join(known)}){meant(view.name, known)}")
    return views


def adapter_of(name: str) -> str | None:
    """The adapter whose view is called `name`; None for the views that belong to none."""
    return None if name in RESERVED else name.removeprefix(_ADAPTER)


def custom(mix: Mapping[str, float], name: str = "custom") -> View:
    """The view of a hand-picked mix."""
    return View(name=name, kind="custom", mix=dict(mix))


def uniform_mix(names: Sequence[str]) -> dict[str, float]:
    """1/N each."""
    return {name: 1.0 / len(names) for name in names}


def resolve_view(
    view: View,
    names: Sequence[str],
    gate_weights: Mapping[str, float] | None = None,
    static: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The mix of a view: adapter -> coefficient for the adapters in `names`; absent ones are 0.

    `gate_weights` are the live weights of this prompt and `static` the static mean; without them `gated` and
    `static` fall back to uniform, as an untrained gate does. A `null` view has no mix of the document's adapters.
    Solo and custom views may also name kept versions (`knowledge@3`), which are not among `names`.
    Raises UsageError for an adapter that is not among `names`.
    """
    match view.kind:
        case "base" | "null":
            return {}
        case "gated":
            mix = dict(gate_weights) if gate_weights else uniform_mix(names)
        case "static":
            mix = dict(static) if static else uniform_mix(names)
        case "uniform":
            mix = uniform_mix(names)
        case "solo":
            mix = {view.adapter or "": 1.0}
        case "custom":
            mix = dict(view.mix or {})
    for name in mix:
        if name not in names and split_version(name)[1] is None:
            known = ", ".join(names) or "none are trained"
            raise UsageError(f"no trained adapter is called {name!r} (trained: {known}){meant(name, names)}")
    return mix
