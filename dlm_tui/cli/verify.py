"""`dlm-tui verify PACK`: whether a pack is sound, without writing anything."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlm_tui.document.errors import printable
from dlm_tui.output import emit, say
from dlm_tui.store.packs import PackError, check_pack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The pack."""
    parser.add_argument("pack", metavar="PACK", type=Path, help="path of a .dlm.pack file")


def run(args: argparse.Namespace) -> int:
    """0 for a sound pack, 1 otherwise."""
    shown = {"pack": printable(str(args.pack))}
    try:
        pack = check_pack(args.pack)
    except PackError as error:
        if not args.json:
            raise
        emit({**shown, "ok": False, "error": type(error).__name__, "message": printable(str(error))})
        return error.exit_code
    if args.json:
        emit(
            {
                **shown,
                "ok": True,
                "dlm_id": pack.manifest.dlm_id,
                "base_model": pack.manifest.base_model,
                "document": pack.document_name,
                "content_type": pack.header.content_type,
                "created_at": pack.header.created_at,
                "members": pack.files,
            }
        )
    else:
        size = sum(pack.files.values()) / 1e6
        say(f"{pack.path}: sound; {pack.document_name} of base {pack.manifest.base_model}, {size:.1f} MB")
    return 0
