"""Seeds: any integer is a valid `training.seed`, and 32 bits of it start the random streams."""

from __future__ import annotations


def seed_in_range(seed: int) -> int:
    """`seed` modulo 2^32: what torch, numpy, transformers and SQLite all take. Seeds of 0 to 2^32 - 1 stay themselves.

    The split into training and validation rows hashes the seed's decimal text, so it uses the seed as written.
    """
    return seed % 2**32


def seed_note(seed: int) -> str | None:
    """A sentence when the seed that is used is not the one that is written."""
    used = seed_in_range(seed)
    return None if used == seed else f"training.seed {_short(seed)} is used as {used} (modulo 2^32)"


def _short(seed: int) -> str:
    bits = seed.bit_length()
    return str(seed) if bits <= 128 else f"of {bits} bits"
