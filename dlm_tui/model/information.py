"""Entropy and divergences of tensors, in nats, over the last axis. The one place of this arithmetic in torch.

`scoring.divergence` has the same for distributions of which only the most likely tokens are known (numpy), and
`store.weights_entropy` for plain numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy −Σ p ln p; [..., N] -> [...]; 0 · ln 0 counts as 0."""
    total: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return total


def entropy_of_logits(logits: Tensor) -> Tensor:
    """The entropy of softmax(logits), with finite gradients also where a probability underflows; [..., N] -> [...]."""
    logprobs = torch.log_softmax(logits, dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (ln p − ln q) ≥ 0 of full log-probabilities; [..., V] -> [...], in float64, differentiable."""
    first, second = p.double(), q.double()
    return (first.exp() * (first - second)).sum(dim=-1).clamp_min(0.0)


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen–Shannon divergence ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q) / 2, of full log-probabilities; 0 … ln 2."""
    middle = torch.logaddexp(p.double(), q.double()) - math.log(2.0)
    return (0.5 * kl_divergence(p, middle) + 0.5 * kl_divergence(q, middle)).clamp(0.0, math.log(2.0))
