"""What goes wrong with gates, in words a person can act on. No torch."""

from __future__ import annotations

BADLY_CALIBRATED = 0.1
_NOTHING_NATS = 5e-5
"""Below this a KL is told as 0.0000 nats, and a ratio of two such is chance."""


def verdict_text(
    accuracy: float, recall: float, adapters: int, collapse: str | None, ece: float, temperature: float
) -> str:
    """One sentence on the held-out figures.

    `accuracy` is the share of all prompts that are routed to their adapter, `recall` the mean over the adapters of that
    share among their own: always naming the largest of N adapters gives its label share and 1/N.
    """
    if collapse is not None:
        return collapse
    chance = 1.0 / max(adapters, 1)
    if recall < chance + 0.1:
        return (
            f"The gate does not tell the adapters apart: it finds {recall:.0%} of each one's held-out prompts on "
            f"average, chance is {chance:.0%}. "
            "Add sections, or make the adapters' prompts more different."
        )
    routed = f"The gate routes {accuracy:.0%} of held-out prompts to their adapter"
    if ece >= BADLY_CALIBRATED:
        direction = "too sure of itself" if temperature > 1 else "less sure than it could be"
        remedy = f"temperature {temperature:.2f} would correct that"
        return f"{routed}; it is {direction} (calibration error {ece:.2f}), {remedy}."
    return f"{routed} and its weights can be read as probabilities (calibration error {ece:.2f})."


def kept_share(frozen: float, uniform: float) -> float | None:
    """1 − frozen / uniform of the KLs to the live gate (nats); None when not even the uniform mix differs from it."""
    return 1.0 - frozen / uniform if uniform >= _NOTHING_NATS else None


def frozen_text(kept: float | None, frozen: float, uniform: float, best: float) -> str:
    """What freezing costs: KL to the live gate in nats of the frozen, uniform and best mix.

    `kept` = 1 − frozen / uniform, None when not even the uniform mix differs from the live gate.
    """
    if kept is None:
        what = "The gate makes no measurable difference on these prompts: a uniform mix answers as the live gate does"
        return (
            f"{what}, and so does the frozen one."
            if frozen < _NOTHING_NATS
            else f"{what}, this one {frozen:.4f} nats off."
        )
    figures = f"KL to the live gate {frozen:.4f} nats frozen, {uniform:.4f} uniform, {best:.4f} with the best mix"
    advice = " (--mix best)" if best < 0.9 * frozen and frozen >= _NOTHING_NATS else ""
    if kept < 0.5:
        return f"Freezing loses most of what the gate learned, {1 - max(0.0, kept):.0%} of it: {figures}{advice}."
    return f"Freezing keeps {kept:.0%} of what the gate learned over a uniform mix: {figures}{advice}."
