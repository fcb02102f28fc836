"""How the next token is chosen. Plain data, no torch."""

from __future__ import annotations

import math

import msgspec

from dlm_tui.document.seeds import seed_in_range
from dlm_tui.errors import UsageError

_GREEDY_BELOW = 1e-6
"""A temperature by which float32 logits are no longer divided: the draw is the largest one anyway."""


class Sampling(msgspec.Struct, frozen=True):
    """`temperature` 0 is greedy, and so is one below a millionth; `top_p` keeps the smallest set of tokens with at
    least that probability.

    `seed` starts every row's own random stream; it is taken modulo 2^32. Raises UsageError for other values outside
    their range.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "seed", seed_in_range(self.seed))
        if self.max_tokens < 1:
            raise UsageError(f"max tokens must be at least 1, not {self.max_tokens}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"the temperature must be a number of at least 0, not {self.temperature}")
        if self.temperature < _GREEDY_BELOW:
            msgspec.structs.force_setattr(self, "temperature", 0.0)
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p must be above 0 and at most 1, not {self.top_p}")
