"""Bringing in an adapter that was trained elsewhere: checked against the base, stored as a version, put in force."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from dlm_tui.document import load, read_document_bytes
from dlm_tui.document.declare import declare_adapter
from dlm_tui.document.replacing import save_document
from dlm_tui.errors import UsageError
from dlm_tui.files import json_bytes, sync_tree, write_atomic
from dlm_tui.input import with_home
from dlm_tui.model.adapter_download import fetch_adapter
from dlm_tui.model.adapter_import import WEIGHTS, Candidate, read_candidate
from dlm_tui.model.adapters import save_peft_adapter
from dlm_tui.model.base import Base
from dlm_tui.progress import Progress
from dlm_tui.small_files import regular_file
from dlm_tui.store import (
    AdapterVersion,
    Store,
    claim,
    new_version,
    refuse_foreign_base,
    refuse_other_document,
    utc_seconds,
)
from dlm_tui.store.adapter_history import use_versions
from dlm_tui.store.shared_files import write_shared
from dlm_tui.store.trained_on import write_version_base
from dlm_tui.store.versions import current_version, existing_versions, reject_version

HUB = "hf:"


@dataclass(frozen=True)
class Imported:
    """An adapter that is in force now. `declared`: the document was given a line for it; `notes` are sentences."""

    name: str
    version: int
    candidate: Candidate
    declared: bool
    notes: tuple[str, ...]


def import_adapter(
    source: str, name: str, document_path: Path, home: Path, base: Base, *, replace: bool = False
) -> Generator[Progress, None, Imported]:
    """Take the adapter at `source` (a folder, a checkpoint file, or `hf:org/name`) as adapter `name` of a document.

    Nothing is changed before everything was checked: that the name is free (or `replace`), that every module fits the
    base, and that the logits equal a plain forward. The document is given one line when it does not declare the
    adapter. Raises AdapterError, UsageError, DocumentError, StoreError with one sentence; OSError for a full disk.
    """
    data = read_document_bytes(document_path)
    declared = declare_adapter(data, name)
    document = load(document_path)
    store = Store(home, document.dlm_id)
    refuse_other_document(store, document)
    refuse_foreign_base(store, document)
    if existing_versions(store, name) and not replace:
        raise UsageError(f"adapter {name!r} has versions already; choose another name, or add one with --replace")
    if source.startswith(HUB):
        path = yield from fetch_adapter(source.removeprefix(HUB))
    else:
        path = with_home(source)
    candidate = yield from read_candidate(path, name, base)
    yield Progress("import", 0, 0, "storing the adapter")
    version = _write_version(store.create(), name, candidate, source, base)
    try:
        if declared is not data:
            save_document(document_path, data, declared)
        claim(store, document, base.identity.revision)
        use_versions(store, {name: version.version}, "import")
    except BaseException:
        if current_version(store, name) != version:
            reject_version(store, version)
        raise
    return Imported(name, version.version, candidate, declared is not data, _notes(candidate, base))


def _write_version(store: Store, name: str, candidate: Candidate, source: str, base: Base) -> AdapterVersion:
    """A finished version folder that nothing points to yet, in the base's own module names."""
    version = new_version(store, name)
    adapter = candidate.adapter
    save_peft_adapter(adapter, version.path, base.identity.id, extra={"dlm_parameterization": adapter.parameterization})
    write_shared(store, version, base.save_tokenizer)
    facts = {
        "source": source,
        "form": candidate.form,
        "imported_at": utc_seconds(),
        "source_sha256": _hash(Path(candidate.source)),
        "difference": candidate.difference,
        "renamed_modules": candidate.renamed,
    }
    write_atomic(version.path / "tui_import.json", json_bytes(facts))
    write_version_base(version.path, base.identity)
    sync_tree(version.path)
    return version


def _hash(path: Path) -> str:
    """SHA-256 of the weights that were read."""
    with regular_file(path if path.is_file() else path / WEIGHTS) as (handle, _):
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _notes(candidate: Candidate, base: Base) -> tuple[str, ...]:
    notes = []
    if candidate.renamed:
        notes.append(f"{candidate.renamed} modules had another prefix and were matched by the end of their names")
    if candidate.made_for and candidate.made_for not in (base.identity.id, str(base.source.path)):
        notes.append(f"it says it was made for {candidate.made_for}; every module fits {base.identity.id}")
    return tuple(notes)
