"""Gates that were in force before: the last few are kept beside the store's own files, so that two can be compared.

`tui_gates/runNNNNNN/` holds the files of the gate that training run NNNNNN made. Other tools do not look there.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dlm_tui.errors import UsageError
from dlm_tui.small_files import read_file
from dlm_tui.store.errors import StoreError
from dlm_tui.store.gate_files import (
    CONFIG_NAME,
    RECORD_NAME,
    WEIGHTS_NAME,
    check_gate_files,
    read_gate_config,
    read_gate_record,
)
from dlm_tui.store.journal import Change
from dlm_tui.store.layout import Store
from dlm_tui.store.locks import store_lock
from dlm_tui.store.metrics_reader import MetricsReader
from dlm_tui.store.training_numbers import training_numbers

KEPT = 16
"""Former gates that are kept; each takes about 4 · hidden_proj_dim · hidden_size bytes."""
_NAME = re.compile(r"run([0-9]{6,9})")
_LOCK_SECONDS = 10.0
_MOST_GATE_BYTES = 1 << 30


class GateAt(Store):
    """The store with its gate in another folder."""

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(store.home, store.dlm_id)
        self._folder = folder

    @property
    def gate_dir(self) -> Path:
        return self._folder


@dataclass(frozen=True, kw_only=True)
class GateFacts:
    """A gate that can be looked at: the run that trained it, which its name is made of, the number of that training,
    when it was (naive UTC), and for which adapters."""

    run: int
    in_force: bool
    mode: str
    names: tuple[str, ...]
    when: str | None
    training: int | None


def gate_history(store: Store) -> list[GateFacts]:
    """The gate in force and the former ones, newest first; one that cannot be read, or that another tool made, is left
    out."""
    reader, found = MetricsReader(store), []
    current, numbers = run_of_gate(store), training_numbers(store)
    runs = {run: GateAt(store, folder) for run, folder in _folders(store).items()}
    if current is not None:
        runs[current] = GateAt(store, store.gate_dir)
    for run in sorted(runs, reverse=True):
        with contextlib.suppress(StoreError):
            config, row = read_gate_config(runs[run]), reader.run(run)
            if config is not None:
                when = str(row["ended_at"] or row["started_at"]).removesuffix("Z") if row else None
                found.append(
                    GateFacts(
                        run=run,
                        in_force=run == current,
                        mode=config.mode,
                        names=config.adapter_names,
                        when=when,
                        training=numbers.get(run),
                    )
                )
    return found


def damaged_gates(store: Store) -> list[str]:
    """A sentence for every former gate that is not what was written."""
    found = []
    for folder in _folders(store).values():
        there = GateAt(store, folder)
        try:
            config = read_gate_config(there)
            if config is None:
                found.append(f"{folder / CONFIG_NAME} is missing.")
            else:
                check_gate_files(there, config, former=True)
        except StoreError as error:
            found.append(str(error))
    return found


def gate_of_run(store: Store, run: int | None) -> Store:
    """The store as it would be with the gate of a training run (None: the one in force).

    Raises UsageError naming those that are there.
    """
    if run is None or run == run_of_gate(store):
        return store
    folder = _folders(store).get(run)
    if folder is None:
        there = ", ".join(f"gate@{facts.run}" for facts in gate_history(store)) or "none"
        raise UsageError(f"there is no gate@{run}; there are: {there}")
    return GateAt(store, folder)


def run_of_gate(store: Store) -> int | None:
    """The run that trained the gate in force; None without one, and for another tool's or a damaged one."""
    try:
        record = read_gate_record(store)
    except StoreError:
        return None
    run = record.get("run_id") if record is not None else None
    return run if isinstance(run, int) and 0 < run < 10**9 else None


def stage_former(store: Store, together: Change) -> None:
    """Keep the gate in force, which is about to be replaced, as a part of that change; the caller holds the store."""
    run = run_of_gate(store)
    if run is None:
        return
    for name in (CONFIG_NAME, WEIGHTS_NAME, RECORD_NAME):
        source = store.gate_dir / name
        if source.is_file():
            together.write(_folder(store, run) / name, read_file(source, _MOST_GATE_BYTES))


def forget_oldest(store: Store, kept: int = KEPT) -> list[int]:
    """Delete all but the newest `kept` former gates; returns the runs of those deleted. The caller holds the store."""
    folders = _folders(store)
    gone = sorted(folders)[: max(0, len(folders) - kept)]
    for run in gone:
        shutil.rmtree(folders[run], ignore_errors=True)
    return gone


def prune_gates(store: Store) -> list[int]:
    """Delete all former gates but the last, which is the one that the gate in force is compared with."""
    with store_lock(store, _LOCK_SECONDS):
        return forget_oldest(store, kept=1)


def prunable_gates(store: Store) -> list[int]:
    """The runs of the gates that `prune_gates` would delete, oldest first."""
    return sorted(_folders(store))[:-1]


def _folder(store: Store, run: int) -> Path:
    return store.former_gates_dir / f"run{run:06d}"


def _folders(store: Store) -> dict[int, Path]:
    """Run → folder of every former gate."""
    root = store.former_gates_dir
    if not root.is_dir() or root.is_symlink():
        return {}
    matches = {path: _NAME.fullmatch(path.name) for path in root.iterdir() if path.is_dir() and not path.is_symlink()}
    return {int(match[1]): path for path, match in matches.items() if match is not None}
