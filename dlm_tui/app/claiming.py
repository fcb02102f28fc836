"""Before a document is opened: whether the store of its id is another document's, and what a person makes of that."""

from __future__ import annotations

from dataclasses import replace

from dlm_tui.app.screens.claim import Claim
from dlm_tui.app.setup import Setup
from dlm_tui.document import load
from dlm_tui.document.identity import give_new_id
from dlm_tui.errors import DlmTuiError
from dlm_tui.store import ManifestError, Owner, Store, adopt, other_owner
from dlm_tui.system_errors import cause


def stranger(setup: Setup) -> Owner | None:
    """The other document that the store belongs to; what cannot be read is told by the engine."""
    try:
        return other_owner(Store(setup.home, setup.document.dlm_id), setup.document)
    except ManifestError:
        return None


def settled(setup: Setup, claim: Claim) -> Setup:
    """What is opened then. Raises DlmTuiError for a document or a store that cannot be written."""
    if claim == "moved":
        adopt(Store(setup.home, setup.document.dlm_id), setup.document)
        return setup
    try:
        give_new_id(setup.path)
    except OSError as error:
        raise DlmTuiError(f"{setup.path} cannot be written: {cause(error)}") from error
    return replace(setup, document=load(setup.path))
