"""How far two next-token distributions are apart, in nats, also when only their most likely tokens are known.

Each side's tail mass is spread evenly over the tokens that side did not list. The supports are aligned
symmetrically: the union of the listed tokens, and one entry for all tokens neither side lists (which both give one
even density, so that lumping them is exact). Both sides are then normalised, so the results are never negative; when
both slices cover the vocabulary nothing is approximated.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dlm_tui.scoring.errors import NonFiniteScores, ScoringError
from dlm_tui.scoring.protocols import TokenDist

SMALLEST_MASS = float(np.finfo(np.float32).tiny)
"""What an unmeasurable tail counts as, so that a token the other side lists costs much, but not infinitely much."""


def kl_divergence(p: TokenDist, q: TokenDist) -> float:
    """KL(p ‖ q) = Σ p · ln(p / q) in nats, ≥ 0; infinite when q lists a token with probability exactly 0 that p uses.

    Raises ScoringError for distributions over different vocabularies, NonFiniteScores for NaN.
    """
    return _kl(*align(p, q))


def js_divergence(p: TokenDist, q: TokenDist) -> float:
    """Jensen–Shannon divergence in nats: ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q) / 2; symmetric, 0 … ln 2. Raises as
    KL.
    """
    left, right = align(p, q)
    middle = (left + right) / 2
    # the two halves are added in one fixed order, so that exchanging p and q changes nothing
    halves = sorted((_kl(left, middle), _kl(right, middle)))
    return min(0.5 * halves[0] + 0.5 * halves[1], math.log(2.0))


def align(p: TokenDist, q: TokenDist) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as probabilities over the same entries, each summing to 1: listed tokens by id, then all others as one."""
    if p.vocab_size != q.vocab_size:
        raise ScoringError(f"distributions over {p.vocab_size} and {q.vocab_size} tokens cannot be compared")
    _check(p)
    _check(q)
    union = np.union1d(p.token_ids, q.token_ids)
    left, right = _spread(p, union), _spread(q, union)
    return left / left.sum(), right / right.sum()


def _spread(dist: TokenDist, union: NDArray[np.int64]) -> NDArray[np.float64]:
    unseen = dist.vocab_size - len(dist.token_ids)
    if unseen == 0:
        tail = 0.0
    elif dist.tail_logprob is None or dist.tail_logprob == 0.0:
        tail = SMALLEST_MASS
    else:
        tail = max(math.exp(dist.tail_logprob), SMALLEST_MASS)
    each = tail / unseen if unseen else 0.0
    result = np.full(len(union) + 1, each)
    result[np.searchsorted(union, dist.token_ids)] = np.exp(dist.logprobs.astype(np.float64))
    result[-1] = each * (dist.vocab_size - len(union))
    return result


def _check(dist: TokenDist) -> None:
    if np.isnan(dist.logprobs).any() or (dist.logprobs == np.inf).any():
        raise NonFiniteScores("a distribution holds log-probabilities that are not numbers")
    if dist.tail_logprob is not None and not dist.tail_logprob <= 0.0:
        raise NonFiniteScores(f"a tail log-probability of {dist.tail_logprob} is not that of a mass")
    if len(dist.token_ids) == 0 or len(dist.token_ids) != len(dist.logprobs):
        raise ScoringError("a distribution needs one log-probability for each of its tokens, and at least one")
    if len(np.unique(dist.token_ids)) != len(dist.token_ids):
        raise ScoringError("a distribution lists a token twice")
    if dist.token_ids.min() < 0 or dist.token_ids.max() >= dist.vocab_size:
        raise ScoringError(f"a distribution lists a token outside its vocabulary of {dist.vocab_size}")
    if not np.exp(dist.logprobs.astype(np.float64)).sum() > 0.0:
        raise NonFiniteScores("a distribution has no mass")


def _kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    used = p > 0.0
    if (q[used] == 0.0).any():
        return math.inf
    return max(0.0, float(np.sum(p[used] * (np.log(p[used]) - np.log(q[used])))))
