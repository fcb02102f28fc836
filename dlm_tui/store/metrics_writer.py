"""Writing `metrics.sqlite`: one connection for the writer's life, WAL, every row committed at once."""

from __future__ import annotations

import json
import math
import os
import socket
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dlm_tui.finite import finite
from dlm_tui.losses import SFT
from dlm_tui.platform import process_mark
from dlm_tui.store.errors import MetricsError
from dlm_tui.store.layout import FLAT, Store
from dlm_tui.store.metrics_database import MetricsDatabase, Statement, run_all
from dlm_tui.store.metrics_schema import LOSS_KINDS, PROCESS
from dlm_tui.store.run_log import perplexity_of

if TYPE_CHECKING:
    from dlm_tui.store.manifest import TrainingRun

_RUN_TABLES = ("steps", "evals", "gate_events", "tokenization", "tui_gate_steps", "tui_gate_entropy", "tui_runs")
_STAMP = "%Y-%m-%dT%H:%M:%SZ"


class MetricsWriter:
    """Records runs, steps and gate events. The file is made on the first write.

    A database that SQLite calls damaged, or that this process may not open, is set aside under another name, which is
    logged, and a new one begun: it never stops what is being recorded. Rows that come once in a run raise
    MetricsError when they cannot be written. Per-step rows do not stop a run: they are dropped and counted in
    `dropped`. Times are UTC `YYYY-MM-DDTHH:MM:SSZ`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.dropped = 0
        self._database = MetricsDatabase(store)

    def begin_run(
        self,
        phase: str,
        seed: int | None,
        adapter_version: int | None = None,
        adapter_name: str | None = None,
        *,
        parameterization: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> int:
        """Take the next run id and insert the run as "running", in one transaction; returns the id.

        1 + the highest id of the manifest and of the metrics, so that no id means two runs, also when several
        processes begin one at once. Raises MetricsError, ManifestError.
        """
        from dlm_tui.store.manifest import read_manifest  # needs pydantic, which not every writer has loaded

        manifest = read_manifest(self.store)
        recorded = max((run.run_id for run in manifest.training_runs), default=0) if manifest else 0
        taken: list[int] = []

        def begin(connection: sqlite3.Connection) -> None:
            highest = [
                int(connection.execute(f"SELECT MAX(run_id) FROM {table}").fetchone()[0] or 0)
                for table in ("runs", "gate_events", "tui_runs")
            ]
            taken[:] = [1 + max(recorded, *highest)]
            for sql, values in self._start(
                taken[0], phase, seed, adapter_version, adapter_name, parameterization, details
            ):
                connection.execute(sql, values)

        self._database.transact(begin)
        return taken[0]

    def start_run(
        self,
        run_id: int,
        phase: str,
        seed: int | None,
        adapter_version: int | None = None,
        adapter_name: str | None = None,
        *,
        parameterization: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Insert the run as "running" (the last three go to `tui_runs`) and drop rows of an older run of that id."""
        self._write(self._start(run_id, phase, seed, adapter_version, adapter_name, parameterization, details))

    def _start(
        self,
        run_id: int,
        phase: str,
        seed: int | None,
        adapter_version: int | None,
        adapter_name: str | None,
        parameterization: str | None,
        details: Mapping[str, Any] | None,
    ) -> list[Statement]:
        now = _now()
        rows: list[Statement] = [
            (
                "INSERT OR REPLACE INTO runs"
                " (run_id, started_at, ended_at, adapter_version, phase, seed, status)"
                " VALUES (?, ?, NULL, ?, ?, ?, 'running')",
                (run_id, now, adapter_version, phase, _int64(seed)),
            ),
            (
                "INSERT INTO tui_runs (run_id, started_at, adapter_name, parameterization, details)"
                " VALUES (?, ?, ?, ?, ?)",
                (
                    run_id,
                    now,
                    adapter_name,
                    parameterization,
                    _json({**(details or {}), PROCESS: process_mark(os.getpid())}),
                ),
            ),
            (
                "INSERT OR REPLACE INTO tui_run_holders (run_id, started_at, pid, host) VALUES (?, ?, ?, ?)",
                (run_id, now, os.getpid(), socket.gethostname()),
            ),
        ]
        self._database.begun[run_id] = rows
        return [*((f"DELETE FROM {table} WHERE run_id = ?", (run_id,)) for table in _RUN_TABLES), *rows]

    def record_extra(self, run_id: int, **details: Any) -> None:
        """Merge further facts (JSON values) into the run's `tui_runs.details`. Raises MetricsError."""
        self._write(
            [
                (
                    "UPDATE tui_runs SET details = json_patch(details, ?) WHERE run_id = ?",
                    (_json(details), run_id),
                )
            ]
        )

    def record_loss_kind(self, run_id: int, kind: str, step: int) -> None:
        """From `step` on the losses of the run are of this kind, a key of `losses.UNITS`. Raises MetricsError."""
        self.record_extra(run_id, **{LOSS_KINDS: {kind: step}})

    def record_step(
        self,
        run_id: int,
        step: int,
        loss: float | None,
        lr: float | None,
        grad_norm: float | None = None,
        tokens_per_sec: float | None = None,
    ) -> None:
        """One optimiser step: the loss is of the kind that `record_loss_kind` was told last."""
        self._drop_on_failure(
            "INSERT OR REPLACE INTO steps"
            " (run_id, step, loss, lr, grad_norm, tokens_per_sec, peak_vram_mb, at)"
            " VALUES (?, ?, ?, ?, ?, ?, NULL, ?)",
            (run_id, step, loss, lr, grad_norm, tokens_per_sec, _now()),
        )

    def record_eval(
        self,
        run_id: int,
        step: int,
        val_loss: float | None,
    ) -> None:
        """One evaluation: `val_loss` in nats per token, with its exp as the perplexity."""
        self._drop_on_failure(
            "INSERT OR REPLACE INTO evals (run_id, step, val_loss, perplexity, retention, at)"
            " VALUES (?, ?, ?, ?, NULL, ?)",
            (run_id, step, val_loss, perplexity_of(val_loss), _now()),
        )

    def record_gate_steps(self, run_id: int, steps: Iterable[tuple[int, float, float]]) -> None:
        """Many steps of gate training, (step, loss, mean entropy in nats), in one transaction: one flush to disk."""
        now, rows = _now(), list(steps)
        sql = "INSERT OR REPLACE INTO tui_gate_steps (run_id, step, loss, entropy, at) VALUES (?, ?, ?, ?, ?)"
        try:
            self._write([(sql, (run_id, step, finite(loss), finite(spread), now)) for step, loss, spread in rows])
        except MetricsError:
            self.dropped += len(rows)

    def record_gate_events(
        self,
        run_id: int,
        events: Iterable[tuple[str, float, int]],
        mode: str,
        prompt_entropy: float | None = None,
    ) -> None:
        """The outcome of gate training: (adapter, mean weight, sample count) per declared adapter.

        `mode` is trained, uniform or diverged; diverged rows are stored with weight 0 and count 0, as the
        format says. `prompt_entropy` is the mean over the training prompts of the entropy of each one's weights, in
        nats; it goes to a table of ours. The run must have been started. Raises MetricsError.
        """
        if mode not in ("trained", "uniform", "diverged"):
            raise MetricsError(f"{mode!r} is not a gate mode.")
        now = _now()
        diverged = mode == "diverged"
        rows: list[tuple[str, Sequence[Any]]] = [
            (f"DELETE FROM {table} WHERE run_id = ?", (run_id,)) for table in ("gate_events", "tui_gate_entropy")
        ]
        for name, weight, count in events:
            if not diverged and not math.isfinite(weight):
                raise MetricsError(f"The mean weight of {name!r} is not a finite number.")
            values = (
                run_id,
                name,
                0.0 if diverged else float(weight),
                0 if diverged else int(count),
                mode,
                now,
            )
            rows.append(
                (
                    "INSERT INTO gate_events (run_id, adapter_name, mean_weight, sample_count, mode, at)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    values,
                )
            )
        if prompt_entropy is not None and math.isfinite(prompt_entropy) and not diverged:
            rows.append(
                (
                    "INSERT INTO tui_gate_entropy (run_id, prompt_entropy, at) VALUES (?, ?, ?)",
                    (run_id, prompt_entropy, now),
                )
            )
        self._write(rows)

    def record_gate_evaluation(self, run_id: int | None, report: Mapping[str, Any]) -> None:
        """Keep one evaluation of the gate: JSON values, losses in nats. Raises MetricsError."""
        self._write(
            [
                (
                    "INSERT INTO tui_gate_evaluations (run_id, at, report) VALUES (?, ?, ?)",
                    (run_id, _now(), _json(dict(report))),
                )
            ]
        )

    def record_sweep(self, run_id: int, report: Mapping[str, Any]) -> None:
        """Keep what a sweep found: JSON values, losses in nats per token. Raises MetricsError."""
        sql = "INSERT OR REPLACE INTO tui_sweeps (run_id, at, report) VALUES (?, ?, ?)"
        self._write([(sql, (run_id, _now(), _json(dict(report))))])

    def record_sweep_result(self, key: str, result: str) -> None:
        """Keep one piece of a sweep's work, found by what it was computed from. Raises MetricsError."""
        sql = "INSERT OR REPLACE INTO tui_sweep_results (key, at, result) VALUES (?, ?, ?)"
        self._write([(sql, (key, _now(), result))])

    def record_export(
        self,
        *,
        target: str,
        quant: str | None = None,
        merged: bool = False,
        ollama_name: str | None = None,
        size_bytes: int | None = None,
        duration_s: float | None = None,
        mix: Sequence[tuple[str, float]] | None = None,
        gate_mode: str | None = None,
        drift: Mapping[str, Any] | None = None,
        folder: str | None = None,
    ) -> None:
        """One finished export, in the shared table and, with mix and drift, in ours. Raises MetricsError."""
        shared = "INSERT INTO exports (exported_at, quant, merged, ollama_name, size_bytes, duration_s)"
        ours = (
            "INSERT INTO tui_exports"
            " (exported_at, target, quant, folder, mix, gate_mode, drift, size_bytes, duration_s)"
        )
        fractions = None if mix is None else _json([[name, weight] for name, weight in mix])
        losses = None if drift is None else _json(dict(drift))

        def record(connection: sqlite3.Connection) -> None:
            # The shared table's key is the second: an export of the same second takes the next one that is free.
            now = _now()
            while connection.execute("SELECT 1 FROM exports WHERE exported_at = ?", (now,)).fetchone():
                now = (datetime.strptime(now, _STAMP) + timedelta(seconds=1)).strftime(_STAMP)
            connection.execute(
                f"{shared} VALUES (?, ?, ?, ?, ?, ?)", (now, quant, int(merged), ollama_name, size_bytes, duration_s)
            )
            connection.execute(
                f"{ours} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (now, target, quant, folder, fractions, gate_mode, losses, size_bytes, duration_s),
            )

        self._database.transact(record)

    def finish_run(self, run_id: int, status: str = "ok") -> None:
        """End the run: "ok", "failed" or "cancelled". Raises MetricsError."""
        if status not in ("ok", "failed", "cancelled"):
            raise MetricsError(f"{status!r} is not a run status.")
        self._write([("UPDATE runs SET ended_at = ?, status = ? WHERE run_id = ?", (_now(), status, run_id))])

    def restore_run(self, run: TrainingRun) -> None:
        """Insert what the manifest knows of a run; its steps are not in there. Raises MetricsError."""
        began, ended = (f"{moment.removesuffix('Z')}Z" if moment else None for moment in (run.started_at, run.ended_at))
        status = "ok" if run.status == "completed" else run.status
        phase = run.final_train_loss_kind or SFT
        self._write(
            [
                (
                    "INSERT OR IGNORE INTO runs (run_id, started_at, ended_at, adapter_version, phase, seed, status)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (run.run_id, began, ended, run.adapter_version, phase, _int64(run.seed), status),
                ),
                (
                    "INSERT OR IGNORE INTO tui_runs (run_id, started_at, adapter_name, details) VALUES (?, ?, ?, '{}')",
                    (run.run_id, began, run.adapter_name or FLAT),
                ),
            ]
        )

    def close(self) -> None:
        """Close the database; its WAL is folded in. Safe to call twice."""
        self._database.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, statements: Sequence[Statement]) -> None:
        self._database.transact(lambda connection: run_all(connection, statements))

    def _drop_on_failure(self, sql: str, values: Sequence[Any]) -> None:
        clean = finite(list(values))
        try:
            self._write([(sql, clean)])
        except MetricsError:
            self.dropped += 1


def _int64(value: int | None) -> int | None:
    """SQLite holds 64-bit integers; a larger seed is kept by its low bits, as training takes it."""
    if value is None or -(2**63) <= value < 2**63:
        return value
    return value & (2**63 - 1)


def _now() -> str:
    return datetime.now(UTC).strftime(_STAMP)


def _json(value: Any) -> str:
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False)
