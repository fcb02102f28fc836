"""Divergences of truncated distributions against sums over the whole vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_tui.scoring import TokenDist, js_divergence, kl_divergence
from dlm_tui.scoring.errors import NonFiniteScores, ScoringError

LOGITS = st.lists(st.floats(-12, 12), min_size=2, max_size=40)


def probabilities(logits: list[float]) -> np.ndarray:
    values = np.exp(np.array(logits) - max(logits))
    return values / values.sum()


def whole(p: np.ndarray) -> TokenDist:
    order = np.argsort(-p, kind="stable")
    return TokenDist(order.astype(np.int64), np.log(p[order]).astype(np.float32), len(p), None)


def top(p: np.ndarray, k: int) -> TokenDist:
    if k >= len(p):
        return whole(p)
    order = np.argsort(-p, kind="stable")
    tail = float(p[order[k:]].sum())
    return TokenDist(
        order[:k].astype(np.int64),
        np.log(p[order[:k]]).astype(np.float32),
        len(p),
        math.log(tail) if tail > 1e-40 else 0.0,
    )


def dense(p: np.ndarray, k: int) -> np.ndarray:
    """The top k as they are, the rest of the mass evenly over all other tokens: what a truncated slice stands for."""
    order = np.argsort(-p, kind="stable")
    result = np.empty_like(p)
    result[order[:k]] = p[order[:k]]
    if k < len(p):
        result[order[k:]] = p[order[k:]].sum() / (len(p) - k)
    return result


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sum(p * np.log(p / q)))


@st.composite
def two(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    size = draw(st.integers(2, 40))
    row = st.lists(st.floats(-8, 8), min_size=size, max_size=size)
    return (
        probabilities(draw(row)),
        probabilities(draw(row)),
        draw(st.integers(1, size)),
        draw(st.integers(1, size)),
    )


@given(two())
def test_whole_slices_are_exact(pair: tuple[np.ndarray, np.ndarray, int, int]) -> None:
    p, q, _, _ = pair
    middle = (p + q) / 2
    assert kl_divergence(whole(p), whole(q)) == pytest.approx(kl(p, q), abs=1e-5)
    assert js_divergence(whole(p), whole(q)) == pytest.approx(kl(p, middle) / 2 + kl(q, middle) / 2, abs=1e-5)


@given(two())
def test_truncated_slices_equal_the_dense_spread(pair: tuple[np.ndarray, np.ndarray, int, int]) -> None:
    p, q, left, right = pair
    dense_p, dense_q = dense(p, left), dense(q, right)
    middle = (dense_p + dense_q) / 2
    assert kl_divergence(top(p, left), top(q, right)) == pytest.approx(kl(dense_p, dense_q), abs=1e-5)
    expected = kl(dense_p, middle) / 2 + kl(dense_q, middle) / 2
    assert js_divergence(top(p, left), top(q, right)) == pytest.approx(expected, abs=1e-5)


@given(two())
@settings(max_examples=200)
def test_never_negative_symmetric_and_bounded(pair: tuple[np.ndarray, np.ndarray, int, int]) -> None:
    p, q, left, right = pair
    a, b = top(p, left), top(q, right)
    assert 0.0 <= kl_divergence(a, b) < math.inf
    assert 0.0 <= js_divergence(a, b) <= math.log(2)
    assert js_divergence(a, b) == js_divergence(b, a)
    assert kl_divergence(a, a) == pytest.approx(0.0, abs=1e-12)
    assert js_divergence(a, a) == pytest.approx(0.0, abs=1e-12)


@given(LOGITS, st.integers(1, 40), st.permutations(range(5)))
def test_the_order_of_listed_tokens_does_not_matter(logits: list[float], k: int, order: list[int]) -> None:
    p = probabilities(logits)
    dist, other = top(p, min(k, len(p))), whole(p[::-1].copy())
    turned = np.argsort([order[index % 5] for index in range(len(dist.token_ids))], kind="stable")
    moved = TokenDist(dist.token_ids[turned], dist.logprobs[turned], dist.vocab_size, dist.tail_logprob)
    assert kl_divergence(moved, other) == pytest.approx(kl_divergence(dist, other), abs=1e-12)


def listed(ids: list[int], probs: list[float], vocab: int, tail: float | None) -> TokenDist:
    return TokenDist(np.array(ids, dtype=np.int64), np.log(np.array(probs)).astype(np.float32), vocab, tail)


def test_disjoint_slices_stay_finite_and_large() -> None:
    p, q = listed([0, 1], [0.7, 0.3], 100, 0.0), listed([2, 3], [0.5, 0.5], 100, 0.0)
    assert 50 < kl_divergence(p, q) < math.inf
    assert js_divergence(p, q) == pytest.approx(math.log(2), abs=1e-6)


def test_none_and_zero_tails_mean_nothing_to_spread() -> None:
    near, far = listed([0, 1], [0.6, 0.4], 50, None), listed([0, 1], [0.6, 0.4], 50, 0.0)
    other = listed([1, 0], [0.8, 0.2], 50, None)
    assert kl_divergence(near, other) == kl_divergence(far, other)
    expected = 0.6 * math.log(0.6 / 0.2) + 0.4 * math.log(0.4 / 0.8)
    assert kl_divergence(near, other) == pytest.approx(expected, abs=1e-6)


def test_zero_probability_listed_by_the_other_side() -> None:
    p, q = listed([0, 1], [0.5, 0.5], 2, None), TokenDist(np.array([0, 1]), np.array([0.0, -np.inf], np.float32), 2)
    assert kl_divergence(p, q) == math.inf
    assert kl_divergence(q, p) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("dist", "error"),
    [
        (listed([0], [1.0], 3, None), ScoringError),
        (TokenDist(np.array([0]), np.array([np.nan], np.float32), 2), NonFiniteScores),
        (TokenDist(np.array([0]), np.array([np.inf], np.float32), 2), NonFiniteScores),
        (TokenDist(np.array([0]), np.array([-np.inf], np.float32), 2, -0.1), NonFiniteScores),
        (TokenDist(np.array([0]), np.array([-0.1], np.float32), 2, math.nan), NonFiniteScores),
        (TokenDist(np.array([0]), np.array([-0.1], np.float32), 2, 0.5), NonFiniteScores),
        (TokenDist(np.array([0, 0]), np.array([-0.1, -0.1], np.float32), 2), ScoringError),
        (TokenDist(np.array([2]), np.array([-0.1], np.float32), 2), ScoringError),
        (TokenDist(np.array([], np.int64), np.array([], np.float32), 2), ScoringError),
    ],
)
def test_what_is_no_distribution_is_refused(dist: TokenDist, error: type[Exception]) -> None:
    good = listed([0, 1], [0.5, 0.5], 2, None)
    with pytest.raises(error):
        kl_divergence(good, dist)
    with pytest.raises(error):
        js_divergence(dist, good)
