"""Trainings as a person counts them, from 1.

Every adapter of a training is a run of its own, and `--run-id` asks for those; a person started one training.
"""

from __future__ import annotations

from dlm_tui.store.layout import Store
from dlm_tui.store.manifest import read_manifest
from dlm_tui.store.metrics_reader import MetricsReader


def training_numbers(store: Store) -> dict[int, int]:
    """Run → the number of the training it was part of.

    The runs that were put in force together, which the manifest gives one end, are one training; a gate that was
    trained alone is one, too. Runs that broke off belong to none. Raises ManifestError, MetricsError.
    """
    manifest = read_manifest(store)
    ends = {run.run_id: run.ended_at or run.started_at for run in manifest.training_runs} if manifest else {}
    gates = {event.run_id for event in MetricsReader(store).gate_history(None)}
    numbers: dict[int, int] = {}
    last: str | None = None
    for run in sorted({*ends, *gates}):
        end = ends.get(run, f"gate {run}")
        numbers[run] = max(numbers.values(), default=0) + (end != last)
        last = end
    return numbers
