"""The session of a headless command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.cli.narration import Narration
from dlm_tui.model.memory import refuse_narrow_limits
from dlm_tui.progress import run_to_end
from dlm_tui.store import resolve_home

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.model import Base
    from dlm_tui.session import Dtype, Session


def load_document_base(args: argparse.Namespace, document: Document) -> Base:
    """The base of a headless command alone, without adapters and gate."""
    refuse_narrow_limits()
    from dlm_tui.model import base_of, load_base

    return run_to_end(load_base(base_of(document, args.base)), Narration(quiet=True))


def open_session(args: argparse.Namespace, *, adapters: bool = True) -> Session:
    """The session of a headless command (`args.document`, `args.home`, `args.base`); slow work is told."""
    refuse_narrow_limits()
    from dlm_tui.session import Session

    base = Path(args.base) if args.base else None
    dtype: Dtype = getattr(args, "dtype", "float32")
    return run_to_end(
        Session.open(Path(args.document), resolve_home(args.home), base, adapters=adapters, dtype=dtype),
        Narration(quiet=True),
    )
