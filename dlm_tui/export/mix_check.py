"""Is the mix in rounded weights, and no more of any adapter than was meant? Told by what the rounding leaves.

An adapter is a few per cent of the weights it changes, and rounding to four bits is more than that: how far a tensor is
from what was meant does not tell whether the mix is in it. Which way it is off does. Rounding leaves an error that
knows nothing of a given direction Δ (what an adapter adds), while a mix that is left out, doubled or another's leaves
an error along it: <stored - meant, Δ> / <Δ, Δ> is -1 where Δ was left out, 1 where it was added twice.

Where the base's own weights stand on a grid, as those of one that was quantised before, rounding takes them back to it,
and of the mix what it takes: there the same rounding is done once more, and has to leave the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_tui.export.concatenate import LoraPair
from dlm_tui.export.requests import ExportRefused

MIX = "the mix"
"""What the directions that are looked along call the exported mix, beside the adapters by their names."""

Directions = Mapping[str, Mapping[str, LoraPair]]
"""Name -> what it adds, module -> pair."""

_SIGMAS = 8.0
_SHRINKING = 4.0
_SLACK = 0.05
_MOST_LOST = 0.5
"""Of a mix, in the rounding of the whole file."""
_TELLING = 0.5
"""Where the tolerance is larger than this, one tensor alone tells nothing."""


@dataclass
class _Along:
    """Sums over the numbers of a tensor: error times Δ, Δ², and what was meant times Δ."""

    error: float = 0.0
    size: float = 0.0
    meant: float = 0.0


class Error:
    """What the rounding of one tensor left, and how much of it lies along each direction.

    Of n errors with the mean square σ², independent of Δ, the sum over error·Δ has the standard deviation σ‖Δ‖; so
    |<error, Δ>| / ‖Δ‖² is at most k σ / ‖Δ‖ with k = 8, because the numbers of a block share a scale and are not quite
    independent (right exports measured below 3). Rounding to a mean also shrinks: <error, meant> is about -‖error‖²,
    which leaves ‖error‖²/‖meant‖² of <meant, Δ>; four times that is accepted, and 0.05 of Δ in any case.
    """

    def __init__(self, pairs: Mapping[str, LoraPair]) -> None:
        """`pairs`: direction -> what it adds to the rows of this tensor."""
        self._pairs = pairs
        self._along = {name: _Along() for name in pairs}
        self._apart, self._size, self._count = 0.0, 0.0, 0

    def add(self, stored: Tensor, meant: Tensor, start: int = 0) -> None:
        """Rows from `start` on, as transformers has them."""
        error, wanted = stored.double() - meant.double(), meant.double()
        self._apart += float(error.square().sum())
        self._size += float(wanted.square().sum())
        self._count += error.numel()
        for name, pair in self._pairs.items():
            delta = (pair.lora_B[start : start + len(stored)] @ pair.lora_A).double()
            sums = self._along[name]
            sums.error += float((error * delta).sum())
            sums.size += float(delta.square().sum())
            sums.meant += float((wanted * delta).sum())

    @property
    def relative(self) -> float:
        """‖stored - meant‖ / ‖meant‖; NaN counts as far away."""
        ratio = (self._apart / self._size) ** 0.5 if self._size else self._apart**0.5
        return ratio if ratio == ratio else float("inf")

    @property
    def variance(self) -> float:
        """The mean square of the errors."""
        return self._apart / self._count if self._count else 0.0

    @property
    def along(self) -> dict[str, _Along]:
        """The directions that change anything here."""
        return {name: sums for name, sums in self._along.items() if sums.size > 0}

    def shrunk(self, sums: _Along) -> float:
        """How much of <error, Δ> the shrinking explains."""
        return _SHRINKING * self._apart / self._size * abs(sums.meant) if self._size else 0.0


class MixCheck:
    """Judges tensor by tensor, and what single tensors do not tell over all of them together."""

    def __init__(self) -> None:
        self._pooled: dict[str, _Along] = {}
        self._uncertain: dict[str, list[tuple[float, Callable[[], Error]]]] = {}  # variance, the rounding once more
        self._whole = _Along()
        self._telling = 0
        self.worst = 0.0

    @property
    def lost(self) -> float:
        """The share of the mix that rounding took, over all tensors."""
        return max(0.0, -self._whole.error / self._whole.size) if self._whole.size else 0.0

    def judge(self, tensor: str, error: Error, kind: str, rounded_again: Callable[[], Error] | None = None) -> None:
        """Raises ExportRefused where `tensor`, stored as `kind`, is off along a direction.

        `rounded_again` tells the error that rounding alone leaves; it is asked where that is more than chance explains.
        """
        again = functools.cache(rounded_again) if rounded_again is not None else None
        for name, sums in error.along.items():
            off = sums.error / sums.size
            tolerance = _tolerance(
                sums.size / error.variance if error.variance else 0.0, error.shrunk(sums) / sums.size
            )
            if name == MIX:
                self._whole.error += sums.error
                self._whole.size += sums.size
            if error.variance == 0.0 or tolerance < _TELLING:
                if again is not None and not abs(off) <= tolerance:
                    off -= again().along[name].error / sums.size
                self._accept(name, off, tolerance, tensor, kind)
            else:
                self._pool(name, sums, error)
                if again is not None:
                    self._uncertain.setdefault(name, []).append((error.variance, again))

    def judge_all(self, kind: str) -> None:
        """Raises ExportRefused where the tensors that told nothing alone are off together, or where nothing tells."""
        for name, sums in self._pooled.items():
            tolerance = _tolerance(sums.size, sums.meant / sums.size)
            if tolerance < _TELLING:
                off = sums.error / sums.size
                if not abs(off) <= tolerance:
                    uncertain = self._uncertain.get(name, [])
                    off -= sum(again().along[name].error / variance for variance, again in uncertain) / sums.size
                self._accept(name, off, tolerance, "the file as a whole", kind)
        if (self._telling == 0 and MIX in self._pooled) or self.lost > _MOST_LOST:
            raise ExportRefused(
                f"the mix is lost in the rounding to {kind}, which changes the weights by more than it does: choose a"
                " finer --quant, or --target llama-server, which keeps the mix apart"
            )

    def _accept(self, name: str, off: float, tolerance: float, where: str, kind: str) -> None:
        if not abs(off) <= tolerance:
            what = name if name == MIX else f"the adapter {name!r}"
            raise ExportRefused(
                f"the export does not hold the workbench's mix: {where} is off by {off:+.2g} times {what}, and {kind} "
                f"explains at most {tolerance:.2g}"
            )
        if name == MIX:
            self._telling += 1
            self.worst = max(self.worst, abs(off))

    def _pool(self, name: str, sums: _Along, error: Error) -> None:
        """Each tensor weighs by how little its rounding hides."""
        pooled = self._pooled.setdefault(name, _Along())
        pooled.error += sums.error / error.variance
        pooled.size += sums.size / error.variance
        pooled.meant += error.shrunk(sums) / error.variance


def _tolerance(signal: float, shrunk: float) -> float:
    """`signal` is ‖Δ‖²/σ²."""
    return _SLACK + (_SIGMAS / signal**0.5 if signal else 0.0) + shrunk


def pairs_at(directions: Directions, weight: str) -> dict[str, LoraPair]:
    """What each direction adds to a weight of the checkpoint."""
    module = weight.removesuffix(".weight")
    found = {name: pairs[module] for name, pairs in directions.items() if module in pairs}
    return {name: pair for name, pair in found.items() if bool(torch.any(pair.lora_B))}
