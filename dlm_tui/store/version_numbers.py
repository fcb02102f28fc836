"""Which number the next version of an adapter gets: one that was never given out.

What was said under a version (a kept answer, a run of a prompt set, an export) is told from others by its number alone,
so the number of one that was dropped means that one for ever.
"""

from __future__ import annotations

from pathlib import Path

from dlm_tui.store.adapter_history import highest_noted
from dlm_tui.store.errors import StoreError
from dlm_tui.store.layout import FLAT, Store
from dlm_tui.store.manifest import read_manifest
from dlm_tui.store.version_record import AdapterVersion, begin_record
from dlm_tui.store.versions import latest_version
from dlm_tui.system_errors import cause


def new_version(store: Store, name: str) -> AdapterVersion:
    """Create the next empty version folder; it is in use only after `commit_version`.

    Raises StoreError, ManifestError.
    """
    versions = store.adapter_dir(name) / "versions"
    _refuse_outside(store, versions)
    try:
        versions.mkdir(parents=True, exist_ok=True)
        number = highest_given(store, name) + 1
        while True:
            path = versions / f"v{number:04d}"
            try:
                path.mkdir()
                break
            except FileExistsError:
                number += 1
        version = AdapterVersion(name, number, path)
        try:
            begin_record(version)
        except OSError:
            path.rmdir()
            raise
        return version
    except OSError as error:
        raise StoreError(f"A new version cannot be created in {versions}: {cause(error)}.") from error


def highest_given(store: Store, name: str) -> int:
    """The highest number that a version of the adapter has or had, 0 for none.

    One that was made in vain and never in force counts no more once it is gone: a training that goes on makes it again
    under its number. Raises ManifestError.
    """
    manifest = read_manifest(store)
    recorded: list[int] = []
    if manifest is not None:
        recorded = [run.adapter_version for run in manifest.training_runs if (run.adapter_name or FLAT) == name]
        recorded.append(manifest.adapter_version if name == FLAT else manifest.adapter_versions.get(name, 0))
    return max(latest_version(store, name) or 0, highest_noted(store, name), *recorded, 0)


def _refuse_outside(store: Store, folder: Path) -> None:
    """Raise StoreError when a link on the way leads out of the store, so that nothing is written there."""
    try:
        if folder.resolve().is_relative_to(store.root.resolve()):
            return
    except (OSError, RuntimeError):
        pass
    raise StoreError(f"{folder} leads out of the store through a link; remove the link and train again.")
