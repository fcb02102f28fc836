"""What an interrupted training left to go on from: `checkpoints/<adapter>/`, ours alone. No torch.

A folder `checkpoint-NNNNNN` is complete or not there: it is written under another name and renamed. `finished` holds an
adapter that is trained and waits for the others of its run. The one before stays, for the case that a disk gives back
other bytes than it was given: the hashes in `state.json` tell. The change that puts the adapters in force writes a mark
beside the folder: nothing in it is to be gone on from then, whenever it is deleted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dlm_tui.document import TrainerSettings
from dlm_tui.files import json_bytes, remove, scratch_sibling, sha256_file, sync_tree
from dlm_tui.platform import sync_directory
from dlm_tui.small_files import read_file
from dlm_tui.store.adapter_kind import KindChoices
from dlm_tui.store.journal import Change
from dlm_tui.store.layout import Store
from dlm_tui.store.own_hash import own_sha256
from dlm_tui.store.settled import current_path
from dlm_tui.system_errors import naming
from dlm_tui.tensor_files import TensorFileDamaged, stored_shapes

FOLDER, STATE, FINISHED = "checkpoints", "state.json", "finished"
OVER = "checkpoints_over.json"
_OWN_HASH = "state_sha256"
_NOTHING = "there is nothing to go on from: train without --resume"
_NUMBERED = re.compile(r"checkpoint-([0-9]{6,})")


class PhaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """A phase that is over: optimiser steps, loss of the last step, validation loss where there was one."""

    name: str
    steps: int
    loss: float
    val_loss: float | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a training was asked for, so that it goes on without being asked again.

    `adapters` None means all. `calibration` is the path of a file of prompt sets, `base` a folder that was given in the
    place of the document's base. `threads` are torch's, on which the bytes depend.
    """

    threads: int
    trainer: TrainerSettings
    adapters: list[str] | None = None
    choices: KindChoices = KindChoices()
    calibration: str | None = None
    base: str | None = None
    checkpoint_steps: int | None = None
    checkpoint_seconds: float | None = None


class CheckpointState(msgspec.Struct, frozen=True, kw_only=True):
    """`state.json`. `fingerprint` is of all that decides the result; `step` counts over all phases of the adapter.

    `done` are the phases before `phase`, or all of them where the adapter is finished (`phase` is then empty).
    `files` are the SHA-256 of the other files of the folder by name, None where it was written before there were any.
    """

    fingerprint: str
    run_id: int
    step: int
    total: int
    at: str
    phase: str = ""
    done: list[PhaseResult] = []
    asked: Asked | None = None
    files: dict[str, str] | None = None


class Interrupted(msgspec.Struct, frozen=True, kw_only=True):
    """A training that can be continued: adapters that are finished, and the one in the middle with its steps."""

    finished: list[str]
    adapter: str | None
    step: int
    total: int
    at: str
    asked: Asked | None = None

    @property
    def words(self) -> str:
        """`facts at step 4 of 12`, or the adapters that wait for the others."""
        return f"{self.adapter} at step {self.step} of {self.total}" if self.adapter else ", ".join(self.finished)


def checkpoint_folder(store: Store, adapter: str) -> Path:
    """Where the checkpoints of one adapter are."""
    return store.root / FOLDER / adapter


def numbered(folder: Path) -> list[Path]:
    """The checkpoints in the folder of an adapter, the newest first, also damaged ones."""
    if not folder.is_dir():
        return []
    found = {int(match[1]): path for path in folder.iterdir() if (match := _NUMBERED.fullmatch(path.name))}
    return [found[number] for number in sorted(found, reverse=True)]


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in the folder of an adapter whose state can be read."""
    return next((path for path in numbered(folder) if read_state(path) is not None), None)


def read_state(folder: Path) -> CheckpointState | None:
    """The state of a checkpoint or of `finished`; None where it cannot be read or is not the one that was written."""
    try:
        data = read_file(folder / STATE)
        state = msgspec.json.decode(data, type=CheckpointState)
        written = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return None
    own = written.pop(_OWN_HASH, None)
    if (own is not None or state.files is not None) and own != own_sha256(written):
        return None
    return state


def damage_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint or with `finished`, as a sentence without a full stop; None where it is whole.

    Of one that was written before there were hashes only the form of each file is looked at.
    """
    if not folder.is_dir():
        return f"{folder} is no folder"
    state = read_state(folder)
    if state is None:
        return f"{folder / STATE} is not the file that was written"
    try:
        if state.files is None:
            for path in sorted(folder.iterdir()):
                _refuse_malformed(path)
            return None
        for name, wanted in state.files.items():
            if sha256_file(folder / name) != wanted:
                return f"{folder / name} is not the file that was written (its hash differs)"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror or error})"
    except TensorFileDamaged as error:
        return str(error)
    return None


def _refuse_malformed(path: Path) -> None:
    if path.suffix == ".safetensors":
        stored_shapes(path)
    elif path.suffix == ".json":
        try:
            json.loads(read_file(path))
        except (ValueError, RecursionError):
            raise TensorFileDamaged(f"{path} is damaged: it is no JSON") from None


