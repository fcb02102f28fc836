"""What can be wrong with a store, each said in one sentence that names the file."""

from __future__ import annotations

from dlm_tui.errors import DlmTuiError

REMEDY = " `dlm-tui doctor DOC --repair` mends it."
"""How the sentence of a file that is damaged in its store ends."""


class StoreError(DlmTuiError):
    """A store, or one file of it, cannot be used."""


class PointerError(StoreError):
    """A `current.txt` that leads out of the store, to nothing, or to something that is no version."""


class VersionDamaged(StoreError):
    """A file of an adapter version is not the one that was written."""


class ManifestError(StoreError):
    """`manifest.json` or `dlm.lock` is not what the format says."""


class GateFileError(StoreError):
    """A file under `adapter/_gate/` is not what the format says."""


class ForeignGate(StoreError):
    """The stored gate was trained on another base: its input means something else there."""


class MetricsError(StoreError):
    """`metrics.sqlite` cannot be read or written."""


class AnswersError(StoreError):
    """The database of kept answers cannot be read or written."""


class LockHeld(StoreError):
    """Another living process holds the store."""


class LockStale(StoreError):
    """`.lock` is left over and nobody can tell whether its holder still lives."""
