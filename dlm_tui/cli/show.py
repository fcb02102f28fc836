"""`dlm-tui show DOC`: what the document's store holds and what state its gate is in."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm_tui.cli.copyable import copyable
from dlm_tui.cli.show_report import show_report
from dlm_tui.counting import counted
from dlm_tui.document import Document, TrainerSettings, load
from dlm_tui.errors import DlmTuiError
from dlm_tui.output import emit
from dlm_tui.store import resolve_home

if TYPE_CHECKING:
    from dlm_tui.model.registry import BaseSource

_BAR_CELLS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show the store of a document: adapters, runs, gate. Reads only."


def run(args: argparse.Namespace) -> int:
    document = load(Path(args.document))
    base, trouble = _base(document, args.base)
    report = show_report(resolve_home(args.home), document, base=base, problems=trouble)
    if args.json:
        emit(report)
    else:
        sys.stdout.write("".join(line + "\n" for line in describe(report, args.home)))
    return 0


def describe(report: dict[str, Any], home: str | None = None) -> list[str]:
    """The report as lines of plain text; control characters of foreign text are shown, not sent."""
    document, gate = report["document"], report["gate_state"]
    lines = [
        _row("document", f"{document['path']}  ({document['dlm_id']})"),
        _row("base", _base_words(report)),
        *(_row(name, report[name]) for name in ("quantize", "offload") if report[name]),
    ]
    if "path" in report:
        size = report["total_size_bytes"] / 1e6
        lines.append(_row("store", f"{report['path']}  ({size:.1f} MB)"))
    else:
        lines.append(_row("store", "none yet: nothing was trained"))
    if "training_runs" in report:
        last = f", last {report['last_trained_at']} UTC" if report["last_trained_at"] else ""
        runs = f"{report.get('trainings', '?')} of {report['training_runs']} runs{last}"
        lines.append(_row("trainings", f"{runs}; {counted(len(report['exports']), 'export')}"))
    lines += [_row("source", _source_words(source)) for source in report.get("training_sources", ())]
    lines += [_row("bound", f"{folder} → {name}") for folder, name in report.get("source_adapters", {}).items()]
    lines += ["", f"{'adapter':<34}{'version':>8}{'sections':>10}"]
    for name, version in report["adapters"].items():
        shown = f"v{version:04d}" if version is not None else "-"
        count = document["sections"].get(name, document["untagged"] if name == "default" else 0)
        lines.append(f"{name:<34}{shown:>8}{count:>10}{_trained_words(report['trained'].get(name))}")
    lines += _plan_lines(report.get("training_plan"))
    strangers = [name for name in document["sections"] if name not in report["adapters"]]
    lines += [f"{name:<34}{'-':>8}{document['sections'][name]:>10}  not declared" for name in strangers]
    weights = {"trained": "its learned weights are in force", "uniform": "uniform weights", "none": "uniform weights"}
    used = "" if gate["mode"] in (gate["in_force"], "none") else f" ({weights[gate['in_force']]})"
    lines += ["", _row("gate", f"{gate['mode']}{used}: {gate['reason']}")]
    for row in report.get("gate", {}).get("per_adapter", []):
        if "mean_weight" in row:
            lines.append(_weight_row(row))
    if gate.get("entropy") is not None and gate.get("normalised_entropy") is not None:
        share = gate["normalised_entropy"]
        lines.append(f"  entropy of the mean weights {gate['entropy']:.3f} nats, {share:.0%} of uniform")
    lines += [f"warning: {text}" for text in gate["warnings"]]
    lines += [f"problem: {copyable(text, document['path'], home)}" for text in report["problems"]]
    return [_plain(line) for line in lines]


def _plan_lines(plan: dict[str, Any] | None) -> list[str]:
    """What `train` would do, an adapter a line; a phase is its name, epochs, steps, learning rate and schedule."""
    if plan is None:
        return []
    batch = plan["micro_batch"] * plan["grad_accum"]
    defaults = TrainerSettings()
    trainer = {name: value for name, value in plan["trainer"].items() if value != getattr(defaults, name)}
    shared = f"{plan['optimizer']}, {batch} rows a step, {plan['sequence_len']} tokens a row, seed {plan['seed']}"
    lines = ["", _row("training", f"{shared}, {plan['precision'] or 'fp32'}")]
    if trainer:
        lines.append(_row("trainer", ", ".join(f"{name} {str(value).lower()}" for name, value in trainer.items())))
    for name, adapter in plan["adapters"].items():
        rows = ", ".join(f"{count} {kind}" for kind, count in adapter["rows"].items() if count)
        kind = adapter["parameterization"] + (f" ({adapter['selection']})" if adapter["selection"] else "")
        kind += f" signed ±{adapter['coefficient']:g}" if adapter["signed"] else ""
        phases = "; ".join(
            f"{phase['name']} {counted(phase['epochs'], 'epoch')}, {counted(phase['steps'], 'step')}, "
            f"{phase['learning_rate']:g} {phase['lr_scheduler']}"
            for phase in adapter["phases"]
        )
        modules = adapter["target_modules"]
        where = modules if isinstance(modules, str) else " ".join(modules)
        lines.append(
            f"  {name:<16}{kind} r {adapter['rank']} alpha {adapter['alpha']:g}; rows: {rows}; {phases}; {where}"
        )
    return lines + [f"  note: {text}" for text in plan["notes"]]


def _trained_words(trained: dict[str, Any] | None) -> str:
    """How the version in force was trained, and how far down the spectrum its selection lies."""
    if trained is None:
        return ""
    depth = trained["mean_tail_depth"]
    return f"  {trained['kind']}" + (f", tail depth {depth:.3f}" if depth is not None else "")


def _row(label: str, text: str) -> str:
    return f"{label:<10}{text}"


def _source_words(source: dict[str, Any]) -> str:
    if "file_count" not in source:
        return f"{source['path']}  (not read)"
    skipped = sum(count for key, count in source.items() if key.startswith("skipped_"))
    more = f", {skipped} skipped" if skipped else ""
    return f"{source['path']}  ({counted(source['file_count'], 'file')}, {source['total_bytes'] / 1e6:.1f} MB{more})"


def _weight_row(row: dict[str, Any]) -> str:
    weight = row["mean_weight"]
    cells = "█" * round(max(0.0, min(1.0, weight)) * _BAR_CELLS)
    return f"  {row['adapter_name']:<32}{weight:>6.3f}  {cells:<{_BAR_CELLS}}  {counted(row['sample_count'], 'prompt')}"


def _base_words(report: dict[str, Any]) -> str:
    base = report["base"] or {}
    revision = f" @ {base['revision'][:12]}" if base.get("revision") else ""
    opened = f", opened from {report['opened_from']}" if report["opened_from"] else ""
    return f"{report['document']['base_model']}{revision}{opened}"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _base(document: Document, override: str | Path | None) -> tuple[BaseSource | None, list[str]]:
    """What is known of the base without loading it, and what is wrong with it; showing a store needs none."""
    from dlm_tui.model.document_base import base_of, check_files

    source = None
    try:
        source = base_of(document, override)
        check_files(source)
    except DlmTuiError as error:
        return source, [str(error)]
    return source, []
