"""What a training owes from the moment its adapters are in force: its gate, and the effect of each adapter. No torch.

The file is written in the change that puts the adapters in force, so that a kill at any moment leaves either this or
checkpoints to go on from. What has become of it meanwhile is judged by what is there: a gate in force that this
training or a later one has trained, an effect that is recorded, another version in force.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from dlm_tui.errors import DlmTuiError
from dlm_tui.files import json_bytes, remove, write_atomic
from dlm_tui.small_files import read_file
from dlm_tui.store.adapter_history import is_measured
from dlm_tui.store.checkpoints import Asked
from dlm_tui.store.former_gates import run_of_gate
from dlm_tui.store.journal import Change
from dlm_tui.store.layout import Store
from dlm_tui.store.locks import TRAINING, held_elsewhere
from dlm_tui.store.settled import current_path
from dlm_tui.store.versions import current_version

FILE = "tui_gate_owed.json"
REMEDY = "`train --resume` trains it, or `train --gate-only`"


class Owed(msgspec.Struct, frozen=True, kw_only=True):
    """`run_id` is the last of the training that owes, `asked` what it was asked for. `effects` are the versions, by
    adapter, whose effect on their own sections is not measured."""

    run_id: int
    asked: Asked
    gate: bool = True  # earlier versions wrote the file for a gate alone
    effects: dict[str, int] = {}

    @property
    def words(self) -> str:
        """`the adapters are trained and in force, the gate is left`."""
        left = "the gate" if self.gate else "the measuring of their effect"
        return f"the adapters are trained and in force, {left} is left"


def stage_owed(store: Store, together: Change, owed: Owed) -> None:
    """From that change on this is owed; the caller holds the store."""
    together.write(_path(store), json_bytes(msgspec.to_builtins(owed)))


def owed_by_training(store: Store) -> Owed | None:
    """What the last training was ended before; None where nothing is owed, or where that cannot be read."""
    try:
        owed = msgspec.json.decode(read_file(current_path(store, _path(store))), type=Owed)
    except (OSError, msgspec.MsgspecError, RecursionError, ValueError):
        return None
    left = msgspec.structs.replace(
        owed,
        gate=owed.gate and not _has_gate(store, owed.run_id),
        effects={name: number for name, number in owed.effects.items() if _lacks_effect(store, name, number)},
    )
    return left if left.gate or left.effects else None


def was_cut(store: Store) -> bool:
    """Whether a gate is owed and nobody is training it right now."""
    owed = owed_by_training(store)
    return owed is not None and owed.gate and not held_elsewhere(store, TRAINING)


def settle_gate(store: Store) -> None:
    """The gate is trained, or cannot be."""
    if (owed := owed_by_training(store)) is not None:
        _keep(store, msgspec.structs.replace(owed, gate=False))
    else:
        remove(_path(store))


def settle_effect(store: Store, name: str) -> None:
    """The adapter was looked at, whether or not there was something to measure."""
    if (owed := owed_by_training(store)) is not None:
        left = {other: number for other, number in owed.effects.items() if other != name}
        _keep(store, msgspec.structs.replace(owed, effects=left))
    else:
        remove(_path(store))


def _keep(store: Store, owed: Owed) -> None:
    if owed.gate or owed.effects:
        write_atomic(_path(store), json_bytes(msgspec.to_builtins(owed)))
    else:
        remove(_path(store))


def _has_gate(store: Store, run_id: int) -> bool:
    current_path(store, store.gate_dir)  # one that a killed process was putting there is there first
    trained = run_of_gate(store)
    return trained is not None and trained >= run_id


def _lacks_effect(store: Store, name: str, number: int) -> bool:
    """Whether that version is in force and has none recorded; False where that cannot be told, which is said by whoever
    opens the version."""
    try:
        current = current_version(store, name)
        return current is not None and current.version == number and not is_measured(store, name, number)
    except DlmTuiError:
        return False


def _path(store: Store) -> Path:
    return store.root / FILE
