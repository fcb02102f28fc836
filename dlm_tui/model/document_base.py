"""Which base a document is used with: the one asked for now, the one its side file names, or its own. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.document import document_side_file
from dlm_tui.model.registry import BaseSource, resolve_base

if TYPE_CHECKING:
    from dlm_tui.document import Document


def base_of(document: Document, override: Path | str | None = None) -> BaseSource:
    """The source of `document`'s base: `override` where it is given, else `base` of the side file, else its own.

    A relative path in the side file starts at the document's folder. Raises SideFileError and BaseUnavailable.
    """
    if override is None and (named := document_side_file(document).base) and document.path is not None:
        override = document.path.parent / Path(named).expanduser()
    return resolve_base(document.base_model, Path(override) if override is not None else None)
