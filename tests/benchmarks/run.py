"""All benchmarks, as JSON and a table: `python -m tests.benchmarks.run --out bench.json [--quick] [--only TOPIC]`."""

from __future__ import annotations

import argparse
import importlib
import json
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.harness import Row, machine


def topics() -> list[str]:
    """The bench modules of this folder, without their prefix."""
    return sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def measure(topic: str, quick: bool) -> list[Row]:
    """The rows of one module; a module that fails becomes one row that says so and counts as not met."""
    try:
        rows: list[Row] = importlib.import_module(f"tests.benchmarks.bench_{topic}").rows(quick)
    except Exception as error:  # one broken topic must not hide the others
        traceback.print_exc()
        return [Row(topic, None, None, "", None, "", False, f"failed: {type(error).__name__}: {error}")]
    return rows


def table(rows: list[Row]) -> Table:
    """The rows for people."""
    view = Table(title="dlm-tui benchmarks", show_lines=False)
    for column in ("row", "ours", "baseline", "what the baseline is", "ratio", "goal", "met", "exactness"):
        view.add_column(column, overflow="fold")
    for row in rows:
        met = {True: "yes", False: "NO", None: "–"}[row.met]
        ratio = "–" if row.ratio is None else f"{row.ratio:,.2f}×"
        cells = (row.name, _figure(row.ours, row), _figure(row.baseline, row), row.baseline_name, ratio)
        view.add_row(*cells, row.goal, met, row.exact)
    return view


def _figure(value: float | None, row: Row) -> str:
    return "–" if value is None else f"{value:,.3g} {row.unit}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.benchmarks.run", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    parser.add_argument("--only", action="append", metavar="TOPIC", help=f"one of: {', '.join(topics())}")
    args = parser.parse_args()
    chosen = args.only or topics()
    console = Console(stderr=True)
    started = time.time()
    found: list[Row] = []
    for topic in chosen:
        console.print(f"measuring {topic} …", markup=False)
        found += measure(topic, args.quick)
    report: dict[str, Any] = {
        "machine": machine(),
        "quick": args.quick,
        "started": started,
        "seconds": time.time() - started,
        "rows": [asdict(row) for row in found],
    }
    args.out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    Console(width=180).print(table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
