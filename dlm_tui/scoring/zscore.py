"""Is an effect larger than noise? One number, in standard deviations.

Definition. The effect of a view on a prompt is x = ln KL, with KL(view ‖ base) in nats; over several prompts it is
the mean of their x. K null adapters give effects x₁ … x_K with mean m and standard deviation s (n − 1). One more
null would give t = (x − m) / (s · √(1 + 1/K)), which follows Student's t with K − 1 degrees of freedom, because m
and s are themselves estimates. z is the normal deviate with the same tail probability, by Wallace's approximation
(1959): z = sign(t) · (8ν + 1)/(8ν + 3) · √(ν · ln(1 + t²/ν)), ν = K − 1.

So |z| > 3 has its usual meaning for a null whatever K is, and few nulls cannot claim many sigmas (K = 8 hardly
reaches 5). The logarithm is taken because a random adapter's effect is a product of factors, layer after layer: on
the bundled base the KL of nulls has a skewness of 2 to 7 and leaves ±3 in 2 to 4 % of cases, ln KL one of 0.1 to
0.6, and leaves it in 0.2 to 0.6 % (a normal value: 0.3 %).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SMALLEST_EFFECT = 1e-12
"""KL in nats below which a difference is rounding in float32."""


@dataclass(frozen=True)
class NullSummary:
    """Mean and standard deviation (n − 1) of the null adapters' KL to the base, nats; std 0.0 for a single one."""

    mean: float
    std: float
    count: int


def log_effect(kl: float) -> float:
    """ln KL for a KL in nats, not below that of rounding."""
    return math.log(max(kl, SMALLEST_EFFECT))


def normal_deviate(t: float, freedom: int) -> float:
    """The standard normal value with the tail probability of Student's t; Wallace's approximation, see the module
    text.
    """
    factor = (8 * freedom + 1) / (8 * freedom + 3)
    return math.copysign(factor * math.sqrt(freedom * math.log1p(t * t / freedom)), t)


def z_score(kl: float, null_kls: Sequence[float]) -> float | None:
    """Standard deviations by which an effect of `kl` nats lies above null effects; see the module text.

    None when it means nothing: fewer than two nulls, nulls that do not vary, or a value that is not finite.
    """
    if not all(map(math.isfinite, (kl, *null_kls))):
        return None
    return z_of_effects(log_effect(kl), [log_effect(null) for null in null_kls])


def z_of_effects(effect: float, null_effects: Sequence[float]) -> float | None:
    """`z_score` of effects given as `log_effect`, for instance means of it over several prompts."""
    count = len(null_effects)
    if count < 2:
        return None
    spread = statistics.stdev(null_effects)
    if spread <= 1e-9:
        return None
    t = (effect - statistics.fmean(null_effects)) / (spread * math.sqrt(1 + 1 / count))
    return normal_deviate(t, count - 1)


def summarise_nulls(null_kls: Sequence[float]) -> NullSummary | None:
    """None without null adapters."""
    if not null_kls:
        return None
    std = statistics.stdev(null_kls) if len(null_kls) > 1 else 0.0
    return NullSummary(statistics.fmean(null_kls), std, len(null_kls))
