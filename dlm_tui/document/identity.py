"""Giving a copy of a document an id of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from dlm_tui.document.document import parse_bytes, read_document_bytes
from dlm_tui.document.names import fresh_dlm_id, is_dlm_id
from dlm_tui.document.replacing import save_document
from dlm_tui.document.yaml_profile import BoundedLoader
from dlm_tui.errors import DlmTuiError, UsageError

_frame = re.compile(r"\ufeff?---(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---(?:\r\n|\r|\n|\Z)", re.DOTALL)


def with_dlm_id(data: bytes, new_id: str) -> bytes:
    """The same bytes with another `dlm_id`; nothing else changes.

    Raises DocumentError if the document does not parse, UsageError for an illegal id, DlmTuiError if the id is written
    in a way that cannot be replaced in place (for example shared through a YAML alias).
    """
    if not is_dlm_id(new_id):
        raise UsageError(f"{new_id!r} is not a document id")
    before = parse_bytes(data)
    text = data.decode()
    match = _frame.match(text)
    value = _id_node(match[1]) if match else None
    if match is None or value is None:
        raise DlmTuiError("the dlm_id of this document cannot be replaced in place")
    # All digits would be read as a number, so such an id is quoted.
    quote = value.style or ('"' if new_id.isdigit() else "")
    start, end = (match.start(1) + mark.index for mark in (value.start_mark, value.end_mark))
    changed = (text[:start] + quote + new_id + quote + text[end:]).encode()
    after = parse_bytes(changed)
    expected = before.frontmatter.model_copy(update={"dlm_id": new_id})
    if after.frontmatter != expected or after.sections != before.sections:
        raise DlmTuiError("the dlm_id of this document cannot be replaced in place")
    return changed


def give_new_id(path: Path) -> str:
    """Give the document in a file an id that nobody has, and tell it.

    Raises what `with_dlm_id` raises, ReadOnlyDocument, FileChanged, DocumentBusy, OSError.
    """
    data = read_document_bytes(path)
    new_id = fresh_dlm_id()
    save_document(path, data, with_dlm_id(data, new_id))
    return new_id


def frontmatter_span(text: str) -> tuple[int, int] | None:
    """Where the YAML between the two `---` lines starts and ends, in characters; None where there is no frame."""
    match = _frame.match(text)
    return match.span(1) if match else None


def _id_node(frontmatter: str) -> Any:
    """The scalar of the last top-level `dlm_id` key, with its marks, or None."""
    loader = BoundedLoader(frontmatter)
    try:
        root = loader.get_single_node()
    finally:
        loader.dispose()
    if not isinstance(root, yaml.MappingNode):
        return None
    found = [value for key, value in root.value if isinstance(key, yaml.ScalarNode) and key.value == "dlm_id"]
    return found[-1] if found and found[-1].style in (None, "'", '"') else None
