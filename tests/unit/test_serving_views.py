"""What a request is answered with: weights and the numbers that are told of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_tui.serving.views import Decision, entropy_of, rounded


def decided(weights: dict[str, float]) -> Decision:
    spread, share = entropy_of(weights)
    return Decision(view="gated", weights=weights, mode="trained", entropy=spread, normalised_entropy=share)


@pytest.mark.parametrize(
    ("weights", "step", "wanted"),
    [
        ({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 0.05, {"a": 0.35, "b": 0.35, "c": 0.3}),
        ({"a": 0.62, "b": 0.2, "c": 0.18}, 0.25, {"a": 0.5, "b": 0.25, "c": 0.25}),
        ({"a": 0.3, "b": 0.7}, 0.1, {"a": 0.3, "b": 0.7}),
        ({"a": 1.0}, 0.5, {"a": 1.0}),
        ({"a": 0.41, "b": 0.2}, 0.1, {"a": 0.4, "b": 0.2}),
        ({}, 0.5, {}),
    ],
)
def test_rounded_weights_keep_their_sum(weights: dict[str, float], step: float, wanted: dict[str, float]) -> None:
    assert rounded(decided(weights), step).weights == wanted


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12), st.integers(2, 100))
def test_what_is_told_of_rounded_weights_is_theirs(raw: list[float], parts: int) -> None:
    total = math.fsum(raw)
    weights = {str(number): value / total if total > 1e-6 else 1 / len(raw) for number, value in enumerate(raw)}
    found = rounded(decided(weights), 1 / parts)
    assert math.fsum(found.weights.values()) == pytest.approx(1.0, abs=1e-6)
    assert (found.entropy, found.normalised_entropy) == entropy_of(found.weights)
    assert found.entropy is not None
    assert all(abs(value - weights[name]) < 1 / parts + 1e-6 for name, value in found.weights.items())
