"""Is an effect larger than noise? One number, in standard deviations.

Definition. Let d = √(2·KL) be the effect of a view: to second order the Fisher–Rao distance between its next-token
distribution and the base's, which grows linearly with the adapter, while KL grows with its square. With the effects
d₁ … d_K of K null adapters, their mean m and standard deviation s (n − 1), one more null would give t = (d − m) / (s
· √(1 + 1/K)) following Student's t with K − 1 degrees of freedom, since m and s are themselves estimates. z is the
normal deviate with the same tail probability, by Wallace's approximation (1959): z = sign(t) · (8ν + 1)/(8ν + 3) ·
√(ν · ln(1 + t²/ν)), ν = K − 1. So |z| ≤ 3 has its usual meaning for a null adapter whatever K is, and few nulls
cannot claim many sigmas.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class NullSummary:
    """Mean and standard deviation (n − 1) of the null adapters' KL to the base, nats; std 0.0 for a single one."""

    mean: float
    std: float
    count: int


def effect_distance(kl: float) -> float:
    """√(2·KL), for a KL in nats."""
    return math.sqrt(2.0 * max(kl, 0.0))


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
    return z_of_distance(effect_distance(kl), [effect_distance(null) for null in null_kls])


def z_of_distance(distance: float, null_distances: Sequence[float]) -> float | None:
    """`z_score` of effects given as distances, for instance means of `effect_distance` over several prompts."""
    count = len(null_distances)
    if count < 2 or not all(map(math.isfinite, (distance, *null_distances))):
        return None
    spread = statistics.stdev(null_distances)
    if spread <= 1e-9 * max(map(abs, null_distances)):
        return None
    t = (distance - statistics.fmean(null_distances)) / (spread * math.sqrt(1 + 1 / count))
    return normal_deviate(t, count - 1)


def summarise_nulls(null_kls: Sequence[float]) -> NullSummary | None:
    """None without null adapters."""
    if not null_kls:
        return None
    std = statistics.stdev(null_kls) if len(null_kls) > 1 else 0.0
    return NullSummary(statistics.fmean(null_kls), std, len(null_kls))
