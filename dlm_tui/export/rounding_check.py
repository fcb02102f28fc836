"""Is any row or column of a stored tensor further from what was meant than rounding takes it?

A tensor of a vocabulary has 65,000 rows and more: sixty that are wiped out, or two that stand in each other's place,
are less of the whole than its rounding. Of themselves they are everything.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from dlm_tui.export.requests import ExportRefused


class _Step(NamedTuple):
    """How far rounding moves a number: by `of_itself` of it and by `of_block` of the largest one among `block` that
    share a scale, or by `least`."""

    of_itself: float
    of_block: float
    block: int
    least: float = 0.0


_SUMMED = 2.0**-20
"""Sums of float32 in another order, of the largest number of a row."""
_SCALE = 2.0**-25
"""How far the smallest scales, which are float16, are rounded; the number they are multiplied with makes it `least`."""
_STEPS = {
    Type.F32: _Step(0.0, _SUMMED, 256),
    Type.F16: _Step(2.0**-11, _SUMMED, 256, _SCALE),
    Type.BF16: _Step(2.0**-8, _SUMMED, 256),
    Type.Q8_0: _Step(0.0, 1 / 220, 32, 127 * _SCALE),
    Type.Q6_K: _Step(0.0, 0.05, 256, 127 * 32 * _SCALE),
    Type.Q5_K: _Step(0.0, 0.06, 256, 63 * 31 * _SCALE),
    Type.Q5_0: _Step(0.0, 1 / 15, 32, 16 * _SCALE),
    Type.Q5_1: _Step(0.0, 1 / 15, 32, 32 * _SCALE),
    Type.Q4_K: _Step(0.0, 0.1, 256, 63 * 15 * _SCALE),
    Type.Q4_0: _Step(0.0, 1 / 9, 32, 8 * _SCALE),
    Type.Q4_1: _Step(0.0, 1 / 10, 32, 16 * _SCALE),
    Type.IQ4_NL: _Step(0.0, 1 / 9, 32, 127 * _SCALE),
    Type.IQ4_XS: _Step(0.0, 1 / 12, 256, 32 * 127 * _SCALE),
}
"""Above what right files are measured at, by a third and more; bounds of float16 and bfloat16 are exact."""
OF_DTYPE = {torch.float32: Type.F32, torch.float16: Type.F16, torch.bfloat16: Type.BF16}


class RoundingCheck:
    """Adds up, of a tensor stored as `kind`, the squares of the errors in each row and column, and of the largest that
    rounding explains.

    Where an importance matrix has `weighed` the columns those that say little are let go: only rows are looked at then,
    and twice as much is explained.
    """

    def __init__(self, kind: Type, *, weighed: bool = False) -> None:
        self._kind, self._step, self._weighed = kind, _STEPS[kind], weighed
        self._columns: Tensor | None = None  # [2, columns]: errors, and what is explained
        self.worst = 0.0
        """The largest error of a row or column as a share of what is explained; above 1 the tensor is not right."""
        self._where = ""

    def add(self, stored: Tensor, meant: Tensor, start: int = 0) -> None:
        """Rows from `start` on [rows, columns], matrices of experts from that on, numbers of a vector, or one
        number."""
        if meant.ndim == 3:
            start *= meant.shape[1]
        columns = meant.shape[-1] if meant.ndim else 1
        stored, meant = stored.reshape(-1, columns), meant.reshape(-1, columns)
        errors = (stored.double() - meant.double()).square_()
        explained = self._explained(meant.double()).square_()
        self._note("row", errors.sum(1), explained.sum(1), start)
        sums = torch.stack([errors.sum(0), explained.sum(0)])
        self._columns = sums if self._columns is None else self._columns + sums

    def judge(self, tensor: str) -> None:
        """Raises ExportRefused where a row or column of `tensor` is off by more than rounding explains."""
        if self._columns is not None and not self._weighed:
            self._note("column", *self._columns)
        if not self.worst <= 1.0:
            raise ExportRefused(
                f"the export does not hold the workbench's weights: {self._where} of {tensor} is off by "
                f"{self.worst:.3g} times what rounding to {self._kind.name} explains"
            )

    def _explained(self, meant: Tensor) -> Tensor:
        step, magnitude = self._step, meant.abs()
        rows, columns = meant.shape
        blocks = -(-columns // step.block)
        padded = torch.nn.functional.pad(magnitude, (0, blocks * step.block - columns))
        largest = padded.view(rows, blocks, step.block).amax(2).repeat_interleave(step.block, dim=1)[:, :columns]
        explained = largest.mul_(step.of_block).add_(magnitude, alpha=step.of_itself).add_(step.least)
        return explained.mul_(2.0) if self._weighed else explained

    def _note(self, what: str, errors: Tensor, explained: Tensor, start: int = 0) -> None:
        shares = torch.where(errors > 0, errors / explained, 0.0).sqrt_()  # 0/0 where nothing was meant and is there
        shares = torch.where(errors.isfinite(), shares, torch.inf)
        at = int(shares.argmax())
        if float(shares[at]) > self.worst:
            self.worst, self._where = float(shares[at]), f"{what} {start + at}"
