"""Out-of-distribution detection: how far a prompt lies from the training prompts, calibrated on held-out folds.

Chosen by the tables in docs/out-of-distribution.md, which `python -m tests.benchmarks.ood` makes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_tui.gate.calibration import stratified_folds

COMPONENTS = 32
FOLDS = 5
MINIMUM = 8
_SPARE = 16
_ITERATIONS = 6
_QUANTILE = 0.95


@dataclass(frozen=True)
class OodDetector:
    """A distance to the training embeddings and what it was for held-out training prompts.

    mean [H], axes [k, H] orthonormal, spread [k] variances along them, rest: mean variance outside them (all float64);
    held_out: sorted distances of training prompts to fits that did not see them; limit: a prompt above it is out of
    distribution.
    """

    mean: Tensor
    axes: Tensor
    spread: Tensor
    rest: float
    held_out: Tensor
    limit: float

    def distance(self, embeddings: Tensor) -> Tensor:
        """Shrunk Mahalanobis distance divided by √H; [n, H] -> [n], float64, no unit."""
        return _distance(self.mean, self.axes, self.spread, self.rest, embeddings)

    def judge(self, embedding: Tensor) -> tuple[float, bool]:
        """The share of held-out training prompts that lie nearer than [H], and whether it exceeds the limit."""
        distance = float(self.distance(embedding.reshape(1, -1))[0])
        if not math.isfinite(distance):
            return 1.0, True
        nearer = int(torch.searchsorted(self.held_out, torch.tensor(distance, dtype=torch.float64)))
        return nearer / max(len(self.held_out), 1), distance > self.limit

    def tensors(self) -> dict[str, Tensor]:
        """What is stored; `restore` reads it back. Axes in float32: orthonormal to a few digits is enough."""
        return {
            "mean": self.mean,
            "axes": self.axes.float(),
            "spread": self.spread,
            "held_out": self.held_out,
            "rest_limit": torch.tensor([self.rest, self.limit], dtype=torch.float64),
        }

    @staticmethod
    def restore(tensors: dict[str, Tensor]) -> OodDetector:
        """Raises KeyError or ValueError when the tensors are not what `tensors` gives."""
        rest, limit = tensors["rest_limit"].tolist()
        mean, axes, spread = tensors["mean"].double(), tensors["axes"].double(), tensors["spread"].double()
        if mean.ndim != 1 or axes.shape != (len(spread), len(mean)) or not rest > 0:
            raise ValueError("the record of the detector has inconsistent shapes")
        return OodDetector(mean, axes, spread, rest, tensors["held_out"].double(), limit)


def fit_ood(embeddings: Tensor, labels: list[int], seed: int) -> OodDetector | None:
    """Fit on all rows of [n, H]; calibrate on stratified folds. None with fewer than 8 prompts or without any spread.

    The limit is the distance that 95 % of the held-out prompts stay below. A new prompt is compared with all of them
    instead of four fifths, so that fewer than one in twenty of the known kinds lies above it.
    """
    rows = embeddings.detach().double()
    if len(rows) < MINIMUM:
        return None
    assigned = torch.tensor(stratified_folds(labels, FOLDS, seed))
    held_out = []
    for fold in range(FOLDS):
        fitted = _fit(rows[assigned != fold])
        if fitted is None:
            return None
        held_out.append(_distance(*fitted, rows[assigned == fold]))
    distances = torch.cat(held_out).sort().values
    whole = _fit(rows)
    if whole is None or not bool((distances > 0).all()):
        return None
    return OodDetector(*whole, distances, float(torch.quantile(distances, _QUANTILE)))


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
