"""The gate that a training owes from the moment its adapters are in force until the gate is trained. No torch.

The file is written in the change that puts the adapters in force, so that a kill at any moment leaves either this or
checkpoints to go on from.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from dlm_tui.files import json_bytes, remove
from dlm_tui.small_files import read_file
from dlm_tui.store.checkpoints import Asked
from dlm_tui.store.journal import Change
from dlm_tui.store.layout import Store
from dlm_tui.store.locks import TRAINING, held_elsewhere

FILE = "tui_gate_owed.json"
REMEDY = "`train --resume` trains it, or `train --gate-only`"


class OwedGate(msgspec.Struct, frozen=True, kw_only=True):
    """`run_id` is that of the training, whose gate this is; `asked` what it was asked for."""

    run_id: int
    asked: Asked


def stage_owed_gate(store: Store, together: Change, owed: OwedGate) -> None:
    """From that change on the gate is owed; the caller holds the store."""
    together.write(_path(store), json_bytes(msgspec.to_builtins(owed)))


def owed_gate(store: Store) -> OwedGate | None:
    """The gate that was not trained any more; None where none is owed, or where that cannot be read."""
    try:
        return msgspec.json.decode(read_file(_path(store)), type=OwedGate)
    except (OSError, msgspec.MsgspecError, RecursionError, ValueError):
        return None


def was_cut(store: Store) -> bool:
    """Whether a gate is owed and nobody is training it right now."""
    return owed_gate(store) is not None and not held_elsewhere(store, TRAINING)


def settle_owed_gate(store: Store) -> None:
    """The gate is trained."""
    remove(_path(store))


def _path(store: Store) -> Path:
    return store.root / FILE
