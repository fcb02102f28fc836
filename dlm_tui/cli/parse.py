"""`dlm-tui parse`: read documents or mix strings and print what was understood."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dlm_tui.counting import counted
from dlm_tui.document import (
    Document,
    InvalidMixSpecError,
    describe_document,
    describe_error,
    load,
    parse_mix,
    source_bindings,
    sources,
)
from dlm_tui.document.describe import describe_path, tagged_floats
from dlm_tui.document.errors import printable
from dlm_tui.errors import DlmTuiError, InvalidDocument, UsageError
from dlm_tui.output import put, say

_INVALID = InvalidDocument.exit_code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Documents, or `--mix` with what belongs to it."""
    parser.add_argument("documents", nargs="*", metavar="DOC", type=Path, help=".dlm files, read in this order")
    parser.add_argument("--mix", action="append", metavar="SPEC", help="read a mix string instead")
    parser.add_argument("--declared", metavar="NAMES", help="with --mix: the adapter names that are allowed, as a,b")
    parser.add_argument("--sources", action="store_true", help="take in training.sources too, and tell what is in them")
    parser.add_argument("--signed", action="store_true", help="with --mix: negative weights too, only finite ones")


def run(args: argparse.Namespace) -> int:
    """One line per input that reads on stdout; 0, or 3 if any is invalid, or 1 if a file could not be read at all."""
    if bool(args.mix) == bool(args.documents):
        raise UsageError("give either documents or --mix")
    if args.mix and args.sources:
        raise UsageError("--sources belongs to documents")
    if not args.mix and (args.declared is not None or args.signed):
        raise UsageError("--declared and --signed belong to --mix")
    worst = 0
    for item in args.mix or args.documents:
        result, code = _read_mix(item, args) if args.mix else _read_document(item, args)
        worst = max(worst, code)
        if args.json:
            # ASCII only: no separator in a text may end the line, no control character may reach a terminal.
            sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
            sys.stdout.flush()
        else:
            _tell(result)
    return worst


def _read_document(path: Path, args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    shown = {"path": describe_path(path)}
    try:
        document = load(path)
        taken_in = _take_in(document) if args.sources else {}
        return {**shown, **describe_document(document), **taken_in}, 0
    except DlmTuiError as error:
        return {**shown, **describe_error(error)}, error.exit_code


def _take_in(document: Document) -> dict[str, Any]:
    return sources.describe_scan(sources.SourceScan(document, bindings=source_bindings(document)))


def _read_mix(spec: str, args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    declared = None if args.declared is None else [name.strip() for name in args.declared.split(",")]
    shown = {"spec": printable(spec)}
    try:
        entries = parse_mix(spec, declared, args.signed)
    except InvalidMixSpecError as error:
        return {**shown, "ok": False, "error": type(error).__name__, "message": printable(str(error))}, _INVALID
    return {**shown, "ok": True, "entries": tagged_floats(entries)}, 0


def _tell(result: dict[str, Any]) -> None:
    """The same for people: what was read, or on stderr why not and what to look at."""
    if not result["ok"]:
        say(f"dlm-tui: {result['message']}")
    elif "entries" in result:
        put(f"{result['spec']}: " + ", ".join(f"{name} {weight}" for name, weight in result["entries"]))
    else:
        prompts = counted(len(result["gate_probes"]), "prompt")
        counts = f"{counted(len(result['sections']), 'section')}, {prompts} for the gate"
        if "ingested" in result:
            bound = sum(section["adapter"] is not None for section in result["ingested"])
            counts += (
                f", {counted(len(result['ingested']), 'section')} from files ({bound} of them bound to an adapter)"
            )
        put(f"{result['path']}: valid, {counts}")
        for warning in result.get("warnings", ()):
            say(f"  {warning}")
