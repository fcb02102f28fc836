"""Noticing that the document was trained again, or saved, while it is served."""

from __future__ import annotations

import socket
import time
from typing import NamedTuple

from dlm_tui.errors import DlmTuiError
from dlm_tui.session import Session
from dlm_tui.small_files import file_mark, read_head
from dlm_tui.store import Store, adapter_versions, read_manifest
from dlm_tui.store.locks import TRAINING, is_locked
from dlm_tui.store.process import holder_lives

INTERVAL_SECONDS = 1.0


class _Fingerprint(NamedTuple):
    in_force: tuple[object, ...]
    document: tuple[int, int, int] | None


class StoreWatch:
    """Compares what the store and the document say now with what the session was opened with."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._seen = self._fingerprint()
        self._asked = time.monotonic()

    def changed(self) -> bool:
        """Whether there is something new to take in; looks at most once a second, never into what is being committed,
        and at what is in force only once a training has ended: its adapters are there long before their gate."""
        now = time.monotonic()
        if now - self._asked < INTERVAL_SECONDS:
            return False
        self._asked = now
        if _is_being_committed(self._session.store):
            return False
        found = self._fingerprint()
        if found == self._seen or (found.in_force != self._seen.in_force and is_locked(self._session.store, TRAINING)):
            return False
        self._seen = found
        return True

    def _fingerprint(self) -> _Fingerprint:
        session = self._session
        names = session.document.adapter_names or ("default",)
        try:
            versions = tuple((name, item.version) for name, item in adapter_versions(session.store, names).items())
        except DlmTuiError:
            versions = ()
        return _Fingerprint((versions, _gate_files(session.store)), file_mark(session.path))


def last_training(store: Store) -> tuple[object, ...]:
    """Tells one training from the next, of the gate alone, too; a save, an import or another version in force changes
    nothing of it."""
    try:
        manifest = read_manifest(store)
    except DlmTuiError:
        manifest = None
    return [run.run_id for run in manifest.training_runs] if manifest else [], _gate_files(store)


def _gate_files(store: Store) -> tuple[object, ...]:
    """Tells one stored gate from the next."""
    return tuple(file_mark(store.gate_dir / name) for name in ("gate_config.json", "gate.safetensors"))


def _is_being_committed(store: Store) -> bool:
    try:
        content = read_head(store.lock_path, 1024)
    except OSError:
        return False
    return holder_lives(content, socket.gethostname()) is not False
