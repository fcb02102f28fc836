"""The z-score against Student's t and the normal distribution, integrated numerically."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from dlm_tui.scoring import effect_distance, z_score
from dlm_tui.scoring.zscore import normal_deviate, summarise_nulls


def upper_tail(t: float, freedom: int) -> float:
    """P(T > t) of Student's t by the substitution x = √ν tan θ, integrated with a fine midpoint rule."""
    theta = np.linspace(math.atan(t / math.sqrt(freedom)), math.pi / 2, 400_001)
    middle = (theta[1:] + theta[:-1]) / 2
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return float(constant * np.sum(np.cos(middle) ** (freedom - 1)) * (theta[1] - theta[0]))


@pytest.mark.parametrize("freedom", [3, 7, 15, 31])
@pytest.mark.parametrize("t", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_deviate_has_the_tail_probability_of_t(t: float, freedom: int) -> None:
    exact = statistics.NormalDist().inv_cdf(1 - upper_tail(t, freedom))
    assert normal_deviate(t, freedom) == pytest.approx(exact, rel=0.03)
    assert normal_deviate(-t, freedom) == -normal_deviate(t, freedom)


@pytest.mark.parametrize("count", [4, 8, 16])
def test_one_more_gaussian_null_is_within_three_sigmas_as_often_as_it_should(count: int) -> None:
    random = np.random.default_rng(count)
    distances = np.abs(random.normal(1.0, 0.15, size=(20_000, count + 1)))
    kls = distances**2 / 2
    outside = sum(abs(z_score(row[0], row[1:].tolist()) or 0.0) > 3.0 for row in kls)
    assert 0.0010 < outside / len(kls) < 0.0055


def test_definition_step_by_step() -> None:
    nulls = [0.02, 0.03, 0.05, 0.01]
    distances = [math.sqrt(2 * kl) for kl in nulls]
    t = (math.sqrt(2 * 0.5) - statistics.mean(distances)) / (statistics.stdev(distances) * math.sqrt(1.25))
    expected = 25 / 27 * math.sqrt(3 * math.log(1 + t * t / 3))
    assert z_score(0.5, nulls) == pytest.approx(expected, rel=1e-12)
    assert effect_distance(0.5) == 1.0 and effect_distance(-1e-18) == 0.0


def test_no_number_without_a_meaning() -> None:
    assert z_score(0.1, []) is None
    assert z_score(0.1, [0.1]) is None
    assert z_score(0.1, [0.0, 0.0, 0.0]) is None
    assert z_score(math.inf, [0.1, 0.2]) is None
    assert z_score(0.1, [0.1, math.nan]) is None
    assert summarise_nulls([]) is None
    assert summarise_nulls([0.25]).std == 0.0  # type: ignore[union-attr]
