"""Rotary tables of the kind "dynamic": the library makes them anew for every length above the one that the model was
trained with, and keeps what it made for shorter texts that follow.

Up to that length they are one table. `Base.position_rows` is that length, so that no text comes to be longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn


def grows(module: nn.Module) -> bool:
    """Whether this is a rotary table that depends on the length of the text."""
    return hasattr(module, "original_max_seq_len") and any("dynamic" in kind for kind in _kinds(module).values())


def shrink(tables: Sequence[nn.Module]) -> None:
    """Make tables that grew the ones that they were, as if nothing had been read before."""
    for module in tables:
        table = cast("Any", module)
        for layers in _kinds(module):
            grown, first = f"{layers}max_seq_len_cached", getattr(table, f"{layers}original_inv_freq")
            if getattr(table, grown, 0) > table.original_max_seq_len:
                table.register_buffer(
                    f"{layers}inv_freq", first.to(table.get_buffer(f"{layers}inv_freq")), persistent=False
                )
                setattr(table, grown, table.original_max_seq_len)


def _kinds(module: nn.Module) -> dict[str, str]:
    """The kind by what stands before the names of its parts: one table for all layers, or one for each type of them."""
    kinds = getattr(module, "rope_type", "")
    if isinstance(kinds, Mapping):
        return {f"{layers}_": str(kind) for layers, kind in kinds.items()}
    return {"": str(kinds)}