@contextlib.contextmanager
def new_checkpoint(folder: Path, name: str, state: CheckpointState, before: Path | None = None) -> Iterator[Path]:
    """A folder to fill, which gets `state` with the hashes of its files and takes its name when the block ends well.

    Older checkpoints then go, but for `before`, which is gone back to should this one be damaged.
    """
    _make_way(folder)
    target = folder / name
    scratch = scratch_sibling(target)
    scratch.mkdir()
    try:
        with naming(target):
            yield scratch
            hashes = {path.name: sha256_file(path) for path in sorted(scratch.iterdir())}
            written = msgspec.to_builtins(msgspec.structs.replace(state, files=hashes))
            (scratch / STATE).write_bytes(json_bytes({**written, _OWN_HASH: own_sha256(written)}))
            sync_tree(scratch)
        remove(target)
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    sync_directory(folder)
    for other in folder.iterdir():
        if other not in (target, before):
            remove(other)


def _make_way(folder: Path) -> None:
    """Make the folder of an adapter; what is no folder in its place is not ours, and holds nothing to go on from."""
    for path in (folder.parent, folder):
        if not path.is_dir():
            remove(path)
        path.mkdir(parents=True, exist_ok=True)


def checkpoint_name(step: int) -> str:
    """The folder of a checkpoint taken after `step` optimiser steps of the adapter."""
    return f"checkpoint-{step:06d}"


def interrupted(store: Store) -> Interrupted | None:
    """What a killed, cancelled or lost training left to go on from; None where there is nothing."""
    root = store.root / FOLDER
    if not root.is_dir() or are_over(store):
        return None
    finished: list[str] = []
    middle: tuple[str, CheckpointState] | None = None
    newest, asked = "", None
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if (state := read_state(folder / FINISHED)) is not None:
            finished.append(folder.name)
        elif (path := latest(folder)) is not None and (state := read_state(path)) is not None:
            middle = folder.name, state
        if state is not None and state.at >= newest:
            newest, asked = state.at, state.asked
    if middle is None and not finished:
        return None
    name, state = middle if middle is not None else (None, None)
    return Interrupted(
        finished=finished,
        adapter=name,
        step=state.step if state is not None else 0,
        total=state.total if state is not None else 0,
        at=newest,
        asked=asked,
    )


def goes_on(store: Store, adapter: str, fingerprint: str) -> bool:
    """Whether the training of this fingerprint can go on from what it left of the adapter."""
    if are_over(store):
        return False
    folder = checkpoint_folder(store, adapter)
    states = [read_state(path) for path in (folder / FINISHED, latest(folder)) if path is not None]
    return any(state is not None and state.fingerprint == fingerprint for state in states)


@dataclass(frozen=True, kw_only=True)
class DamagedCheckpoint:
    """Something that nobody can go on from: where, what is wrong with it, and what `train --resume` does then."""

    path: Path
    damage: str
    then: str


def damaged_checkpoints(store: Store) -> list[DamagedCheckpoint]:
    """All that was left of a training and is not what was written; reads every file of it."""
    root = store.root / FOLDER
    if are_over(store):
        return []
    if os.path.lexists(root) and not root.is_dir():
        return [DamagedCheckpoint(path=root, damage=f"{root} is no folder", then=_NOTHING)]
    found: list[DamagedCheckpoint] = []
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if not folder.is_dir():
            then = f"{folder.name} is trained from the beginning"
            found.append(DamagedCheckpoint(path=folder, damage=f"{folder} is no folder", then=then))
            continue
        judged = {path: damage_of(path) for path in (folder / FINISHED, *numbered(folder)) if os.path.lexists(path)}
        whole = next((path for path, damage in judged.items() if damage is None), None)
        back = f"goes on from {whole.name}" if whole is not None else "is trained from the beginning"
        for path, damage in judged.items():
            if damage is not None:
                found.append(DamagedCheckpoint(path=path, damage=damage, then=f"{folder.name} {back}"))
    if found and interrupted(store) is None:
        return [dataclasses.replace(one, then=_NOTHING) for one in found]
    return found


def interrupted_damage(store: Store) -> str | None:
    """What is wrong where something of a training was left and no state of it can be read; None where nothing was."""
    return next((one.damage for one in damaged_checkpoints(store)), None)


def stage_over(store: Store, together: Change) -> None:
    """From that change on the adapters are in force, and their checkpoints over; the caller holds the store."""
    if os.path.lexists(store.root / FOLDER):
        together.write(store.root / OVER, json_bytes({"over": FOLDER}))


def are_over(store: Store) -> bool:
    """Whether the training that left checkpoints has put its adapters in force since."""
    return os.path.lexists(current_path(store, store.root / OVER))


def forget_checkpoints(store: Store) -> None:
    """Delete what a training left to go on from; the caller holds the right to train."""
    remove(store.root / FOLDER)
    remove(store.root / OVER)  # last: what is left of the folder after a kill is over still
