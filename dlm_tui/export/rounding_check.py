"""Is any row, column or block of a stored tensor further from what was meant than rounding takes it?

A tensor of a vocabulary has 65,000 rows and more: sixty that are wiped out, or two that stand in each other's place,
are less of the whole than its rounding. Of themselves they are everything. So is one block of a row to that row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from dlm_tui.export.quantisation.blocks import Rows, dequantise, quantise
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


class _Grain(NamedTuple):
    """The `numbers` that share the finest scale of a type. Where rounding leaves more than `of_itself` of their size
    and `of_block` of the largest number of the whole block, which their scale is a step of, it is asked again."""

    numbers: int
    of_itself: float
    of_block: float = 0.0


_SCALE_STEP = 0.01
_GRAINS = {
    Type.Q8_0: _Grain(32, 0.03),
    Type.Q6_K: _Grain(16, 0.05, _SCALE_STEP),
    Type.Q5_K: _Grain(32, 0.1, _SCALE_STEP),
    Type.Q5_0: _Grain(32, 0.2),
    Type.Q5_1: _Grain(32, 0.2),
    Type.Q4_K: _Grain(32, 0.3, _SCALE_STEP),
    Type.Q4_0: _Grain(32, 0.3),
    Type.Q4_1: _Grain(32, 0.3),
    Type.IQ4_NL: _Grain(32, 0.3),
    Type.IQ4_XS: _Grain(32, 0.3, _SCALE_STEP),
}
"""Right files of normal, heavy-tailed, spiked, shifted and partly empty weights stay below without an importance
matrix: 0.02 for eight and six bits, 0.13 for five, 0.25 for four were measured. No figure divides right from wrong: a
K-quant of sub-blocks of very different sizes leaves 2.7 of some, and an importance matrix 1 and more. Hence what is
above is rounded again and compared."""
_AGAIN = 2.0
"""How many times the error of rounding again an error may be: the same numbers leave the same one."""
OF_DTYPE = {torch.float32: Type.F32, torch.float16: Type.F16, torch.bfloat16: Type.BF16}


class RoundingCheck:
    """Adds up, of a tensor stored as `kind`, the squares of the errors in each row and column, and of the largest that
    rounding explains; and looks at each block by itself.

    Where `importance` [columns] has weighed the columns those that say little are let go: only rows and blocks are
    looked at then, and twice as much is explained of a row.
    """

    def __init__(self, kind: Type, importance: Rows | None = None) -> None:
        self._kind, self._step, self._grain = kind, _STEPS[kind], _GRAINS.get(kind)
        self._importance = importance
        self._columns: Tensor | None = None  # [2, columns]: errors, and what is explained
        self.worst = 0.0
        """The largest error of a row, column or block as a share of what is explained; above 1 the tensor is not
        right."""
        self._where = ""
        self._worst_block, self._where_block = 0.0, ""

    def add(self, stored: Tensor, meant: Tensor, start: int = 0) -> None:
        """Rows from `start` on [rows, columns], matrices of experts from that on, numbers of a vector, or one
        number."""
        if meant.ndim == 3:
            start *= meant.shape[1]
        columns = meant.shape[-1] if meant.ndim else 1
        stored, meant = stored.reshape(-1, columns), meant.reshape(-1, columns)
        errors = (stored.double() - meant.double()).square_()
        largest = self._largest(meant)
        if self._grain is not None and self._worst_block <= 1.0:
            doubtful = self._doubtful(self._grain, errors, meant, largest)
            if bool(doubtful.any()):
                self._round_again(self._grain, doubtful, stored, meant, start)
        of_rows, of_columns = self._explained(meant, largest)
        self._note("row", errors.sum(1), of_rows, start)
        sums = torch.stack([errors.sum(0), of_columns])
        self._columns = sums if self._columns is None else self._columns + sums

    def judge(self, tensor: str) -> None:
        """Raises ExportRefused where a row, column or block of `tensor` is off by more than rounding explains."""
        if self._columns is not None and self._importance is None:
            self._note("column", *self._columns)
        if self.worst <= 1.0 and self._worst_block > self.worst:  # a row or column says more
            self.worst, self._where = self._worst_block, self._where_block
        if not self.worst <= 1.0:
            raise ExportRefused(
                f"the export does not hold the workbench's weights: {self._where} of {tensor} is off by "
                f"{self.worst:.3g} times what rounding to {self._kind.name} explains"
            )

    def _largest(self, meant: Tensor) -> Tensor:
        """The largest magnitude in each block [rows, blocks]."""
        rows, columns = meant.shape
        blocks = -(-columns // self._step.block)
        padded = torch.nn.functional.pad(meant, (0, blocks * self._step.block - columns))
        largest: Tensor = torch.linalg.vector_norm(padded.reshape(rows, blocks, self._step.block), torch.inf, dim=2)
        return largest.double()

    def _explained(self, meant: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """The squares of the largest errors that rounding explains, summed [rows] and [columns]."""
        step, columns = self._step, meant.shape[1]
        twice = 1.0 if self._importance is None else 2.0
        of_blocks = largest.mul(step.of_block).add_(step.least).mul_(twice)
        if step.of_itself:
            spread = of_blocks.repeat_interleave(step.block, dim=1)[:, :columns]
            spread = spread.add_(meant.abs(), alpha=step.of_itself * twice).square_()
            return spread.sum(1), spread.sum(0)
        of_blocks.square_()
        widths = torch.full((largest.shape[1],), float(step.block), dtype=torch.float64)
        widths[-1] -= len(widths) * step.block - columns
        return of_blocks @ widths, of_blocks.sum(0).repeat_interleave(step.block)[:columns]

    def _doubtful(self, grain: _Grain, errors: Tensor, meant: Tensor, largest: Tensor) -> Tensor:
        """Which blocks of `grain` are further off than rounding commonly leaves them [rows, blocks]."""
        spread = largest.repeat_interleave(self._step.block // grain.numbers, dim=1)
        size = torch.linalg.vector_norm(meant.reshape(len(meant), -1, grain.numbers), dim=2)
        root = grain.numbers**0.5
        common = spread.mul_(grain.of_block * root).add_(size, alpha=grain.of_itself).add_(self._step.least * root)
        return _in_blocks(errors, grain.numbers) > common.square_()

    def _round_again(self, grain: _Grain, doubtful: Tensor, stored: Tensor, meant: Tensor, start: int) -> None:
        """Note the `doubtful` block furthest from what rounding its row again makes of it."""
        rows = doubtful.any(1).nonzero()[:, 0]
        doubtful, stored, meant = doubtful[rows], stored[rows].double(), meant[rows]
        data = quantise(meant.numpy(), self._kind, self._importance)
        again = torch.from_numpy(np.array(dequantise(data, self._kind, meant.shape[1]))).double()
        found, left = ((rounded - meant.double()).square_() for rounded in (stored, again))
        # with importance the columns that say little must be no worse either, nor hide those that say much
        weights = [torch.ones(meant.shape[1], dtype=torch.float64)]
        if self._importance is not None:
            weights.append(torch.tensor(self._importance, dtype=torch.float64))
        for weight in weights:
            off, explained = (_in_blocks(errors * weight, grain.numbers) for errors in (found, left))
            shares = torch.where(doubtful & (off > 0), off / explained, 0.0).sqrt_().div_(_AGAIN)
            row, block = divmod(int(shares.argmax()), shares.shape[1])
            if float(shares[row, block]) > self._worst_block:
                self._worst_block, first = float(shares[row, block]), block * grain.numbers
                where = f"columns {first} to {first + grain.numbers - 1}"
                self._where_block = f"row {start + int(rows[row])} ({where})"

    def _note(self, what: str, errors: Tensor, explained: Tensor, start: int = 0) -> None:
        shares = torch.where(errors > 0, errors / explained, 0.0).sqrt_()  # 0/0 where nothing was meant and is there
        shares = torch.where(errors.isfinite(), shares, torch.inf)
        at = int(shares.argmax())
        if float(shares[at]) > self.worst:
            self.worst, self._where = float(shares[at]), f"{what} {start + at}"


def _in_blocks(numbers: Tensor, size: int) -> Tensor:
    """The sums over `size` columns each [rows, blocks]."""
    summed: Tensor = numbers.reshape(len(numbers), -1, size).sum(2)
    return summed
