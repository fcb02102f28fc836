"""`dlm-tui new PATH`: a document to start from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.cli.copyable import copyable
from dlm_tui.counting import counted
from dlm_tui.document.templates import TEMPLATES, compose, folders_to_learn, write_new
from dlm_tui.errors import DlmTuiError
from dlm_tui.input import with_home
from dlm_tui.output import emit, say

if TYPE_CHECKING:
    from dlm_tui.model.registry import BaseSource


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where, from what, and whether to open it."""
    parser.add_argument("path", metavar="PATH", type=Path, help="the document to write; .dlm is added where missing")
    parser.add_argument("--base-model", metavar="KEY", default="pocket", help="pocket, a key, or hf:org/name")
    parser.add_argument("--adapters", metavar="A,B,C", help="names of the adapters, instead of a template's")
    parser.add_argument(
        "--template", choices=tuple(TEMPLATES), help="; ".join(f"{name}: {text}" for name, text in TEMPLATES.items())
    )
    parser.add_argument(
        "--from",
        dest="folders",
        metavar="FOLDER",
        type=Path,
        action="append",
        default=[],
        help="learn from the files below a folder (may be repeated: one adapter each)",
    )
    parser.add_argument("--no-open", action="store_true", help="only write the document")


def run(args: argparse.Namespace) -> int:
    """Write, say what was written, then open it where there is a terminal."""
    from dlm_tui.model.registry import resolve_base

    base = resolve_base(args.base_model, Path(args.base) if args.base else None)
    path: Path = args.path if args.path.suffix else args.path.with_name(f"{args.path.name}.dlm")
    names = [name.strip() for name in args.adapters.split(",")] if args.adapters is not None else []
    new = compose(
        path,
        base_model=args.base_model,
        template=args.template,
        base=with_home(args.base).absolute() if args.base else None,
        adapters=() if args.folders else names,
        folders=folders_to_learn(args.folders, names) if args.folders else (),
    )
    write_new(new)
    targets, exports = _exports(base)
    floor = new.document.training.gate.cold_start_floor
    if args.json:
        emit(
            {
                "document": str(path),
                "dlm_id": new.document.dlm_id,
                "adapters": list(new.document.routing_names),
                "sources": [source.path for source in new.document.training.sources or ()],
                "source_adapters": new.side.source_adapters,
                "exports": targets,
            }
        )
    else:
        adapters = new.document.routing_names
        noun = "adapter" if len(adapters) == 1 else "adapters"
        say(f"{path}: a new document with the {noun} {', '.join(adapters)}")
        for folder in new.folders:
            few = f"; a gate needs {floor}" if folder.file_count < floor else ""
            learner = folder.adapter if new.side.source_adapters else "every adapter"
            say(f"  {learner} learns from {folder.folder}: {counted(folder.file_count, 'file')}{few}")
        say(f"exports: {exports}")
    if args.no_open or args.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        if not args.json:
            say(copyable("`dlm-tui DOC` opens it, `dlm-tui train DOC` trains it", str(path), args.home))
        return 0
    from dlm_tui.cli.launch import launch

    return launch(path, args, train_if_untrained=base.path is not None)


def _exports(base: BaseSource) -> tuple[list[str], str]:
    """What the base can be exported to, in the words of `doctor`: the document is written whatever comes of it."""
    from dlm_tui.export.suitability import suitability

    try:
        return suitability(base)
    except DlmTuiError as error:
        return [], f"not known: {error}"
