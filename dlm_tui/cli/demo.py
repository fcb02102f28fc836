"""`dlm-tui demo [DIR]`: a copy of the demo document with an identity of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlm_tui.assets import asset
from dlm_tui.cli.copyable import copyable
from dlm_tui.errors import DlmTuiError
from dlm_tui.files import clear_scratch_of, write_through_links
from dlm_tui.output import emit, say
from dlm_tui.system_errors import cause

_NAME = "harbour.dlm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder, and whether to open it."""
    parser.add_argument("folder", metavar="DIR", nargs="?", default="dlm-demo", help="default: ./dlm-demo")
    parser.add_argument("--no-open", action="store_true", help="only copy the document")


def run(args: argparse.Namespace) -> int:
    """Copy, then open; a second call opens the copy that is there."""
    document = place_demo(Path(args.folder))
    if args.no_open:
        if args.json:
            emit({"document": str(document)})
        else:
            say(f"the demo document is {document}; {copyable('`dlm-tui DOC` opens it', str(document), args.home)}")
        return 0
    from dlm_tui.cli.launch import launch

    return launch(document, args, train_if_untrained=True)


def place_demo(folder: Path) -> Path:
    """The path of the demo document in `folder`, copied there with a fresh dlm_id unless it is there already."""
    from dlm_tui.document import fresh_dlm_id, with_dlm_id

    target = folder / _NAME
    if target.exists():
        return target
    data = with_dlm_id((asset("demo") / _NAME).read_bytes(), fresh_dlm_id())
    clear_scratch_of(target)
    try:
        write_through_links(target, data)
    except OSError as error:
        raise DlmTuiError(f"the demo cannot be written to {folder}: {cause(error)}") from error
    return target
