"""When a gate has collapsed: it sends nearly everything to one adapter, whatever the prompt says.

The one rule for training, evaluation, `show` and the screen. All entropies are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dlm_tui.store.metrics_reader import weights_entropy

COLLAPSED_WEIGHT = 0.9
"""Least mean weight of the one adapter."""
COLLAPSED_ENTROPY = 0.25
"""Mean entropy of the prompts' weights, as a part of ln N, under which a gate is sure of itself."""
_LEAST_INFORMATION = 0.5


def collapse_floor(adapters: int) -> float:
    """Mean entropy under which a gate of N adapters with one dominant one can have collapsed: a quarter of ln N."""
    return COLLAPSED_ENTROPY * math.log(max(adapters, 2))


def collapsed_onto(
    mean_weights: Mapping[str, float], prompt_entropy: float | None, samples: Mapping[str, int]
) -> str | None:
    """The adapter that the gate collapsed onto, or None.

    `mean_weights` is the mean over the training prompts, `prompt_entropy` the mean of the prompts' entropies (None when
    it was not recorded), `samples` the number of labelled prompts per adapter. Collapsed means: one mean weight of at
    least 0.9, a mean entropy under `collapse_floor`, and little said about the labels. Where the document itself is
    lopsided the first two are right, so the third decides: the mutual information of prompt and adapter under the gate,
    H(mean weights) − mean H(weights), is less than half of the label entropy H(label shares).
    """
    if len(mean_weights) < 2:
        return None
    name, weight = max(mean_weights.items(), key=lambda item: item[1])
    spread, _ = weights_entropy(list(mean_weights.values()))
    if spread is None or weight < COLLAPSED_WEIGHT:
        return None
    # The entropy of the mean weights bounds the mean entropy from above, and the information with 0 in its place.
    if (spread if prompt_entropy is None else prompt_entropy) >= collapse_floor(len(mean_weights)):
        return None
    information = spread - (0.0 if prompt_entropy is None else prompt_entropy)
    counts = [samples.get(adapter, 0) for adapter in mean_weights]
    labels, _ = weights_entropy(counts if any(counts) else [1] * len(mean_weights))
    return name if labels is not None and information < _LEAST_INFORMATION * labels else None


def collapse_text(
    name: str, mean_weight: float, mean_entropy: float | None, entropy_lambda: float, samples: Mapping[str, int]
) -> str:
    """What a collapse means and the two things that help."""
    counts = ", ".join(f"{adapter} {count}" for adapter, count in samples.items())
    now = f" (now: {counts})" if counts else ""
    entropy = "" if mean_entropy is None else f", entropy {mean_entropy:.3f} nats"
    higher = min(1.0, max(0.05, entropy_lambda * 5))
    return (
        f"The gate collapsed onto {name} (mean weight {mean_weight:.2f}{entropy}): "
        f"raise training.gate.entropy_lambda from {entropy_lambda:g} to {higher:g} "
        f"and balance the sections per adapter{now}."
    )
