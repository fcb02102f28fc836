"""Out-of-distribution detection: how far a prompt lies from the training prompts, how surprised the base is by it.

Both are calibrated on held-out folds of the training prompts. Chosen by the tables in docs/out-of-distribution.md,
which `python -m tests.benchmarks.ood` makes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_tui.gate.calibration import stratified_folds
from dlm_tui.gate.report import OodRates
from dlm_tui.gate.surprise import Surprise

COMPONENTS = 32
FOLDS = 5
MINIMUM = 8
_SPARE = 16
_ITERATIONS = 6
_QUANTILE = 0.95
_SURPRISING = 0.975
_FAR = 1.5


@dataclass(frozen=True)
class Surprised:
    """The surprise of the training prompts, and what distance and surprise together were for held-out ones.

    mean, deviation: of −log p over all tokens of the training prompts, nats. A prompt's excess (Σ −log p − n·mean) /
    (√n · deviation) over its n tokens is its mean surprise in standard errors. excess_limit: what 97.5 % of the
    held-out prompts stay below; distance_limit: half as far again as the farthest of them, as surprise tells the kinds
    apart and the distance only has to see what lies beyond everything. A prompt's strangeness is the larger of
    distance / distance_limit and excess / excess_limit: above 1 it is out of distribution. held_out: sorted
    strangeness of held-out training prompts, float64.
    """

    mean: float
    deviation: float
    distance_limit: float
    excess_limit: float
    held_out: Tensor

    def strangeness(self, distance: float, surprise: Surprise) -> float:
        """Without a unit; by the distance alone for a prompt of one token, which nothing predicts."""
        apart = distance / self.distance_limit
        if surprise.tokens == 0:
            return apart
        excess = (surprise.total - surprise.tokens * self.mean) / (math.sqrt(surprise.tokens) * self.deviation)
        return max(apart, excess / self.excess_limit) if math.isfinite(excess) else math.inf


@dataclass(frozen=True)
class OodDetector:
    """A distance to the training embeddings and what it was for held-out training prompts.

    mean [H], axes [k, H] orthonormal, spread [k] variances along them, rest: mean variance outside them (all float64);
    held_out: sorted distances of training prompts to fits that did not see them; limit: a prompt above it is out of
    distribution. `surprised` judges by surprise as well; None for gates and bases without it.
    """

    mean: Tensor
    axes: Tensor
    spread: Tensor
    rest: float
    held_out: Tensor
    limit: float
    surprised: Surprised | None = None

    def distance(self, embeddings: Tensor) -> Tensor:
        """Shrunk Mahalanobis distance divided by √H; [n, H] -> [n], float64, no unit."""
        return _distance(self.mean, self.axes, self.spread, self.rest, embeddings)

    @property
    def statistics(self) -> tuple[str, ...]:
        """What a prompt is judged by."""
        return ("distance",) if self.surprised is None else ("distance", "surprise")

    def judge(self, embedding: Tensor, surprise: Surprise | None = None) -> tuple[float, bool]:
        """The share of held-out training prompts that were less strange than [H], and whether it exceeds the limit.

        By the distance alone without `surprise`, and where the detector does not know what to make of it.
        """
        score, held_out, limit = float(self.distance(embedding.reshape(1, -1))[0]), self.held_out, self.limit
        if self.surprised is not None and surprise is not None and math.isfinite(score):
            score, held_out, limit = self.surprised.strangeness(score, surprise), self.surprised.held_out, 1.0
        if not math.isfinite(score):
            return 1.0, True
        nearer = int(torch.searchsorted(held_out, torch.tensor(score, dtype=torch.float64)))
        return nearer / max(len(held_out), 1), score > limit

    def rates(self, embeddings: Tensor, surprises: Tensor | None) -> OodRates:
        """Of the training prompts' embeddings [n, H] and their `prompt_surprises` [n, 3]."""
        held_out, limit = self.held_out, self.limit
        if self.surprised is not None and surprises is not None:
            held_out, limit = self.surprised.held_out, 1.0
        own = [self.judge(row, _of_row(surprises, index))[1] for index, row in enumerate(embeddings)]
        held_out_share = float((held_out > limit).double().mean())
        return OodRates(limit=limit, own=sum(own) / max(len(own), 1), held_out=held_out_share)

    def distance_tensors(self) -> dict[str, Tensor]:
        """The distance's part of what is stored. Axes in float32: orthonormal to a few digits is enough."""
        return {
            "mean": self.mean,
            "axes": self.axes.float(),
            "spread": self.spread,
            "held_out": self.held_out,
            "rest_limit": torch.tensor([self.rest, self.limit], dtype=torch.float64),
        }

    def tensors(self) -> dict[str, Tensor]:
        """What is stored; `restore` reads it back."""
        found = self.distance_tensors()
        if self.surprised is not None:
            one = self.surprised
            scale = [one.mean, one.deviation, one.distance_limit, one.excess_limit]
            found["surprise_scale"] = torch.tensor(scale, dtype=torch.float64)
            found["surprise_held_out"] = one.held_out
        return found

    @staticmethod
    def restore(tensors: dict[str, Tensor]) -> OodDetector:
        """Raises KeyError or ValueError when the tensors are not what `tensors` gives."""
        rest, limit = tensors["rest_limit"].tolist()
        mean, axes, spread = tensors["mean"].double(), tensors["axes"].double(), tensors["spread"].double()
        if mean.ndim != 1 or axes.shape != (len(spread), len(mean)) or not rest > 0:
            raise ValueError("the record of the detector has inconsistent shapes")
        surprised = None
        if "surprise_scale" in tensors:
            level, deviation, distance_limit, excess_limit = tensors["surprise_scale"].tolist()
            if not (math.isfinite(level) and min(deviation, distance_limit, excess_limit) > 0):
                raise ValueError("the record of the detector has an impossible scale")
            joint = tensors["surprise_held_out"].double()
            surprised = Surprised(level, deviation, distance_limit, excess_limit, joint)
        return OodDetector(mean, axes, spread, rest, tensors["held_out"].double(), limit, surprised)


