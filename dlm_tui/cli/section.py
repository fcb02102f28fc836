"""`dlm-tui section DOC VERB`: list, add, edit, delete and retag the sections of a document."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dlm_tui.cli.belonging import belong
from dlm_tui.document import (
    BodyError,
    Document,
    append_section,
    delete_section,
    edit_section,
    load,
    retag_section,
)
from dlm_tui.document.document import read_document_bytes
from dlm_tui.document.text import decode
from dlm_tui.errors import UsageError
from dlm_tui.output import emit, say

_TYPES = ("prose", "instruction", "preference")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, with which section."""
    parser.add_argument("verb", choices=("list", "add", "edit", "delete", "retag"))
    parser.add_argument("section", metavar="SECTION", nargs="?", help="a line of it, or its id (edit, delete, retag)")
    parser.add_argument("--type", choices=_TYPES, default="instruction", help="with add (default: instruction)")
    parser.add_argument("--adapter", metavar="NAME", help="with add and retag; without it the section is for all")
    parser.add_argument("--text", metavar="TEXT", help="with add and edit; without it the text is read from stdin")
    owners = {"section": "edit delete retag", "type": "add", "adapter": "add retag", "text": "add edit"}
    belong(parser, lambda args: str(args.verb), owners)


def run(args: argparse.Namespace) -> int:
    """The list, or what was changed, on stdout."""
    try:
        return _done(args)
    except BodyError as error:  # of the given text: what is in the document already is not looked at here
        raise UsageError(
            f"line {error.section_line} of the section's text: {error.text}; nothing was written"
        ) from None


def _done(args: argparse.Namespace) -> int:
    path = Path(args.document)
    document = load(path)
    if args.verb == "list":
        return _list(document, as_json=args.json)
    if args.verb == "add":
        added = append_section(path, document.sha256, type=args.type, adapter=args.adapter, content=_text(args))
        return _told(args, "added", added.line, added.section_id)
    index = find_section(document, args.section, decode(read_document_bytes(path)).count("\n") + 1)
    if args.verb == "edit":
        edit = edit_section(path, document.sha256, index, _text(args))
    elif args.verb == "retag":
        edit = retag_section(path, document.sha256, index, args.adapter)
    else:
        edit = delete_section(path, document.sha256, index)
    past = {"edit": "changed", "retag": "retagged", "delete": "deleted"}[args.verb]
    return _told(args, past, edit.line, edit.section_id)


def find_section(document: Document, wanted: str | None, lines: int) -> int:
    """The index of the section with a line number of it, or with an id, in a document of so many lines. Raises
    UsageError."""
    if wanted is None:
        raise UsageError("name the section by a line of it or by its id; `section DOC list` shows both")
    if wanted.isdecimal() and len(wanted) < 16:
        before = [index for index, section in enumerate(document.sections) if section.start_line <= int(wanted)]
        if before and int(wanted) <= lines:
            return before[-1]
        raise UsageError(f"there is no section at line {wanted}")
    found = [index for index, section in enumerate(document.sections) if section.section_id == wanted]
    if len(found) != 1:
        raise UsageError(f"{len(found) or 'no'} sections have the id {wanted!r}; name it by its line")
    return found[0]


def _list(document: Document, *, as_json: bool) -> int:
    if as_json:
        keys = ("type", "adapter", "start_line", "section_id", "content")
        emit([{key: getattr(section, key) for key in keys} for section in document.sections])
        return 0
    for section in document.sections:
        opening = " ".join(section.content.split())[:60]
        shown = "".join(c if c.isprintable() else " " for c in opening)
        kind = f"{section.type}#{section.adapter}" if section.adapter else section.type
        sys.stdout.write(f"{section.start_line:>6}  {section.section_id}  {kind:<24}  {shown}\n")
    return 0


def _text(args: argparse.Namespace) -> str:
    if args.text is not None:
        return str(args.text)
    text = sys.stdin.buffer.read()
    try:
        return text.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise UsageError("the text is not UTF-8") from None


def _told(args: argparse.Namespace, past: str, line: int, section_id: str | None) -> int:
    if args.json:
        emit({"document": args.document, "done": past, "line": line, "section_id": section_id})
    else:
        say(f"{past}: the section at line {line} of {args.document}")
    return 0
