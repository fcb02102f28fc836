"""The hash that a record of ours holds of the rest of itself: other files have theirs in records, a record has none."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from dlm_tui.files import json_bytes

OWN_HASH = "record_sha256"
"""Its key, but for checkpoints."""


def own_sha256(record: Mapping[str, object]) -> str:
    """Of a record without its hash, in the form that all files of a store have."""
    return hashlib.sha256(json_bytes(record)).hexdigest()
