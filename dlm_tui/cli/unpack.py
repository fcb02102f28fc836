"""`dlm-tui unpack PACK`: the document beside the pack, its store in the home."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlm_tui.cli.copyable import copyable
from dlm_tui.cli.path_option import given_path
from dlm_tui.counting import counted
from dlm_tui.errors import DlmTuiError
from dlm_tui.output import emit, say
from dlm_tui.store import resolve_home
from dlm_tui.store.packs import unpack
from dlm_tui.system_errors import system_sentence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The pack, and where its document goes."""
    parser.add_argument("pack", metavar="PACK", type=Path, help="path of a .dlm.pack file")
    parser.add_argument("--out", metavar="DIR", type=given_path, help="folder for the document (default: the pack's)")
    parser.add_argument("--force", action="store_true", help="replace a store of the same id")
    parser.add_argument("--open", action="store_true", help="open the workbench on the document")


def run(args: argparse.Namespace) -> int:
    """Check everything, then install; 0, or 1 if the pack is unsound or something is in its place."""
    try:
        found = unpack(args.pack, resolve_home(args.home), Path(args.out) if args.out else None, force=args.force)
    except OSError as error:
        raise DlmTuiError(f"the pack cannot be unpacked: {system_sentence(error) or error}") from error
    if args.json:
        told = {"document": str(found.document), "store": str(found.store.root), "dlm_id": found.store.dlm_id}
        emit({**told, "left_out": found.left_out, "damage": list(found.damage)})
    else:
        say(f"{found.document}, with its store in {found.store.root}")
        if found.damage:
            more = copyable("`dlm-tui doctor DOC` tells more", str(found.document), args.home)
            say(f"it was damaged when it was packed: {found.damage[0]} {more}")
        if found.left_out:
            say(f"not unpacked: {counted(found.left_out, 'file')} of its line of jobs, checkpoints and locks")
    if args.open:
        from dlm_tui.cli.launch import launch

        return launch(found.document, args)
    return 0
