"""`dlm-tui export DOC`: write the adapters out, under one frozen mix, for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.cli.path_option import given_path
from dlm_tui.errors import UsageError
from dlm_tui.output import emit, put, say

if TYPE_CHECKING:
    from dlm_tui.export import ExportRequest, ExportResult
    from dlm_tui.export.cost_table import FormatCost
    from dlm_tui.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to export, and where to."""
    from dlm_tui.export.choices import QUANTS, TARGETS

    parser.add_argument("--target", default="peft", metavar="T", help=f"one of {', '.join(TARGETS)} (default: peft)")
    parser.add_argument(
        "--quant",
        metavar="Q",
        help=f"one of {', '.join(QUANTS)}, in any case (default: the document's for GGUF, the base's own for merged)",
    )
    parser.add_argument(
        "--imatrix",
        metavar="WHAT",
        help="weigh the rounding: auto (by the document's own text), a text file, or an importance matrix (GGUF)",
    )
    parser.add_argument(
        "--mix",
        "--adapter-mix",
        metavar="SPEC",
        help="a:0.7,b:0.3, the name of a saved mix, uniform, or best (default: the gate's static mean)",
    )
    parser.add_argument("--signed", action="store_true", help="allow negative weights in --mix")
    parser.add_argument("--adapter", metavar="NAME", help="this adapter alone")
    parser.add_argument(
        "--gate",
        choices=("static", "live"),
        default="static",
        help="live takes the gate along with a server that asks it for every prompt (llama-server)",
    )
    parser.add_argument("--out", metavar="DIR", type=given_path, help="where to (default: the store's exports folder)")
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="try the export in the real runtime (default: when it is installed)",
    )
    parser.add_argument(
        "--compare",
        nargs="?",
        const="",
        metavar="Q,Q,…",
        help="measure what each format costs (size, divergence, changed answers, the gate's choice, speed) and show a "
        "table; with --quant that format is then exported",
    )
    parser.add_argument("--no-drift", action="store_true", help="do not measure what freezing the gate costs")
    parser.add_argument(
        "--ollama-legacy-adapter", action="store_true", help="base and ADAPTER apart, for Ollama before 0.34.1"
    )
    parser.add_argument("--ollama-create", action="store_true", help="run `ollama create` on the result")


def run(args: argparse.Namespace) -> int:
    """Progress and notes on stderr; stdout has the manifest with --json, else the folder and the next command."""
    from dataclasses import replace

    from dlm_tui.cli.narration import Narration
    from dlm_tui.cli.open_session import open_session
    from dlm_tui.document import load
    from dlm_tui.export import ExportRefused, ExportRequest, export_document, find_ollama
    from dlm_tui.export.mix import written_mix
    from dlm_tui.progress import run_to_end

    request = ExportRequest(
        target=args.target,
        quant=args.quant,
        imatrix=args.imatrix,
        mix=args.mix,
        adapter=args.adapter,
        gate=args.gate,
        signed=args.signed,
        out=args.out,
        verify=args.verify,
        drift=not args.no_drift,
        legacy_adapter=args.ollama_legacy_adapter,
    ).checked()
    if args.ollama_create and request.target != "ollama":
        raise UsageError("--ollama-create belongs to the target ollama")
    if args.ollama_create and find_ollama() is None:
        raise ExportRefused("ollama is not on the PATH: install it, or leave --ollama-create out")
    formats = args.compare.split(",") if args.compare else None
    if args.compare is not None:
        from dlm_tui.export.format_costs import compared_quants

        compared_quants(formats)  # unknown ones are said before a base is read
        if args.quant is None:
            _refuse_without_export(args)
    written_mix(request, load(Path(args.document)))  # what is wrong with it is said before a base is read
    session = open_session(args)
    if args.compare is not None:
        request = replace(request, comparison=_compared(args, request, session, formats))
        if args.quant is None:
            return 0
    result = run_to_end(export_document(request, session), Narration())
    _summary(result)
    if args.json:
        emit(result.manifest)
    else:
        put(str(result.folder))
        put(result.next_command)
    if request.target == "ollama":
        _offer_ollama(result, wanted=args.ollama_create)
    return 0


def _refuse_without_export(args: argparse.Namespace) -> None:
    """Raises UsageError for what would do nothing where formats are only compared."""
    given = {
        "--out": args.out is not None,
        "--verify": args.verify is not None,
        "--no-drift": args.no_drift,
        "--ollama-create": args.ollama_create,
        "--ollama-legacy-adapter": args.ollama_legacy_adapter,
    }
    if idle := [flag for flag, is_given in given.items() if is_given]:
        raise UsageError(f"{idle[0]} is of an export, and --compare without --quant writes none")


def _compared(
    args: argparse.Namespace, request: ExportRequest, session: Session, formats: list[str] | None
) -> tuple[FormatCost, ...]:
    """The table on stdout (with --json and no --quant: its lines); an interrupt shows what was measured until then."""
    import msgspec

    from dlm_tui.cli.narration import Narration
    from dlm_tui.export.cost_table import table
    from dlm_tui.export.format_costs import FormatComparison
    from dlm_tui.progress import run_to_end

    comparison = FormatComparison(request, session, formats)
    try:
        run_to_end(comparison.run(), Narration())
    finally:
        if not args.json:
            put(table(comparison.lines))
        elif args.quant is None:
            emit([msgspec.to_builtins(line) for line in comparison.lines])
    return tuple(comparison.lines)


def _summary(result: ExportResult) -> None:
    from dlm_tui.export.report import export_report, sentences

    if result.manifest["gate_mode"] != "static_mean":  # a frozen gate is among the notes
        mix = ", ".join(f"{name} {weight:.4f}" for name, weight in result.manifest["mix"])
        say(f"{result.manifest['gate_mode']}: {mix}")
    for sentence in sentences(export_report(result)):
        say(sentence)


def _offer_ollama(result: ExportResult, *, wanted: bool) -> None:
    from dlm_tui.export import create_model, find_ollama

    if wanted:
        for line in create_model(result.folder, str(result.manifest["ollama_name"])):
            say(line)
    elif find_ollama() is not None:
        say("ollama is installed: --ollama-create runs the first command at once")
