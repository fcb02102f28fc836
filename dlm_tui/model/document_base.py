"""Which base a document is used with: the one asked for now, the one its side file names, or its own. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dlm_tui.document import document_side_file, side_file_path
from dlm_tui.input import with_home
from dlm_tui.model.config_check import check_config
from dlm_tui.model.registry import BaseSource, read_json, resolve_base, weight_files

if TYPE_CHECKING:
    from dlm_tui.document import Document


def base_of(document: Document, override: Path | str | None = None) -> BaseSource:
    """The source of `document`'s base: `override` where it is given, else `base` of the side file, else its own.

    How the side file wants it quantised or offloaded goes with all of them. A relative path there starts at the
    document's folder.
    Raises SideFileError and BaseUnavailable.
    """
    side = document_side_file(document)
    named_by, named = "--base", None
    if override is None and side.base and document.path is not None:
        override, named = document.path.parent / with_home(side.base), side.base
        named_by = str(side_file_path(document.path))
    source = resolve_base(document.base_model, Path(override) if override is not None else None, named_by, named)
    folder = None
    if side.offload is not None and document.path is not None:
        folder = document.path.parent / with_home(side.offload)
    return msgspec.structs.replace(source, quantize=side.quantize, offload=folder)


def check_files(source: BaseSource) -> None:
    """Raises BaseUnavailable where what would be opened is no whole base, as far as headers and configuration tell; a
    base of the hub that is not on this machine is not looked at."""
    if source.path is not None:
        check_config(read_json(source.path / "config.json"), weight_files(source.path))
    elif source.gguf is not None:
        from dlm_tui.model.gguf_base import file_contents

        file_contents(source.gguf)
