"""Older schema versions to version 15, in memory (formats.md section 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlm_tui.document.errors import DlmVersionError, SchemaValidationError, UnsupportedMigrationError

NEWEST_VERSION = 15
_HYPERPARAMS = ("beta", "learning_rate", "num_epochs")


def migrate(mapping: dict[Any, Any], path: Path | None = None) -> dict[Any, Any]:
    """A copy of the raw frontmatter as version 15; an absent version means 1.

    Only the step from 1 to 2 changes keys; later versions added keys, fences or markers that every version
    may use. Raises SchemaValidationError, UnsupportedMigrationError, DlmVersionError.
    """
    version = mapping.get("dlm_version", 1)
    if not isinstance(version, int) or isinstance(version, bool):
        raise SchemaValidationError(f"dlm_version: must be an integer, not {type(version).__name__}", path=path)
    if version < 1:
        raise UnsupportedMigrationError(f"there is no dlm_version {version}", path=path)
    if version > NEWEST_VERSION:
        raise DlmVersionError(
            f"dlm_version {version} is newer than {NEWEST_VERSION}, the newest this program reads",
            path=path,
            line=2,
        )
    migrated = {**mapping, "dlm_version": NEWEST_VERSION}
    if version == 1 and isinstance(migrated.get("training"), dict):
        migrated["training"] = _dpo_to_preference(migrated["training"])
    return migrated


def _dpo_to_preference(training: dict[Any, Any]) -> dict[Any, Any]:
    renamed = dict(training)
    dpo = renamed.pop("dpo", None)
    if dpo is None:
        return renamed
    if not isinstance(dpo, dict):
        renamed["preference"] = dpo
        return renamed
    preference: dict[str, Any] = {"method": "dpo"}
    preference.update({key: dpo[key] for key in ("enabled", "loss_type", "reference") if key in dpo})
    if preference.get("reference") == "pre_dpo_adapter":
        preference["reference"] = "pre_adapter"
    hyperparams = {key: dpo[key] for key in _HYPERPARAMS if key in dpo}
    if hyperparams:
        preference["hyperparams"] = hyperparams
    renamed["preference"] = preference
    return renamed
