"""Questions to `metrics.sqlite` (formats §14).

Every question opens the database anew, so an answer is always of now; the file is small and local. A damaged database
has no rows: that is logged, and the next writer sets it aside and begins a new one.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import logging
import math
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from dlm_tui.losses import SFT
from dlm_tui.store.errors import MetricsError
from dlm_tui.store.layout import Store
from dlm_tui.store.metrics_schema import LOSS_KINDS, PROCESS
from dlm_tui.store.sqlite import Fingerprint, fingerprint, is_damage, problems_of, read_database
from dlm_tui.system_errors import database_reason

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_MANY = 500  # values that one statement may name
_RUN_COLUMNS = "run_id, started_at, ended_at, adapter_version, phase, seed, status"


@dataclass(frozen=True)
class GateEvent:
    """One row of `gate_events`."""

    run_id: int
    adapter_name: str
    mean_weight: float
    sample_count: int
    mode: str
    at: str


@dataclass(frozen=True)
class GateRun:
    """The gate after one run; entropies in nats and divided by ln N, None if diverged.

    `entropy` is that of the mean weights. `prompt_entropy` is the mean over the training prompts of each one's
    entropy; None also where the run did not record it. It is never above `entropy` but for rounding.
    """

    run_id: int
    at: str
    mode: str
    weights: dict[str, float] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    entropy: float | None = None
    normalised_entropy: float | None = None
    prompt_entropy: float | None = None
    normalised_prompt_entropy: float | None = None


def weights_entropy(weights: Sequence[float]) -> tuple[float | None, float | None]:
    """Entropy −Σ p ln p in nats of the weights scaled to sum 1, and that divided by ln N (1.0 is uniform).

    (None, None) when no weight is positive or one is negative or not finite; the second is None for N = 1.
    """
    total = math.fsum(weights)
    if not all(math.isfinite(w) and w >= 0.0 for w in weights) or not 0.0 < total < math.inf:
        return None, None
    shares = [w / total for w in weights]
    entropy = max(0.0, -math.fsum(p * math.log(p) for p in shares if p > 0.0))
    return entropy, (min(1.0, entropy / math.log(len(shares))) if len(shares) > 1 else None)


class MetricsReader:
    """Changes no row; a store without the database, with a damaged one, or without some table, has no rows.

    Raises MetricsError for a database that is there and cannot be read now (locked, no permission).
    """

    def __init__(self, store: Store) -> None:
        self.path = store.metrics_path

    def problems(self) -> list[str]:
        """What SQLite's integrity check finds; [] for a sound or absent database."""
        return problems_of(self.path)

    def data_version(self) -> Fingerprint:
        """Changes whenever rows may have changed; cheap enough to poll every second."""
        return fingerprint(self.path)

    def runs(
        self,
        limit: int | None = 20,
        phase: str | None = None,
        *,
        since: str | None = None,
        run_id: int | None = None,
    ) -> list[dict[str, Any]]:
        """Newest runs first; `since` is a UTC text cutoff for `started_at`. A run is of the phase that it is recorded
        under, its first, and of every kind of loss that it had."""
        kinds = self.all_loss_kinds() if phase is not None else {}
        also = [run for run, found in kinds.items() if phase in found]
        return self._rows(
            f"SELECT {_RUN_COLUMNS} FROM runs"
            " WHERE (:phase IS NULL OR phase = :phase OR run_id IN (SELECT value FROM json_each(:also)))"
            " AND (:since IS NULL OR started_at >= :since) AND (:run_id IS NULL OR run_id = :run_id)"
            " ORDER BY run_id DESC LIMIT :limit",
            {"phase": phase, "also": json.dumps(also), "since": since, "run_id": run_id, "limit": _limit(limit)},
        )

    def phases(self) -> list[str]:
        """The phases that there are runs of, by name, and the kinds of their losses."""
        rows = self._rows("SELECT DISTINCT phase FROM runs WHERE phase IS NOT NULL")
        kinds = {kind for found in self.all_loss_kinds().values() for kind in found}
        return sorted({str(row["phase"]) for row in rows} | kinds)

    def all_loss_kinds(self) -> dict[int, dict[str, int]]:
        """Run -> kind of loss (a key of `losses.UNITS`) -> the step from which on it had it, in order; runs of which
        that is not recorded are left out."""
        rows = self._rows(
            "SELECT t.run_id, t.details FROM tui_runs t"
            " JOIN runs r ON r.run_id = t.run_id AND r.started_at = t.started_at"
            f" WHERE t.details LIKE '%{LOSS_KINDS}%'"
        )
        return {row["run_id"]: found for row in rows if (found := _loss_kinds(_parsed(row["details"])))}

    def run(self, run_id: int) -> dict[str, Any] | None:
        """One row of `runs`, or None."""
        rows = self._rows(f"SELECT {_RUN_COLUMNS} FROM runs WHERE run_id = ?", (run_id,))
        return rows[0] if rows else None

    def run_extras(self, run_id: int) -> dict[str, Any]:
        """Our facts about a run: adapter_name, parameterization, what was recorded; empty for others' runs."""
        rows = self._rows(
            "SELECT t.adapter_name, t.parameterization, t.details FROM tui_runs t"
            " JOIN runs r ON r.run_id = t.run_id AND r.started_at = t.started_at WHERE t.run_id = ?",
            (run_id,),
        )
        if not rows:
            return {}
        details = _details(rows[0].pop("details"))
        details.pop(PROCESS, None)
        return {**details, **rows[0]}

    def sweep_results(self, keys: Sequence[str]) -> dict[str, str]:
        """What is kept of these pieces of sweeps' work."""
        found: dict[str, str] = {}
        for first in range(0, len(keys), _MANY):
            some = keys[first : first + _MANY]
            marks = ", ".join("?" for _ in some)
            rows = self._rows(f"SELECT key, result FROM tui_sweep_results WHERE key IN ({marks})", tuple(some))
            found.update((row["key"], row["result"]) for row in rows)
        return found

    def latest_sweep(self) -> dict[str, Any] | None:
        """What the newest finished sweep found, or None."""
        rows = self._rows("SELECT report FROM tui_sweeps ORDER BY run_id DESC LIMIT 1")
        report = _parsed(rows[0]["report"]) if rows else None
        return report if isinstance(report, dict) else None

    def running_holders(self) -> dict[int, dict[str, Any]]:
        """The process of every run of ours that says "running", as `process.life_of_writer` takes it."""
        rows = self._rows(
            "SELECT h.run_id, h.pid, h.host, t.details FROM tui_run_holders h"
            " JOIN runs r ON r.run_id = h.run_id AND r.started_at = h.started_at"
            " LEFT JOIN tui_runs t ON t.run_id = h.run_id AND t.started_at = h.started_at"
            " WHERE r.status = 'running' ORDER BY h.run_id"
        )
        return {
            row["run_id"]: {"pid": row["pid"], "host": row["host"], "started": _details(row["details"]).get(PROCESS)}
            for row in rows
        }

    def steps(self, run_id: int, after_step: int | None = None) -> list[dict[str, Any]]:
        """Steps of a run above `after_step`, in order; `loss_kind` is a key of `losses.UNITS`, None where it was not
        recorded."""
        rows = self._rows(
            "SELECT step, loss, lr, grad_norm, tokens_per_sec, peak_vram_mb, at FROM steps"
            " WHERE run_id = :run_id AND (:after IS NULL OR step > :after) ORDER BY step",
            {"run_id": run_id, "after": after_step},
        )
        extras = self.run_extras(run_id) if rows else {}
        kinds = _loss_kinds(extras) if extras else {SFT: 0}  # others write runs of that phase alone
        return [{**row, "loss_kind": _kind_at(kinds, row["step"])} for row in rows]

    def evals(self, run_id: int, after_step: int | None = None) -> list[dict[str, Any]]:
        """Evaluations of a run above `after_step`, in order."""
        return self._rows(
            "SELECT step, val_loss, perplexity, retention, at FROM evals"
            " WHERE run_id = :run_id AND (:after IS NULL OR step > :after) ORDER BY step",
            {"run_id": run_id, "after": after_step},
        )

    def gate_steps(self, run_id: int, after_step: int | None = None) -> list[dict[str, Any]]:
        """Steps of gate training: loss and mean entropy in nats."""
        return self._rows(
            "SELECT step, loss, entropy, at FROM tui_gate_steps"
            " WHERE run_id = :run_id AND (:after IS NULL OR step > :after) ORDER BY step",
            {"run_id": run_id, "after": after_step},
        )

    def gate_events(self, run_id: int) -> list[GateEvent]:
        """The gate rows of one run, by adapter name."""
        rows = self._rows(
            "SELECT run_id, adapter_name, mean_weight, sample_count, mode, at FROM gate_events"
            " WHERE run_id = ? ORDER BY adapter_name",
            (run_id,),
        )
        return [GateEvent(**row) for row in rows]

    def latest_gate_run(self) -> int | None:
        """The latest run that has gate events (not the latest run), or None."""
        value = self._scalar("SELECT MAX(run_id) FROM gate_events")
        return None if value is None else int(value)

    def gate_history(self, limit: int | None = 200, *, after_run_id: int | None = None) -> list[GateRun]:
        """The newest `limit` runs with gate events, oldest first; only runs above `after_run_id` if given."""
        rows = self._rows(
            "SELECT g.run_id, g.adapter_name, g.mean_weight, g.sample_count, g.mode, g.at FROM gate_events g"
            " JOIN (SELECT DISTINCT run_id FROM gate_events WHERE (:after IS NULL OR run_id > :after)"
            "       ORDER BY run_id DESC LIMIT :limit) n ON n.run_id = g.run_id"
            " ORDER BY g.run_id, g.adapter_name",
            {"after": after_run_id, "limit": _limit(limit)},
        )
        return self._gate_runs(rows)

    def gate_overview(self, points: int = 400) -> list[GateRun]:
        """All gate runs, thinned in SQL to at most about `points` of them, oldest first.

        Each block of consecutive runs is shown by its newest run, and a block that holds a diverged run by
        that one, so that trouble is never thinned away.
        """
        rows = self._rows(
            "WITH marks AS (SELECT run_id, MAX(mode = 'diverged') AS bad, MAX(run_id) OVER () AS top,"
            "                      ROW_NUMBER() OVER (ORDER BY run_id) AS place, COUNT(*) OVER () AS total"
            "               FROM gate_events GROUP BY run_id),"
            " blocks AS (SELECT run_id, ROW_NUMBER() OVER ("
            "                PARTITION BY (place - 1) * :points / MAX(total, :points)"
            "                ORDER BY run_id = top DESC, bad DESC, run_id DESC) AS choice FROM marks)"
            " SELECT g.run_id, g.adapter_name, g.mean_weight, g.sample_count, g.mode, g.at FROM blocks b"
            " JOIN gate_events g ON g.run_id = b.run_id WHERE b.choice = 1 ORDER BY g.run_id, g.adapter_name",
            {"points": max(1, points)},
        )
        return self._gate_runs(rows)

    def prompt_entropies(self, run_ids: Sequence[int]) -> dict[int, float]:
        """Run → mean entropy in nats of the training prompts' weights, for those of the runs that recorded it."""
        # Another tool may have replaced a run of that id: only a figure as old as the run's gate rows is about them.
        rows = self._rows(
            "SELECT e.run_id, e.prompt_entropy FROM tui_gate_entropy e"
            " WHERE e.run_id IN (SELECT value FROM json_each(?))"
            " AND EXISTS (SELECT 1 FROM gate_events g WHERE g.run_id = e.run_id AND g.at = e.at)",
            (json.dumps(list(run_ids)),),
        )
        return {row["run_id"]: float(row["prompt_entropy"]) for row in rows}

    def gate_evaluations(self, limit: int | None = 20) -> list[dict[str, Any]]:
        """Newest evaluations of the gate first: evaluation_id, run_id, at, report."""
        rows = self._rows(
            "SELECT evaluation_id, run_id, at, report FROM tui_gate_evaluations ORDER BY evaluation_id DESC LIMIT ?",
            (_limit(limit),),
        )
        return [{**row, "report": _parsed(row["report"])} for row in rows]

    def exports(self, limit: int | None = 20) -> list[dict[str, Any]]:
        """Newest exports first, with mix ([[name, weight], …]) and drift where this program made them."""
        rows = self._rows("SELECT * FROM tui_exports ORDER BY export_id DESC LIMIT ?", (_limit(limit),))
        ours = [{**row, "mix": _parsed(row["mix"]), "drift": _parsed(row["drift"])} for row in rows]
        known = {row["exported_at"] for row in ours}
        shared = self._rows("SELECT * FROM exports ORDER BY exported_at DESC LIMIT ?", (_limit(limit),))
        every = ours + [row for row in shared if row["exported_at"] not in known]
        every.sort(key=lambda row: str(row["exported_at"]), reverse=True)
        return every if limit is None else every[:limit]

    def traffic(self, *, since: str | None = None, after: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """Served requests, newest first: the columns of `tui_traffic`; see `store.traffic`."""
        return self._rows(
            "SELECT * FROM tui_traffic WHERE traffic_id > :after AND (:since IS NULL OR at >= :since)"
            " ORDER BY traffic_id DESC LIMIT :limit",
            {"after": after, "since": since, "limit": _limit(limit)},
        )

    def traffic_entropies(self, newest: int = 5000) -> dict[int, float]:
        """Run → mean entropy in nats of the prompts that were served and routed while its gate was in force, over the
        `newest` of them; a request belongs to the last gate run before it.
        """
        gates = self._rows("SELECT run_id, MIN(at) AS at FROM gate_events GROUP BY run_id ORDER BY at, run_id")
        begins = [str(gate["at"]) for gate in gates]
        in_force = list(accumulate((int(gate["run_id"]) for gate in gates), max))
        requests = self._rows(
            "SELECT at, entropy FROM tui_traffic WHERE view = 'gated' AND entropy IS NOT NULL"
            " ORDER BY traffic_id DESC LIMIT :newest",
            {"newest": newest},
        )
        entropies: dict[int, list[float]] = {}
        for request in requests:
            if place := bisect.bisect_right(begins, str(request["at"])):
                entropies.setdefault(in_force[place - 1], []).append(float(request["entropy"]))
        return {run: fmean(values) for run, values in sorted(entropies.items())}

    def tokenization(self) -> dict[str, Any] | None:
        """The newest row of the tokenization cache, or None."""
        rows = self._rows("SELECT * FROM tokenization ORDER BY run_id DESC LIMIT 1")
        return rows[0] if rows else None

    def preference_mining(self, run_id: int | None = None) -> list[dict[str, Any]]:
        """Preference mining rows in order, of one run or of all."""
        return self._rows(
            "SELECT event_id, run_id, judge_name, sample_count, mined_pairs, skipped_prompts, write_mode, at"
            " FROM preference_mining WHERE (:run_id IS NULL OR run_id = :run_id) ORDER BY event_id",
            {"run_id": run_id},
        )

    def highest_run_id(self) -> int:
        """The highest run id in any table, 0 without rows."""
        tables = ("runs", "gate_events", "tui_runs")
        return max(int(self._scalar(f"SELECT MAX(run_id) FROM {table}") or 0) for table in tables)

    def _gate_runs(self, rows: Sequence[dict[str, Any]]) -> list[GateRun]:
        grouped: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            grouped.setdefault(row["run_id"], []).append(row)
        entropies = self.prompt_entropies(list(grouped)) if grouped else {}
        return [_gate_run(run_id, events, entropies.get(run_id)) for run_id, events in grouped.items()]

    def _rows(self, sql: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        return self._ask([], lambda connection: [dict(row) for row in connection.execute(sql, values)])

    def _scalar(self, sql: str) -> Any:
        return self._ask(None, lambda connection: connection.execute(sql).fetchone()[0])

    def _ask(self, nothing: _T, question: Callable[[sqlite3.Connection], _T]) -> _T:
        def guarded(connection: sqlite3.Connection) -> _T:
            try:
                return question(connection)
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return nothing
                raise

        try:
            return read_database(self.path, guarded)
        except FileNotFoundError:
            return nothing
        except (sqlite3.Error, OSError) as error:
            if is_damage(error):
                _say_damage_once(self.path, error)
                return nothing
            raise MetricsError(f"{self.path} cannot be read: {database_reason(error, self.path)}.") from error


_said: set[tuple[str, int]] = set()


def _say_damage_once(path: Path, error: Exception) -> None:
    with contextlib.suppress(OSError):
        key = (str(path), path.stat().st_ino)
        if key not in _said:
            _said.add(key)
            _log.warning(
                "%s is damaged (%s): its history cannot be shown; the next training sets it aside and begins a new one",
                path,
                error,
            )


def _gate_run(run_id: int, rows: list[dict[str, Any]], prompt_entropy: float | None) -> GateRun:
    mode = "diverged" if any(row["mode"] == "diverged" for row in rows) else str(rows[-1]["mode"])
    weights = {str(row["adapter_name"]): float(row["mean_weight"]) for row in rows}
    samples = {str(row["adapter_name"]): int(row["sample_count"]) for row in rows}
    run = GateRun(run_id, str(rows[-1]["at"]), mode, weights, samples)
    if mode == "diverged":
        return run
    entropy, share = weights_entropy(list(weights.values()))
    most = math.log(len(weights))
    prompt_share = min(1.0, prompt_entropy / most) if prompt_entropy is not None and most else None
    return replace(
        run,
        entropy=entropy,
        normalised_entropy=share,
        prompt_entropy=prompt_entropy,
        normalised_prompt_entropy=prompt_share,
    )


def _loss_kinds(details: Any) -> dict[str, int]:
    """What the details of a run say of its kinds of loss, as far as they can be that, in the order of their steps."""
    value = details.get(LOSS_KINDS) if isinstance(details, dict) else None
    pairs = value.items() if isinstance(value, dict) else ()
    return dict(sorted(((kind, step) for kind, step in pairs if isinstance(step, int)), key=lambda pair: pair[1]))


def _kind_at(kinds: dict[str, int], step: int) -> str | None:
    return next((kind for kind, first in reversed(kinds.items()) if first <= step), None)


def _limit(limit: int | None) -> int:
    return -1 if limit is None else max(0, limit)


def _details(text: Any) -> dict[str, Any]:
    details = _parsed(text)
    return details if isinstance(details, dict) else {}


def _parsed(text: Any) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (TypeError, ValueError):
        return None
