"""The z-score against Student's t and the normal distribution, integrated numerically."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from dlm_tui.scoring import log_effect, z_score
from dlm_tui.scoring.zscore import normal_deviate, summarise_nulls, z_of_effects


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


@pytest.mark.parametrize("count", [4, 8, 32])
def test_one_more_null_is_within_three_sigmas_as_often_as_it_should(count: int) -> None:
    random = np.random.default_rng(count)
    kls = np.exp(random.normal(-4.0, 0.6, size=(10_000, count + 1)))
    outside = sum(abs(z_score(row[0], row[1:].tolist()) or 0.0) > 3.0 for row in kls)
    assert 0.0010 < outside / len(kls) < 0.0055


def test_definition_step_by_step() -> None:
    nulls = [0.02, 0.03, 0.05, 0.01]
    effects = [math.log(kl) for kl in nulls]
    t = (math.log(0.5) - statistics.mean(effects)) / (statistics.stdev(effects) * math.sqrt(1.25))
    expected = 25 / 27 * math.sqrt(3 * math.log(1 + t * t / 3))
    assert z_score(0.5, nulls) == pytest.approx(expected, rel=1e-12)
    assert z_of_effects(math.log(0.5), effects) == z_score(0.5, nulls)
    assert log_effect(0.5) == math.log(0.5) and log_effect(0.0) == log_effect(-1e-18) == math.log(1e-12)


def test_z_rises_with_the_effect_and_few_nulls_claim_little() -> None:
    few, many = [0.01, 0.02, 0.04], [0.01, 0.02, 0.04] * 10
    values = [z_score(kl, many) for kl in (0.001, 0.01, 0.02, 0.1, 1.0)]
    assert values == sorted(values) and values[0] < 0 < values[-1]
    assert z_score(1.0, few) < 3.0 < 5.0 < z_score(1.0, many)  # type: ignore[operator]


def test_no_number_without_a_meaning() -> None:
    assert z_score(0.1, []) is None
    assert z_score(0.1, [0.1]) is None
    assert z_score(0.1, [0.0, 0.0, 0.0]) is None
    assert z_score(math.inf, [0.1, 0.2]) is None
    assert z_score(0.1, [0.1, math.nan]) is None
    assert summarise_nulls([]) is None
    assert summarise_nulls([0.25]).std == 0.0  # type: ignore[union-attr]
