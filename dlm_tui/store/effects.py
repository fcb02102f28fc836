"""What an adapter was measured to do to its own sections, as it is stored and told. No torch."""

from __future__ import annotations

import msgspec

SURE, ENOUGH, SAME = 3.0, 0.1, 0.05
"""z from which an effect is none of chance; nats a token, and share of likeliest tokens, below both of which answers
stay as they are. On the embedded base the schema's defaults leave 0.001 to 0.08 nats and 0 to 3 of 100 tokens, settings
that teach some 5 nats and more than half of the tokens."""

ROUNDING = 1e-9
"""Nats below which a difference is rounding."""


class OwnEffect(msgspec.Struct, frozen=True, kw_only=True):
    """Over `sections` of its own, per token of their answers: `kl`, the mean KL(adapter ‖ base) in nats; `gain`, what
    the log-probability of the answer's own tokens gained, in nats; `changed`, the share of places where another token
    is the likeliest now.

    `z` says by how many standard deviations the effect is above that of random adapters of the same size, None where
    that means nothing.
    """

    kl: float
    gain: float
    changed: float
    z: float | None
    sections: int

    @property
    def nothing(self) -> str:
        """Why this is as good as no effect, as a clause; empty where it is one."""
        if self.kl < ROUNDING:
            return "which is none at all"
        if self.z is None or self.z < SURE:
            return "no more than a random change of its size would do"
        if self.kl < ENOUGH and self.changed < SAME:
            return "too little to change an answer"
        return ""
