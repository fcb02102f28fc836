"""The store of a headless command's document, refused where it is another document's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.errors import UsageError

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.store import Store


def own_store(args: argparse.Namespace) -> tuple[Document, Store]:
    """`args.document` and its store under `args.home`. Raises OwnedElsewhere, and the document's own errors."""
    from dlm_tui.store import refuse_other_document

    document, store = _opened(args)
    refuse_other_document(store, document)
    return document, store


def adopt_store(args: argparse.Namespace) -> None:
    """`--adopt`: the store is this document's from now on."""
    from dlm_tui.store import adopt

    if not args.document:
        raise UsageError("--adopt needs the DOC that was moved")
    document, store = _opened(args)
    adopt(store, document)


def _opened(args: argparse.Namespace) -> tuple[Document, Store]:
    from dlm_tui.document import load
    from dlm_tui.store import Store, resolve_home

    document = load(Path(args.document))
    return document, Store(resolve_home(args.home), document.dlm_id)
