"""What goes wrong with gates, in words a person can act on. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dlm_tui.store.gate_report import COLLAPSED_ENTROPY, COLLAPSED_WEIGHT

BADLY_CALIBRATED = 0.1


def collapse_floor(adapters: int) -> float:
    """Mean entropy, in nats, under which a gate with one dominant adapter counts as collapsed: a quarter of ln N."""
    return COLLAPSED_ENTROPY * math.log(max(adapters, 2))


def collapsed_onto(mean_weights: Mapping[str, float], mean_entropy: float) -> str | None:
    """The adapter that the gate collapsed onto: entropy under the floor and one mean weight of at least 0.9."""
    if len(mean_weights) < 2 or mean_entropy >= collapse_floor(len(mean_weights)):
        return None
    name, weight = max(mean_weights.items(), key=lambda item: item[1])
    return name if weight >= COLLAPSED_WEIGHT else None


def collapse_text(
    name: str, mean_weight: float, mean_entropy: float, entropy_lambda: float, counts: Mapping[str, int]
) -> str:
    """What a collapse means and the two things that help."""
    few = ", ".join(f"{adapter} {count}" for adapter, count in counts.items())
    higher = min(1.0, max(0.05, entropy_lambda * 5))
    return (
        f"The gate collapsed onto {name} (mean weight {mean_weight:.2f}, entropy {mean_entropy:.2f} nats): "
        f"raise training.gate.entropy_lambda from {entropy_lambda:g} to {higher:g} "
        f"and balance the sections per adapter (now: {few})."
    )


def cold_start_text(missing: Mapping[str, int], floor: int) -> str:
    """Which adapters need how many more sections."""
    needs = ", ".join(f"{name} {count}" for name, count in missing.items())
    return (
        f"Too few prompts to train a gate (cold_start_floor is {floor}): sections still needed: {needs}. "
        "Until then every adapter has the same weight."
    )


def diverged_text(in_force: str) -> str:
    """What happens after a divergence; `in_force` is the mode of the gate that stays: trained, uniform or none."""
    stays = "no gate was there before" if in_force == "none" else f"the previous {in_force} gate stays in force"
    return (
        f"The last gate training diverged (its loss was not finite): the adapters are committed, {stays}, "
        "and the next run tries again. Lower training.gate.lr if it happens again."
    )


def verdict_text(accuracy: float, adapters: int, collapse: str | None, ece: float, temperature: float) -> str:
    """One sentence on the held-out figures."""
    if collapse is not None:
        return collapse
    chance = 1.0 / max(adapters, 1)
    if accuracy < chance + 0.1:
        return (
            f"The gate does not tell the adapters apart: {accuracy:.0%} of held-out prompts, chance is {chance:.0%}. "
            "Add sections, or make the adapters' prompts more different."
        )
    routed = f"The gate routes {accuracy:.0%} of held-out prompts to their adapter"
    if ece >= BADLY_CALIBRATED:
        direction = "too sure of itself" if temperature > 1 else "less sure than it could be"
        remedy = f"temperature {temperature:.2f} would correct that"
        return f"{routed}; it is {direction} (calibration error {ece:.2f}), {remedy}."
    return f"{routed} and its weights can be read as probabilities (calibration error {ece:.2f})."


def frozen_text(kept: float | None, frozen: float, uniform: float, best: float) -> str:
    """What freezing costs: KL to the live gate in nats of the frozen, uniform and best mix.

    `kept` = 1 − frozen / uniform, None when not even the uniform mix differs from the live gate.
    """
    if kept is None:
        return "Freezing changes nothing that can be measured: a uniform mix already answers as the live gate does."
    figures = f"KL to the live gate {frozen:.4f} nats frozen, {uniform:.4f} uniform, {best:.4f} with the best mix"
    advice = " (--mix best)" if best < 0.9 * frozen else ""
    if kept < 0.5:
        return f"Freezing loses most of what the gate learned, {1 - max(0.0, kept):.0%} of it: {figures}{advice}."
    return f"Freezing keeps {kept:.0%} of what the gate learned over a uniform mix: {figures}{advice}."
