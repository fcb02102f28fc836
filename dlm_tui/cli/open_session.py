"""The session of a headless command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.progress import Progress, run_to_end
from dlm_tui.store import resolve_home

if TYPE_CHECKING:
    from dlm_tui.session import Dtype, Session


def open_session(args: argparse.Namespace, *, adapters: bool = True) -> Session:
    """The session of a headless command (`args.document`, `args.home`, `args.base`); progress only to a terminal."""

    def report(step: Progress) -> None:
        if sys.stderr.isatty() and step.total:
            sys.stderr.write(
                f"\r{step.stage} {step.done}/{step.total}\033[K" + ("\n" if step.done == step.total else "")
            )

    from dlm_tui.session import Session

    base = Path(args.base) if args.base else None
    dtype: Dtype = getattr(args, "dtype", "float32")
    return run_to_end(
        Session.open(Path(args.document), resolve_home(args.home), base, adapters=adapters, dtype=dtype), report
    )
