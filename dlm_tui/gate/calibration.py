"""How far the gate's weights can be believed: accuracy, log loss, calibration error, temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dlm_tui.model.information import entropy_of_logits

BINS = 10
_GRID = 121
_CEILING = math.log(20.0)


@dataclass(frozen=True)
class Scores:
    """Accuracy and expected calibration error in [0, 1]; log loss and mean entropy in nats."""

    accuracy: float
    log_loss: float
    ece: float
    mean_entropy: float


def scores(logits: Tensor, labels: Tensor) -> Scores:
    """Judge logits [n, N] against labels [n], n ≥ 1, computed in float64."""
    log_weights = torch.log_softmax(logits.double(), dim=-1)
    weights = log_weights.exp()
    hits = weights.argmax(dim=-1) == labels
    return Scores(
        accuracy=float(hits.double().mean()),
        log_loss=float(functional.nll_loss(log_weights, labels)),
        ece=expected_calibration_error(weights, labels),
        mean_entropy=float(entropy_of_logits(logits.double()).mean()),
    )


def expected_calibration_error(weights: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Σ over ten equal bins of the top weight: share of prompts · |accuracy − mean top weight| (Guo et al. 2017)."""
    top, chosen = weights.max(dim=-1)
    hits = (chosen == labels).double()
    which = (top * bins).long().clamp(0, bins - 1)
    error = 0.0
    for index in range(bins):
        inside = which == index
        if bool(inside.any()):
            gap = float(hits[inside].mean()) - float(top[inside].double().mean())
            error += float(inside.double().mean()) * abs(gap)
    return error


def confusion(logits: Tensor, labels: Tensor, adapters: int) -> list[list[int]]:
    """Counts [true adapter][top adapter]."""
    table = torch.zeros(adapters, adapters, dtype=torch.long)
    for truth, guess in zip(labels.tolist(), logits.argmax(dim=-1).tolist(), strict=True):
        table[truth, guess] += 1
    rows: list[list[int]] = table.tolist()
    return rows


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in [1/20, 20] that minimises the log loss of softmax(logits / T) on held-out logits [n, N].

    The log loss is convex in 1/T: a logarithmic grid, then golden-section search around its best point.
    """
    scaled = logits.double()

    def loss(log_temperature: float) -> float:
        return float(functional.cross_entropy(scaled / math.exp(log_temperature), labels))

    step = 2 * _CEILING / (_GRID - 1)
    grid = [-_CEILING + step * index for index in range(_GRID)]
    middle = min(grid, key=loss)
    low, high = max(middle - step, -_CEILING), min(middle + step, _CEILING)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def stratified_folds(labels: list[int], folds: int, seed: int) -> list[int]:
    """The fold 0…folds−1 of every prompt: each adapter's prompts are shuffled by `seed` and dealt out in turn.

    Dealing goes on where the last adapter stopped, so that fold sizes differ by at most one.
    """
    generator = torch.Generator().manual_seed(seed)
    assigned = [0] * len(labels)
    turn = 0
    for label in sorted(set(labels)):
        members = [index for index, value in enumerate(labels) if value == label]
        for position in torch.randperm(len(members), generator=generator).tolist():
            assigned[members[position]] = turn % folds
            turn += 1
    return assigned
