"""Runs laid over one another: their curves, what is done to them, the files they are exported to. No widgets."""

from __future__ import annotations

import csv
import io
import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from xml.sax.saxutils import escape, quoteattr

from dlm_tui.losses import GATE, SFT, loss_name, unit_of
from dlm_tui.store import MetricsReader, Store
from dlm_tui.store.training_numbers import training_numbers

Preference = Literal["dpo", "dpo-hinge", "dpo-ipo", "orpo", "signed"]
Metric = Literal["loss", "val_loss", Preference, "gate_loss", "gate_entropy", "weights"]
PREFERENCES: tuple[Preference, ...] = get_args(Preference)
"""The kinds of loss that preference pairs have, each with an axis of its own."""
METRICS: dict[Metric, str] = {
    "loss": f"loss, {unit_of(SFT)}",
    "val_loss": f"validation loss, {unit_of(SFT)}",
    **{kind: f"{loss_name(kind)}, {unit_of(kind)}" for kind in PREFERENCES},
    "gate_loss": f"gate loss, {unit_of(GATE)}",
    "gate_entropy": "gate entropy, nats",
    "weights": "mean weights over trainings",
}
SMOOTHINGS = (0.0, 0.6, 0.9)
Points = tuple[tuple[float, float], ...]
_NEWEST = 60


@dataclass(frozen=True)
class RunCurves:
    """One run: what it was, its settings, its curves over steps, and the mean weights its gate ended with."""

    run_id: int
    phase: str
    status: str
    started: str
    adapter: str
    settings: dict[str, Any] = field(default_factory=dict)
    curves: dict[Metric, Points] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    training: int | None = None
    """The number of the training it was part of, as `training_numbers` counts; None for one that broke off."""

    @property
    def number(self) -> str:
        """`12` for a run of training 12; a run that belongs to none has the number under which it was recorded."""
        return f"run {self.run_id}" if self.training is None else str(self.training)

    @property
    def label(self) -> str:
        """`12 facts`."""
        return f"{self.number} {self.adapter or self.phase}"

    def matches(self, text: str) -> bool:
        """Whether every word of a filter is in what is known of the run, whatever the case."""
        known = " ".join((self.label, self.phase, self.status, self.started, _words(self.settings))).casefold()
        return all(word in known for word in text.casefold().split())


def read_runs(store: Store, limit: int = _NEWEST) -> list[RunCurves]:
    """The newest runs that have a curve or weights, newest first. Raises ManifestError, MetricsError.

    The losses of a run that does not tell their kind are taken for those that everybody means.
    """
    reader, numbers = MetricsReader(store), training_numbers(store)
    found = []
    for row in reader.runs(limit):
        run = int(row["run_id"])
        extras, trained, steps = reader.run_extras(run), reader.steps(run), reader.gate_steps(run)
        curves: dict[Metric, Points] = {
            "loss": _points([step for step in trained if step["loss_kind"] not in PREFERENCES], "loss"),
            "val_loss": _points(reader.evals(run), "val_loss"),
            **{kind: _points([s for s in trained if s["loss_kind"] == kind], "loss") for kind in PREFERENCES},
            "gate_loss": _points(steps, "loss"),
            "gate_entropy": _points(steps, "entropy"),
        }
        weights = {
            event.adapter_name: event.mean_weight for event in reader.gate_events(run) if event.mode != "diverged"
        }
        if not any(curves.values()) and not weights:
            continue
        settings = extras.get("settings")
        found.append(
            RunCurves(
                run_id=run,
                phase=str(row["phase"] or ""),
                status=str(row["status"] or ""),
                started=str(row["started_at"] or ""),
                adapter=str(extras.get("adapter_name") or ""),
                settings={"seed": row["seed"], **(settings if isinstance(settings, dict) else {})},
                curves=curves,
                weights=weights,
                training=numbers.get(run),
            )
        )
    return found


def metrics_of(runs: Sequence[RunCurves]) -> list[Metric]:
    """The curves to choose among: without the preference losses that none of the runs has."""
    return [name for name in METRICS if name not in PREFERENCES or any(run.curves.get(name) for run in runs)]


def smoothed(points: Points, strength: float) -> Points:
    """An exponential mean that starts at the first value: m ← s·m + (1 − s)·y, divided by 1 − sⁿ."""
    if strength <= 0.0:
        return points
    mean, found = 0.0, []
    for number, (x, y) in enumerate(points, 1):
        mean = strength * mean + (1.0 - strength) * y
        found.append((x, mean / (1.0 - strength**number)))
    return tuple(found)


def logarithmic(points: Points) -> Points:
    """log10 of the values; those that are not positive have none."""
    return tuple((x, math.log10(y)) for x, y in points if y > 0.0)


def value_at(points: Points, x: float) -> float | None:
    """The value of the last point that is not behind `x`."""
    place = bisect_right(points, (x, math.inf))
    return points[place - 1][1] if place else None


def differing(runs: Sequence[RunCurves]) -> dict[str, list[Any]]:
    """Setting -> its value in every run (None where it was not recorded), for those that are not all the same."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def as_csv(runs: Sequence[RunCurves]) -> str:
    """A row per point: run_id, adapter, metric, step, value; the mean weights of a gate have its adapters' names."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("run_id", "adapter", "metric", "step", "value"))
    for run in runs:
        for metric, points in run.curves.items():
            writer.writerows((run.run_id, run.adapter, metric, f"{x:g}", repr(y)) for x, y in points)
        writer.writerows((run.run_id, name, "mean_weight", "", repr(value)) for name, value in run.weights.items())
    return out.getvalue()


def as_svg(title: str, curves: Mapping[str, Points], colors: Mapping[str, str]) -> str:
    """Lines with their names at the right, between the least and the greatest value of each axis."""
    width, height, left, top, right, bottom = 800, 400, 70, 30, 200, 30
    every = [point for points in curves.values() for point in points]
    xs, ys = [x for x, _ in every] or [0.0], [y for _, y in every] or [0.0]
    across, up = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0
    inner_width, inner_height = width - left - right, height - top - bottom

    def place(x: float, y: float) -> str:
        return f"{left + (x - min(xs)) / across * inner_width:.1f},{top + (max(ys) - y) / up * inner_height:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/><text x="{left}" y="18">{escape(title)}</text>',
        f'<path d="M{left} {top}V{height - bottom}H{width - right}" fill="none" stroke="#888"/>',
    ]
    for x, y, text, anchor in (
        (left - 6, top + 4, max(ys), "end"),
        (left - 6, height - bottom, min(ys), "end"),
        (left, height - 10, min(xs), "middle"),
        (width - right, height - 10, max(xs), "middle"),
    ):
        parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text:.4g}</text>')
    for number, (name, points) in enumerate(curves.items()):
        color = quoteattr(colors.get(name, "#444"))
        drawn = " ".join(place(x, y) for x, y in points)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke={color} stroke-width="1.5"/>')
        parts.append(f'<text x="{width - right + 8}" y="{top + 12 + 16 * number}" fill={color}>{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> Points:
    return tuple(
        (float(row["step"]), float(row[key]))
        for row in rows
        if isinstance(row[key], (int, float)) and math.isfinite(row[key])
    )


def _words(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value_text(value)}" for name, value in settings.items())


def value_text(value: Any) -> str:
    """A setting as it would be written."""
    return value if isinstance(value, str) else "\u2013" if value is None else json.dumps(value, ensure_ascii=False)
