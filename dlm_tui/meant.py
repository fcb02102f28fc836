"""What somebody meant who gave a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is spelled most like `name`, whatever the case; None where none is near.

    `cutoff` is the least similarity: twice the letters in common through the letters of both.
    """
    from difflib import get_close_matches  # only whoever has mistyped something waits for it

    names = {one.casefold(): one for one in known}
    near = get_close_matches(name.strip().casefold(), names, n=1, cutoff=cutoff)
    return names[near[0]] if near else None


def meant(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`: did you mean tone?`, which ends a sentence about `name`; nothing where no known name is near."""
    near = nearest(name, known, cutoff)
    return f": did you mean {near}?" if near is not None else ""
