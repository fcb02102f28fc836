"""`dlm-tui metrics DOC`: runs, steps and the history of the gate."""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from dlm_tui.cli.belonging import belong
from dlm_tui.cli.own_store import own_store
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.losses import GATE, SFT, UNITS, loss_name, unit_of
from dlm_tui.meant import meant
from dlm_tui.output import emit, say, shown
from dlm_tui.store import GateRun, MetricsReader
from dlm_tui.store.adapter_kind import tail_lines, tail_words
from dlm_tui.store.metrics_schema import LOSS_KINDS
from dlm_tui.store.training_numbers import training_numbers

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_RUN_HEADER = ("run_id", "phase", "seed", "status", "started_at", "ended_at")
_STEP_HEADER = ("step", "loss", "lr", "grad_norm", "val_loss")
_GATE_HEADER = (
    "run_id",
    "at",
    "mode",
    "adapter_name",
    "mean_weight",
    "sample_count",
    "entropy_nats",
    "normalised_entropy",
    "prompt_entropy_nats",
    "normalised_prompt_entropy",
)
_NEWEST = 20
_LAST = 10
"""Steps of a run that are printed; all of them are in --csv and --json."""
_GATE_STEP_HEADER = ("step", "gate_loss", "gate_entropy_nats")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs and the history of the gate. Entropies are in nats and divided by ln N, empty for diverged runs: "
        "`entropy` is that of a run's mean weights, `prompt_entropy` the mean over its training prompts of each one's "
        "own, empty where it was not recorded. --csv prints two tables with an empty line between them: the runs, then "
        "the gate with one row per run and adapter; with --run-id the steps, then the steps of gate training. What "
        "`eval` found is listed last, and in --json."
    )
    parser.add_argument("--csv", action="store_true", help="comma-separated tables")
    parser.add_argument(
        "--run-id",
        type=int,
        metavar="N",
        help="one run with its last steps and its evaluations (all steps: --csv, --json)",
    )
    parser.add_argument(
        "--limit", type=int, default=_NEWEST, metavar="N", help=f"newest runs to list (default {_NEWEST})"
    )
    parser.add_argument("--since", metavar="AGE", help="only runs started within AGE: an integer and s, m, h or d")
    parser.add_argument("--phase", help="only runs with this phase, for example sft, dpo or gate")
    asked = {"one": "--run-id, which is one run", "list": "the list of runs"}
    belong(
        parser,
        lambda args: "list" if args.run_id is None else "one",
        dict.fromkeys(("limit", "since", "phase"), "list"),
        asked.__getitem__,
    )


def run(args: argparse.Namespace) -> int:
    if args.limit < 1:
        raise UsageError("--limit must be at least 1.")
    cutoff = cutoff_text(args.since) if args.since is not None else None
    _, store = own_store(args)
    reader = MetricsReader(store)
    if args.run_id is not None:
        one = run_report(reader, args.run_id)
        if args.json:
            emit(one)
        elif args.csv:
            _tables([(_STEP_HEADER, _step_rows(one)), (_GATE_STEP_HEADER, _gate_step_rows(one))])
        else:
            _print_run(one)
        return 0
    if args.phase is not None:
        _check_phase(args.phase, reader.phases())
    runs = reader.runs(args.limit, args.phase, since=cutoff)
    if args.phase is None:
        history = [entry for entry in reader.gate_history(args.limit) if cutoff is None or entry.at >= cutoff]
    else:  # what the runs that are listed did
        listed_ids = {row["run_id"] for row in runs}
        history = [entry for entry in reader.gate_history(None) if entry.run_id in listed_ids]
    judged = [] if args.phase is not None else reader.gate_evaluations(args.limit)
    judged = [entry for entry in judged if cutoff is None or entry["at"] >= cutoff]
    every = reader.all_loss_kinds()
    kinds = {row["run_id"]: every[row["run_id"]] for row in runs if row["run_id"] in every}
    if args.json:
        gates = [asdict(entry) for entry in history]
        emit({"runs": runs, "loss_kinds": kinds, "gate_history": gates, "gate_evaluations": judged})
    elif args.csv:
        listed = [[row[key] for key in _RUN_HEADER] for row in runs]
        _tables([(_RUN_HEADER, listed), (_GATE_HEADER, _gate_rows(history))])
    else:
        _print_runs(runs, history, training_numbers(store), kinds, chosen=bool(args.phase or args.since))
        _print_judgements(judged)
    return 0


