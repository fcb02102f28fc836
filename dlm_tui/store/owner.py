"""Whose a store is: the document that was trained into it, known by its path and by its text.

A document is asked for before its store is used. Two documents with one id would otherwise answer with each other's
adapters. The path is `source_path` of the manifest; stores without one belong to whoever has their id.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.document.errors import printable
from dlm_tui.errors import DlmTuiError
from dlm_tui.store.errors import StoreError
from dlm_tui.store.manifest import Manifest, read_lock_record, read_manifest, update_manifest
from dlm_tui.store.versions import trained_without_manifest
from dlm_tui.system_errors import cause

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.store.layout import Store


class OwnedElsewhere(StoreError):
    """The store belongs to another document of the same id."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The document that a store belongs to instead; `there` is False where no document of the id is at its path."""

    path: str
    there: bool

    def sentence(self, document: Document) -> str:
        """What is wrong for `document`, without the remedies."""
        if self.there:
            return f"{self.path} has the same dlm_id as {document.path}, and what is stored under it is that document's"
        return f"what is stored under this dlm_id was trained on another text, {self.path}, which is not there any more"


def other_owner(store: Store, document: Document) -> Owner | None:
    """The other document that the store belongs to, None where it is this one's or nobody's.

    A document that moved keeps its store: nothing of its id is at the old path any more, and its text, or a section of
    it, is what was trained. Raises ManifestError for a manifest that cannot be read.
    """
    manifest = read_manifest(store)
    if manifest is None or not manifest.source_path or document.path is None:
        return None
    owner = Path(manifest.source_path)
    if not owner.is_absolute() or _same(manifest.source_path, document.path):
        return None
    there = _holds(owner, store.dlm_id)
    return None if not there and _descends(store, manifest, document) else Owner(manifest.source_path, there)


def refuse_other_document(store: Store, document: Document) -> None:
    """Raises OwnedElsewhere, saying what to do, for a store that belongs to another document; ManifestError."""
    owner = other_owner(store, document)
    if owner is not None:
        from dlm_tui.document import fresh_dlm_id

        raise OwnedElsewhere(
            f"{owner.sentence(document)}; give {document.path} an id of its own (dlm_id: {fresh_dlm_id()}), or, if it "
            "is that document and was moved, say --adopt"
        )


def adopt(store: Store, document: Document) -> None:
    """Make the store this document's from now on; one without a manifest has nothing to take over.

    Raises StoreError for a store that cannot be written or is held.
    """
    if read_manifest(store) is None:
        return

    def take(manifest: Manifest) -> None:
        manifest.source_path = owner_path(document)

    try:
        update_manifest(store, take)
    except OSError as error:
        raise StoreError(f"{store.manifest_path} cannot be written: {cause(error)}.") from error


def claim(store: Store, document: Document, revision: str | None = None) -> None:
    """Begin the manifest of a store that is used for the first time, so that it says whose it is; `revision` is the
    base's. One that holds no adapters takes the document's base; one that was lost beside adapters in force is mended
    by `examine.repair`, not hidden behind an empty one.

    Raises StoreError for a store that cannot be written or is held.
    """

    def take(manifest: Manifest) -> None:
        manifest.source_path = owner_path(document)
        manifest.base_model, manifest.base_model_revision = document.base_model, revision

    manifest = read_manifest(store)
    if manifest is not None and (manifest.holds_adapters or manifest.base_model == document.base_model):
        return
    if trained_without_manifest(store):
        return
    try:
        update_manifest(store, take, base_model=document.base_model)
    except OSError as error:
        raise StoreError(f"{store.manifest_path} cannot be written: {cause(error)}.") from error


def owner_path(document: Document) -> str | None:
    """What the manifest says of a document's place: absolute, links followed; None for a document without a file."""
    return printable(str(document.path.resolve())) if document.path is not None else None


def _same(recorded: str, path: Path) -> bool:
    if recorded in (printable(str(path.absolute())), printable(str(path.resolve()))):
        return True
    try:
        return Path(recorded).samefile(path)
    except (OSError, ValueError):
        return False


def _holds(path: Path, dlm_id: str) -> bool:
    """Whether a document of this id is at `path`; one that cannot be read or parsed now may well be."""
    from dlm_tui.document import load

    try:
        if not path.exists():
            return False
        return load(path).dlm_id == dlm_id
    except (DlmTuiError, OSError):
        return True
    except ValueError:  # not a path
        return False


def _descends(store: Store, manifest: Manifest, document: Document) -> bool:
    """Whether the text goes back to what was trained; where nothing of that is known it may."""
    known = manifest.content_hashes
    if not known or any(section.section_id in known for section in document.sections):
        return True
    record = read_lock_record(store)
    return record is not None and record.dlm_sha256 == document.sha256
