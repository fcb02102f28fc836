"""`dlm-tui sweep DOC --set PATH=V,V`: every combination of some settings, judged on held-out sections."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.cli.train import cluster_flag, joined_cluster
from dlm_tui.document.counts import checked_folds
from dlm_tui.output import emit, say, shown
from dlm_tui.training.sweep_report import FIGURES, JUDGED_BY

if TYPE_CHECKING:
    from dlm_tui.training.sweep_report import SweepReport

_CHART_CELLS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The grid, the folds, and what becomes of the best."""
    parser.description = (
        "Trains the adapters without a fold of their sections and judges them on it, for every combination of the "
        "given settings; the gate is judged on held-out prompts. Nothing that is in force changes. Killed, it goes on "
        "with what is missing when it is asked for again."
    )
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="PATH=V,V",
        action="append",
        default=[],
        help="a path below training and the values to try; a setting of adapters goes to every one unless the path "
        "begins with adapters.NAME. (may be repeated)",
    )
    parser.add_argument("--folds", type=int, default=5, metavar="K", help="parts that are held out in turn (5)")
    parser.add_argument(
        "--by",
        choices=JUDGED_BY,
        help="what the best is the best by (loss; log_loss where only the gate is tried)",
    )
    parser.add_argument("--write-best", action="store_true", help="put the best settings into the document")
    parser.add_argument("--csv", action="store_true", help="a row per trial")
    cluster_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Progress on stderr, the table on stdout. 1 where no trial could be judged."""
    from dlm_tui.model.memory import refuse_narrow_limits

    refuse_narrow_limits()
    from dlm_tui.cli.narration import Narration
    from dlm_tui.cli.own_store import own_store
    from dlm_tui.document import parse_bytes, read_document_bytes, sources
    from dlm_tui.model import base_of, load_base
    from dlm_tui.progress import run_to_end
    from dlm_tui.training.sweep import SweepRequest, one_after_another, sweep_document
    from dlm_tui.training.sweep_grid import parse_grid, trials_of

    grid = parse_grid(args.settings)
    checked_folds(args.folds)
    _, store = own_store(args)
    path = Path(args.document)
    data = read_document_bytes(path)
    document, scan = sources.expand_sources(parse_bytes(data, path))
    trials_of(document, data, grid)  # what is wrong with the grid is said before a base is loaded
    narration = Narration()
    base = run_to_end(load_base(base_of(document, args.base)), narration)
    with joined_cluster(args, base) as elsewhere:
        request = SweepRequest(
            document=document,
            data=data,
            store=store,
            base=base,
            grid=grid,
            folds=args.folds,
            by=args.by,
            write=args.write_best,
            scan=scan,
        )
        report = sweep_document(request, narration, elsewhere.judge if elsewhere is not None else one_after_another)
    say(f"{report.fresh} of {report.works} trainings were new; the others were done before")
    if args.json:
        emit(report.as_json())
    elif args.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([report.header(), *report.rows()])
    else:
        sys.stdout.write("".join(line + "\n" for line in lines(report)))
    return 0 if report.judged else 1


def lines(report: SweepReport) -> list[str]:
    """The table with a chart of what the trials are judged by, then the best and what was written."""
    header = [*report.header()[:-1], f"{FIGURES[report.by]} {report.scale()}".strip()]
    chart = report.chart(_CHART_CELLS)
    cells = [
        [_cell(value) for value in row[:-1]] + [(chart[number] + (" best" if number == report.best else "")).strip()]
        for number, row in enumerate(report.rows())
    ]
    widths = [max(len(row[column]) for row in [header, *cells]) for column in range(len(header))]
    found = [_line(row, widths) for row in [header, *cells]]
    if report.reason:
        found += ["", f"{'best: ' if report.best is not None else ''}{shown(report.reason, keep='')}"]
    if report.written is not None:
        written = ", ".join(f"training.{path}: {value}" for path, value in report.written.items())
        found.append(f"written into the document: {shown(written, keep='')}")
    return found


def _line(row: list[str], widths: list[int]) -> str:
    *figures, chart = row
    return "  ".join([*(text.rjust(width) for text, width in zip(figures, widths, strict=False)), chart]).rstrip()


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else shown(str(value), keep="")
