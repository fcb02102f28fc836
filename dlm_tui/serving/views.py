"""From a request's `model` to the view that answers it. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from dlm_tui.document.mix import format_mix, parse_mix
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.meant import meant
from dlm_tui.model.views import BASE, GATED, STATIC, UNIFORM, View, custom, solo

_WORDS = {"gated": GATED, "base": BASE, "uniform": UNIFORM, "static_mean": STATIC, "static": STATIC}
_MIX = "mix:"
LARGEST_COEFFICIENT = 100.0
"""What a request may scale an adapter by. Far beyond, numbers overflow; in llama.cpp's cells they then stay, for
whoever is answered from them next."""
_MODES = {"base": "base", "uniform": "uniform", "static": "static_mean", "solo": "single", "custom": "hand_picked"}


class UnknownModel(UsageError):
    """The `model` of a request names nothing that is served."""


class UnservableMix(UsageError):
    """The `model` of a request is a mix that is not answered under."""

    param = "model"


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


Mixes = Mapping[str, Mapping[str, float]]
"""Name → adapter → coefficient."""


def no_mixes() -> Mixes:
    """Where no document stands beside what is served."""
    return {}


@dataclass(frozen=True)
class Models:
    """What the `model` of a request may name: the trained adapters, and the mixes that are saved now.

    `saved` reads them anew, so that a mix that is saved while the server runs is served; it may raise DlmTuiError.
    """

    adapters: tuple[str, ...]
    saved: Callable[[], Mixes] = no_mixes

    def listed(self) -> list[str]:
        """What `/v1/models` lists: the views, every trained adapter, then the saved mixes that can be served."""
        views = ["gated", "base", "uniform", "static_mean"] if self.adapters else ["gated", "base"]
        adapters = [f"adapter:{name}" if name in _WORDS else name for name in self.adapters]
        try:
            saved = [f"{_MIX}{name}" for name, mix in self.saved().items() if self._servable(mix)]
        except DlmTuiError:  # a file that cannot be read takes nothing else away; whoever asks for its mixes is told
            saved = []
        return views + adapters + saved

    def view(self, model: str | None) -> View:
        """The view that `model` means: gated (default), base, uniform, static_mean (static), an adapter's name,
        adapter:NAME, mix:NAME of a saved mix, or mix:a:0.7,b:-0.2. Raises UnknownModel, and UnservableMix for a
        coefficient beyond 100 either way.
        """
        text = (model or "gated").strip()
        if text in _WORDS:
            return _WORDS[text]
        if text.startswith(_MIX):
            return custom(_bounded(self._mix(text.removeprefix(_MIX))), name=text)
        name = text.removeprefix("adapter:")
        if name in self.adapters:
            return solo(name)
        listed = self.listed()
        there_are, near = ", ".join(listed), meant(text[:80], listed)
        raise UnknownModel(
            f"the model {text[:80]!r} is not served here; there are {there_are}, mix:NAME of a saved mix and"
            f" mix:NAME:WEIGHT,…{near}"
        )

    def _mix(self, text: str) -> dict[str, float]:
        try:
            if ":" in text:
                return dict(parse_mix(text, self.adapters, signed=True))
            saved = self.saved()
        except DlmTuiError as error:
            raise UnknownModel(str(error)) from None
        if text not in saved:
            there_are = f"; there are {', '.join(saved)}" if saved else ", nor under another name"
            near = meant(text[:80], saved)
            raise UnknownModel(f"no mix is saved as {text[:80]!r}{there_are}; weights are NAME:WEIGHT,…{near}")
        if strange := self._strange(saved[text]):
            raise UnknownModel(f"the mix {text!r} uses {', '.join(strange)}, not among the adapters that are served")
        return dict(saved[text])

    def _servable(self, mix: Mapping[str, float]) -> bool:
        return not self._strange(mix) and not _beyond(mix)

    def _strange(self, mix: Mapping[str, float]) -> list[str]:
        return [name for name in mix if name not in self.adapters]


def _bounded(mix: dict[str, float]) -> dict[str, float]:
    if beyond := _beyond(mix):
        raise UnservableMix(
            f"the coefficient of {beyond[0]} is {mix[beyond[0]]:g}, "
            f"and -{LARGEST_COEFFICIENT:g} to {LARGEST_COEFFICIENT:g} are answered here"
        )
    return mix


def _beyond(mix: Mapping[str, float]) -> list[str]:
    return [name for name, value in mix.items() if not abs(value) <= LARGEST_COEFFICIENT]


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


def among(decision: Decision, adapters: Collection[str]) -> Decision:
    """The decision as it is applied: without adapters that the gate knows and that are not served."""
    mix = {name: weight for name, weight in decision.weights.items() if name in adapters}
    return decision if len(mix) == len(decision.weights) else _with_weights(decision, mix)


def rounded(decision: Decision, step: float) -> Decision:
    """The decision in multiples of `step`, whose sum is the nearest to that of its weights: what rounding down leaves
    over goes where the most was cut, so that a distribution stays one."""
    exact = {name: weight / step for name, weight in decision.weights.items()}
    whole = {name: math.floor(value) for name, value in exact.items()}
    left = round(math.fsum(exact.values())) - sum(whole.values())
    for name in sorted(exact, key=lambda name: whole[name] - exact[name])[:left]:
        whole[name] += 1
    return _with_weights(decision, {name: round(count * step, 9) for name, count in whole.items()})


def _with_weights(decision: Decision, mix: dict[str, float]) -> Decision:
    """Weights and their entropy are told together."""
    spread, share = entropy_of(mix)
    return msgspec.structs.replace(decision, weights=mix, entropy=spread, normalised_entropy=share)


def entropy_of(mix: Mapping[str, float]) -> tuple[float | None, float | None]:
    """−Σ w ln w in nats of weights that sum to 1, and that divided by ln N (0 for one adapter); else (None, None)."""
    weights = list(mix.values())
    if not weights or any(weight < 0 for weight in weights) or abs(math.fsum(weights) - 1.0) > 1e-3:
        return None, None
    spread = max(0.0, -math.fsum(weight * math.log(weight) for weight in weights if weight > 0))
    return spread, (min(1.0, spread / math.log(len(weights))) if len(weights) > 1 else 0.0)