def fit_ood(embeddings: Tensor, labels: list[int], seed: int, surprises: Tensor | None = None) -> OodDetector | None:
    """Fit on all rows of [n, H]; calibrate on stratified folds. None with fewer than 8 prompts or without any spread.

    The limit is the distance that 95 % of the held-out prompts stay below. A new prompt is compared with all of them
    instead of four fifths, so that fewer than one in twenty of the known kinds lies above it. `surprises` [n, 3] are
    the same prompts' `prompt_surprises`: with them the detector judges by both.
    """
    rows = embeddings.detach().double()
    if len(rows) < MINIMUM:
        return None
    assigned = torch.tensor(stratified_folds(labels, FOLDS, seed))
    apart = torch.zeros(len(rows), dtype=torch.float64)
    for fold in range(FOLDS):
        fitted = _fit(rows[assigned != fold])
        if fitted is None:
            return None
        apart[assigned == fold] = _distance(*fitted, rows[assigned == fold])
    whole = _fit(rows)
    if whole is None or not bool((apart > 0).all()):
        return None
    surprised = _fit_surprised(apart, surprises.double(), assigned) if surprises is not None else None
    return OodDetector(*whole, apart.sort().values, float(torch.quantile(apart, _QUANTILE)), surprised)


def _fit_surprised(distances: Tensor, surprises: Tensor, assigned: Tensor) -> Surprised | None:
    """From held-out distances [n], surprises [n, 3] and folds [n]; None where there is not enough to go by."""
    told = surprises[:, 0] > 0
    excess = torch.zeros(len(distances), dtype=torch.float64)
    for fold in range(FOLDS):
        scale = _scale(surprises[assigned != fold])
        if scale is None:
            return None
        count, total = surprises[assigned == fold, :2].unbind(dim=1)
        excess[assigned == fold] = (total - count * scale[0]) / (count.clamp_min(1).sqrt() * scale[1])
    whole = _scale(surprises)
    if whole is None or int(told.sum()) < MINIMUM or not bool(torch.isfinite(excess).all()):
        return None
    distance_limit = _FAR * float(distances.max())
    excess_limit = float(torch.quantile(excess[told], _SURPRISING))
    if not excess_limit > 0:
        return None
    apart = distances / distance_limit
    strangeness = torch.where(told, torch.maximum(apart, excess / excess_limit), apart)
    return Surprised(*whole, distance_limit, excess_limit, strangeness.sort().values)


def _scale(surprises: Tensor) -> tuple[float, float] | None:
    """Mean and deviation of −log p over all tokens of the prompts [n, 3], nats; None without any spread."""
    count, total, squares = surprises.sum(dim=0).tolist()
    if count < 2:
        return None
    mean = total / count
    variance = (squares - count * mean * mean) / (count - 1)
    return (mean, math.sqrt(variance)) if math.isfinite(variance) and variance > 0 else None


def _of_row(surprises: Tensor | None, index: int) -> Surprise | None:
    return Surprise(int(surprises[index, 0]), float(surprises[index, 1])) if surprises is not None else None


def _fit(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, float] | None:
    """Mean, leading axes, shrunk variances along them and the variance of the rest; None without any spread."""
    count, size = rows.shape
    mean = rows.mean(dim=0)
    centred = rows - mean
    total = float(centred.square().sum()) / max(count - 1, 1)
    if not math.isfinite(total) or total <= 0:
        return None
    kept = min(COMPONENTS, count - 1, size)
    variances, axes = _leading(centred, kept)
    share = kept / (kept + count)
    average = total / size
    spread = (1 - share) * variances + share * average
    outside = max(total - float(variances.sum()), 0.0)
    rest = (1 - share) * outside / max(size - kept, 1) + share * average
    return mean, axes, spread, rest


def _leading(centred: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The `kept` largest variances and their axes [kept, H] of centred rows [n, H].

    Exact for small inputs, else by subspace iteration (Halko et al. 2011), seeded: a full decomposition of a few
    hundred prompts takes longer than training the gate.
    """
    count, size = centred.shape
    width = kept + _SPARE
    if width < min(count, size):
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(size, width, generator=generator, dtype=torch.float64)
        for _ in range(_ITERATIONS):
            basis = torch.linalg.qr(centred.T @ (centred @ basis)).Q
        _, singular, inner = torch.linalg.svd(centred @ basis, full_matrices=False)
        axes = inner @ basis.T
    else:
        _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
    return singular[:kept].square() / max(count - 1, 1), axes[:kept]


def _distance(mean: Tensor, axes: Tensor, spread: Tensor, rest: float, rows: Tensor) -> Tensor:
    centred = rows.double() - mean
    along = centred @ axes.T
    outside = (centred.square().sum(dim=-1) - along.square().sum(dim=-1)).clamp_min(0)
    squared = (along.square() / spread).sum(dim=-1) + outside / rest
    return (squared / len(mean)).sqrt()