def _check_phase(wanted: str, phases: list[str]) -> None:
    """Tells which phases there are where no run has the wanted one, for an empty table says nothing of a slip. Raises
    UsageError for one that none ever has."""
    if wanted in phases:
        return
    known = phases or list(UNITS)
    told = f"no run has the phase {wanted!r}; there is {', '.join(known)}{meant(wanted, known)}"
    if wanted not in UNITS:
        raise UsageError(told)
    if phases:
        say(told)


def cutoff_text(age: str, now: datetime | None = None) -> str:
    """The UTC text `age` (an integer and s, m, h or d) before now. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", age.strip())
    if match is None:
        raise UsageError(f"--since {age!r} is not an integer followed by s, m, h or d.")
    try:
        moment = (now or datetime.now(UTC)) - timedelta(**{_UNITS[match.group(2)]: int(match.group(1))})
    except OverflowError as error:
        raise UsageError(f"--since {age!r} reaches too far back.") from error
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def run_report(reader: MetricsReader, run_id: int) -> dict[str, Any]:
    """Everything about one run. Raises DlmTuiError for an unknown id."""
    row = reader.run(run_id)
    if row is None:
        raise DlmTuiError(f"There is no run {run_id}.")
    return {
        "run": row,
        "steps": reader.steps(run_id),
        "evals": reader.evals(run_id),
        "preference_mining": reader.preference_mining(run_id),
        "gate_events": [asdict(event) for event in reader.gate_events(run_id)],
        "gate_steps": reader.gate_steps(run_id),
        "extras": reader.run_extras(run_id),
    }


def _step_rows(one: dict[str, Any]) -> list[list[Any]]:
    losses = {row["step"]: row["val_loss"] for row in one["evals"]}
    rows = {row["step"]: [row[key] for key in ("step", "loss", "lr", "grad_norm")] for row in one["steps"]}
    for step in losses:
        rows.setdefault(step, [step, None, None, None])
    return [[*rows[step], losses.get(step)] for step in sorted(rows)]


def _gate_step_rows(one: dict[str, Any]) -> list[list[Any]]:
    return [[row["step"], row["loss"], row["entropy"]] for row in one["gate_steps"]]


def _gate_rows(history: Iterable[GateRun]) -> list[list[Any]]:
    return [
        [
            entry.run_id,
            entry.at,
            entry.mode,
            name,
            weight,
            entry.samples[name],
            entry.entropy,
            entry.normalised_entropy,
            entry.prompt_entropy,
            entry.normalised_prompt_entropy,
        ]
        for entry in history
        for name, weight in entry.weights.items()
    ]


def _tables(tables: Sequence[tuple[Sequence[str], Sequence[Sequence[Any]]]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    first, *others = tables
    writer.writerow(first[0])
    writer.writerows(_cells(first[1]))
    for header, rows in others:
        if rows:
            sys.stdout.write("\n")
            writer.writerow(header)
            writer.writerows(_cells(rows))


def _cells(rows: Sequence[Sequence[Any]]) -> Iterable[list[Any]]:
    """Names in a store may come from other programs: no control character of theirs reaches a terminal."""
    return ([shown(cell, keep="") if isinstance(cell, str) else cell for cell in row] for row in rows)


def _print_runs(
    runs: Sequence[dict[str, Any]],
    history: Sequence[GateRun],
    numbers: Mapping[int, int],
    kinds: Mapping[int, Mapping[str, int]],
    *,
    chosen: bool,
) -> None:
    if not runs and not history:
        print("no such runs" if chosen else "no runs yet")
        return
    print(f"{'training':>8}  {'run':>5}  {'phase':<14}{'status':<11}{'seed':>6}  started (UTC)")
    for row in runs:
        seed = "-" if row["seed"] is None else row["seed"]
        status, started = _word(row["status"]), _word(row["started_at"])
        phase = _word(_phase(row, kinds.get(row["run_id"], ())))
        print(f"{numbers.get(row['run_id'], '-'):>8}  {row['run_id']:>5}  {phase:<14}{status:<11}{seed:>6}  {started}")
    if history:
        print(f"\n{'':27}{'entropy in nats, of ln N':>30}")
        print(f"{'training':>8}  {'run':>5}  {'gate':<10}{'of prompts':>14} {'of mean weights':>16}  mean weights")
    for entry in history:
        prompts = _nats(entry.prompt_entropy, entry.normalised_prompt_entropy)
        means = _nats(entry.entropy, entry.normalised_entropy)
        weights = "  ".join(f"{_word(name)} {weight:.3f}" for name, weight in entry.weights.items())
        number = numbers.get(entry.run_id, "-")
        figures = f"{_word(entry.mode):<10}{prompts:>14} {means:>16}"
        print(f"{number:>8}  {entry.run_id:>5}  {figures}  {weights}")


def _print_judgements(judged: Sequence[Mapping[str, Any]]) -> None:
    """What `eval` found, newest first: shares of held-out prompts, the loss in nats."""
    if judged:
        print(f"\n{'run':>5}  {'judged (UTC)':<22}{'accuracy':>9}{'log loss':>11}{'ECE':>9}  of held-out prompts")
    for entry in judged:
        report = entry["report"] if isinstance(entry["report"], dict) else {}
        figures = "".join(
            f"{_figure(report.get(key)):>{width}}" for key, width in (("accuracy", 9), ("log_loss", 11), ("ece", 9))
        )
        run = "-" if entry["run_id"] is None else entry["run_id"]
        print(f"{run:>5}  {_word(entry['at']):<22}{figures}  {_figure(report.get('prompts'))}")


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value) if isinstance(value, int) else "-"


def _settings(given: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)


def _phase(row: Mapping[str, Any], kinds: Iterable[str]) -> Any:
    """`sft+dpo`: the kinds of loss that a run had, else the phase that it is recorded under."""
    return "+".join(kinds) or row["phase"]


def _print_run(one: dict[str, Any]) -> None:
    row = one["run"]
    phases = dict.fromkeys(step["loss_kind"] for step in one["steps"] if step["loss_kind"])
    phase, status, started = (_word(value) for value in (_phase(row, phases), row["status"], row["started_at"]))
    print(f"run {row['run_id']}: {phase}, {status}, started {started}")
    extras = dict(one["extras"])
    tail_depth = _depths(extras.pop("tail_depth", None))
    extras.pop(LOSS_KINDS, None)  # every step says its own
    for key, value in extras.items():
        if value is not None:
            print(f"  {_word(key)}: {_word(_settings(value) if isinstance(value, dict) else value)}")
    if tail_depth:
        for line in (tail_words(extras.get("selection"), tail_depth), *tail_lines(tail_depth)):
            print(f"  {_word(line)}")
    for title, rows in (("steps", one["steps"]), ("evaluations", one["evals"]), ("gate steps", one["gate_steps"])):
        if rows:
            print(f"\n{title}: {len(rows)}{f', the last {_LAST}' if len(rows) > _LAST else ''}")
        for entry in rows[-_LAST:]:
            print("  " + "  ".join(_figures(title, entry)))
    for event in one["gate_events"]:
        print(f"  gate {_word(event['mode'])}: {_word(event['adapter_name'])} {event['mean_weight']:.3f}")


def _figures(title: str, entry: Mapping[str, Any]) -> list[str]:
    """The numbers of a step, and of a loss what kind it is and its unit."""
    kind = {"steps": entry.get("loss_kind"), "evaluations": SFT, "gate steps": GATE}[title]
    figures = []
    for key, value in entry.items():
        if isinstance(value, (int, float)):
            name = loss_name(kind) if key == "loss" else key
            unit = unit_of(kind) if key in ("loss", "val_loss") else ""
            figures.append(f"{name} {value:.6g} {unit}".rstrip())
    return figures


def _depths(value: Any) -> dict[str, float]:
    """What a database says of tail depths, as far as it can be that."""
    pairs = value.items() if isinstance(value, dict) else ()
    return {str(name): float(depth) for name, depth in pairs if isinstance(depth, int | float)}


def _nats(entropy: float | None, share: float | None) -> str:
    """An entropy and how much of ln N it is, or a dash."""
    if entropy is None:
        return "-"
    return f"{entropy:.3f}" + ("" if share is None else f" {share:>4.0%}")


def _word(value: Any) -> str:
    return shown("-" if value is None else str(value), keep="")
