"""What an interrupted training left to go on from: `checkpoints/<adapter>/`, ours alone. No torch.

A folder `checkpoint-NNNNNN` is complete or not there: it is written under another name and renamed. `finished` holds an
adapter that is trained and waits for the others of its run.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from dlm_tui.document import TrainerSettings
from dlm_tui.files import scratch_sibling, sync_tree
from dlm_tui.platform import sync_directory
from dlm_tui.store.adapter_kind import KindChoices
from dlm_tui.store.layout import Store
from dlm_tui.system_errors import naming

FOLDER, STATE, FINISHED = "checkpoints", "state.json", "finished"
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
    """

    fingerprint: str
    run_id: int
    step: int
    total: int
    at: str
    phase: str = ""
    done: list[PhaseResult] = []
    asked: Asked | None = None


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


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in the folder of an adapter."""
    if not folder.is_dir():
        return None
    found = {int(match[1]): path for path in folder.iterdir() if (match := _NUMBERED.fullmatch(path.name))}
    complete = [number for number, path in found.items() if (path / STATE).is_file()]
    return found[max(complete)] if complete else None


def read_state(folder: Path) -> CheckpointState | None:
    """The state of a checkpoint or of `finished`; None where it cannot be read: the training then starts again."""
    try:
        return msgspec.json.decode((folder / STATE).read_bytes(), type=CheckpointState)
    except (OSError, msgspec.MsgspecError, RecursionError):
        return None


@contextlib.contextmanager
def new_checkpoint(folder: Path, name: str) -> Iterator[Path]:
    """A folder to fill, which takes its name when the block ends well; older checkpoints then go."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    scratch = scratch_sibling(target)
    scratch.mkdir()
    try:
        with naming(target):
            yield scratch
            sync_tree(scratch)
        if target.exists():
            shutil.rmtree(target)
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    sync_directory(folder)
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def checkpoint_name(step: int) -> str:
    """The folder of a checkpoint taken after `step` optimiser steps of the adapter."""
    return f"checkpoint-{step:06d}"


def interrupted(store: Store) -> Interrupted | None:
    """What a killed, cancelled or lost training left to go on from; None where there is nothing."""
    root = store.root / FOLDER
    if not root.is_dir():
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


def forget_checkpoints(store: Store) -> None:
    """Delete what an interrupted training left; the caller holds the right to train."""
    shutil.rmtree(store.root / FOLDER, ignore_errors=True)
