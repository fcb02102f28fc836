"""From a request's `model` to the view that answers it. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from dlm_tui.document.mix import format_mix, parse_mix
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.model.views import BASE, GATED, STATIC, UNIFORM, View, custom, solo

_WORDS = {"gated": GATED, "base": BASE, "uniform": UNIFORM, "static_mean": STATIC, "static": STATIC}
_MODES = {"base": "base", "uniform": "uniform", "static": "static_mean", "solo": "single", "custom": "hand_picked"}


class UnknownModel(UsageError):
    """The `model` of a request names nothing that is served."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What one request is answered with: adapter → coefficient, and where that comes from.

    `mode` is the gate's (trained, stale, uniform, none) for a routed request, else base, uniform, static_mean, single
    or hand_picked. `entropy` in nats, None where the weights are no distribution. `ood_score` in [0, 1] and `is_ood`
    are given for routed prompts with a calibrated gate; `reason` says why the weights are not a fresh gate's own.
    """

    view: str
    weights: dict[str, float]
    mode: str
    entropy: float | None = None
    normalised_entropy: float | None = None
    ood_score: float | None = None
    is_ood: bool = False
    reason: str = ""

    def header(self) -> str:
        """The weights as a mix string, which reads back to exactly these numbers and is a `mix:` view itself."""
        return format_mix(self.weights)


def model_names(adapters: Sequence[str]) -> list[str]:
    """What `/v1/models` lists: the views, then every trained adapter."""
    views = ["gated", "base", "uniform", "static_mean"] if adapters else ["gated", "base"]
    return views + [f"adapter:{name}" if name in _WORDS else name for name in adapters]


def parse_view(model: str | None, adapters: Sequence[str]) -> View:
    """The view that `model` means: gated (default), base, uniform, static_mean (static), an adapter's name,
    adapter:NAME, or mix:a:0.7,b:-0.2. Raises UnknownModel.
    """
    text = (model or "gated").strip()
    if text in _WORDS:
        return _WORDS[text]
    if text.startswith("mix:"):
        try:
            return custom(dict(parse_mix(text.removeprefix("mix:"), adapters, signed=True)), name=text)
        except DlmTuiError as error:
            raise UnknownModel(str(error)) from None
    name = text.removeprefix("adapter:")
    if name in adapters:
        return solo(name)
    there_are = ", ".join(model_names(adapters))
    raise UnknownModel(f"the model {text[:80]!r} is not served here; there are {there_are} and mix:NAME:WEIGHT,…")


def applicable(view: View, adapters: Sequence[str], *, routed: bool) -> View:
    """`view`, or what `prompt` answers with in its place: `gated` without trained adapters is the base, with only
    one undeclared adapter that adapter, and uniform where the document switches its gate off (`routed` False).
    """
    if view.kind != "gated":
        return view if adapters or view.kind not in ("uniform", "static") else BASE
    if not adapters:
        return BASE
    if tuple(adapters) == ("default",):
        return solo("default")
    return view if routed else UNIFORM


def fixed_decision(view: View, mix: Mapping[str, float]) -> Decision:
    """The decision of a view that asks no gate."""
    spread, share = entropy_of(mix)
    name = "static_mean" if view.kind == "static" else view.name
    return Decision(view=name, weights=dict(mix), mode=_MODES[view.kind], entropy=spread, normalised_entropy=share)


def entropy_of(mix: Mapping[str, float]) -> tuple[float | None, float | None]:
    """−Σ w ln w in nats of weights that sum to 1, and that divided by ln N (0 for one adapter); else (None, None)."""
    weights = list(mix.values())
    if not weights or any(weight < 0 for weight in weights) or abs(math.fsum(weights) - 1.0) > 1e-3:
        return None, None
    spread = max(0.0, -math.fsum(weight * math.log(weight) for weight in weights if weight > 0))
    return spread, (min(1.0, spread / math.log(len(weights))) if len(weights) > 1 else 0.0)
