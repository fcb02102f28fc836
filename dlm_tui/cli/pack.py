"""`dlm-tui pack DOC`: a document with what it learned, in one file."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlm_tui.cli.own_store import own_store
from dlm_tui.cli.path_option import given_path
from dlm_tui.counting import counted
from dlm_tui.errors import DlmTuiError
from dlm_tui.output import emit, say
from dlm_tui.shell_word import shell_word
from dlm_tui.store.packs import PackContents, write_pack
from dlm_tui.system_errors import system_sentence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, and what goes into it besides the rest of the store."""
    parser.add_argument("--out", metavar="PACK", type=given_path, help="default: DOC.pack")
    parser.add_argument("--include-exports", action="store_true", help="the exports, too")
    parser.add_argument("--include-cache", action="store_true", help="the store's scratch files, too")
    parser.add_argument("--include-logs", action="store_true", help="the logs, too")
    parser.add_argument("--force", action="store_true", help="overwrite a pack of that name")


def run(args: argparse.Namespace) -> int:
    """Write the pack; 0, or 1 if it cannot be made."""
    path = Path(args.document)
    contents = PackContents(args.include_exports, args.include_cache, args.include_logs)
    document, store = own_store(args)
    try:
        packed = write_pack(path, store, Path(args.out) if args.out else None, contents, overwrite=args.force)
    except OSError as error:
        raise DlmTuiError(f"the pack cannot be written: {system_sentence(error) or error}") from error
    if args.json:
        emit({"pack": str(packed.path), "bytes": packed.size, "content_bytes": packed.content_bytes})
        return 0
    files = counted(packed.files, "file")
    say(f"{packed.path}: {files}, {packed.content_bytes / 1e6:.1f} MB in {packed.size / 1e6:.1f} MB")
    if packed.executables:
        say(f"{packed.executables} of them will not be executable when unpacked")
    if document.training.sources:
        say("the folders of training.sources are not in it")
    say(f"`dlm-tui unpack {shell_word(packed.path.name)}` takes it apart on another machine")
    return 0
