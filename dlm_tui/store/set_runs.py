"""Runs of whole prompt sets, in a database of ours alone; the oldest go first where they become too many."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dlm_tui.store.errors import StoreError
from dlm_tui.store.kept_records import LIMIT_BYTES, KeptRecords, decoded

_SCHEMA = """
CREATE TABLE IF NOT EXISTS set_runs (
        run_id   INTEGER PRIMARY KEY AUTOINCREMENT,
        at       TEXT NOT NULL,
        set_name TEXT NOT NULL,
        bytes    INTEGER NOT NULL,
        record   BLOB NOT NULL
    );
CREATE INDEX IF NOT EXISTS set_runs_name ON set_runs (set_name);
"""


class SetRunsError(StoreError):
    """The database of set runs cannot be used now."""


class SetAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt of a run under one view.

    `weights` are the gate's, `mix` what answered. `logprob` is the log-probability of the answer's tokens under the
    mix, `former_logprob` that of the tokens of the answer before, under this mix (nats; None where there was none).
    `broken` says which expectations it does not meet.
    """

    prompt: str
    view: str
    text: str
    token_ids: list[int]
    reason: str
    weights: dict[str, float]
    mix: dict[str, float]
    logprob: float | None = None
    former_logprob: float | None = None
    expected: int = 0
    broken: list[str] = []


class SetRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a set: when (UTC), under which adapter versions, how answers were drawn, and all of them.

    `former` is the id of the run whose answers `former_logprob` belongs to.
    """

    set_name: str
    at: str
    base: str
    versions: dict[str, int]
    seed: int
    temperature: float
    top_p: float
    max_tokens: int
    answers: list[SetAnswer]
    former: int | None = None
    run_id: int = 0

    @property
    def views(self) -> list[str]:
        """The views that were asked, in order."""
        return list(dict.fromkeys(answer.view for answer in self.answers))

    @property
    def drawing(self) -> dict[str, float]:
        """How answers are drawn, by the names of the options; greedy answers have neither top-p nor seed."""
        always = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return always if self.temperature == 0 else {**always, "top_p": self.top_p, "seed": self.seed}

    @property
    def failed(self) -> list[SetAnswer]:
        """The answers that do not meet what is expected of them."""
        return [answer for answer in self.answers if answer.broken]


class SetRuns:
    """The runs of a document's prompt sets, in the database at `path`. Every method raises SetRunsError for a database
    that is there and cannot be used now. Safe to use from any thread."""

    def __init__(self, path: Path, limit: int = LIMIT_BYTES) -> None:
        self.path = path
        self._records = KeptRecords(
            path, _SCHEMA, table="set_runs", key="run_id", limit=limit, one="run", error=SetRunsError
        )

    def keep(self, run: SetRun) -> SetRun:
        """Add a run, and let the oldest go for it; it comes back with its id."""
        number = 0

        def add(connection: sqlite3.Connection) -> None:
            nonlocal number
            record = msgspec.json.encode(run)
            cursor = connection.execute(
                "INSERT INTO set_runs (at, set_name, bytes, record) VALUES (?, ?, ?, ?)",
                (run.at, run.set_name, len(record), record),
            )
            number = cursor.lastrowid or 0
            self._records.evict(connection, keeping=1)

        self._records.write(add)
        return msgspec.structs.replace(run, run_id=number)

    def last_set(self) -> str | None:
        """The set that was run last; None where none was."""
        rows = self._read("SELECT set_name FROM set_runs ORDER BY run_id DESC LIMIT 1", ())
        return str(rows[0]["set_name"]) if rows else None

    def newest(self, set_name: str, limit: int = 20) -> list[SetRun]:
        """The last runs of a set, newest first."""
        sql = "SELECT run_id, record FROM set_runs WHERE set_name = ? ORDER BY run_id DESC LIMIT ?"
        return [run for row in self._read(sql, (set_name, limit)) if (run := _run(row)) is not None]

    def _read(self, sql: str, values: tuple[str | int, ...]) -> list[sqlite3.Row]:
        return self._records.read(lambda connection: connection.execute(sql, values).fetchall()) or []


def run_before(runs: Sequence[SetRun], after: SetRun, views: Sequence[str] | None = None) -> SetRun | None:
    """The run to compare with: of the earlier ones, newest first, those that have most of its views, of these those
    whose answers were drawn as its are, of these one under other adapters. None where no earlier one has a view of it.

    `views` are what a run will ask that is not kept yet.
    """
    wanted = set(after.views if views is None else views)
    earlier = [run for run in runs if (run.run_id < after.run_id or views is not None) and wanted & set(run.views)]

    def likeness(run: SetRun) -> tuple[int, bool, bool]:
        return len(wanted & set(run.views)), run.drawing == after.drawing, run.versions != after.versions

    return max(earlier, key=likeness, default=None)  # the first of equals


def run_to_score(runs: Sequence[SetRun], planned: SetRun, views: Sequence[str]) -> SetRun | None:
    """The run whose answers are scored again under a run that is to come: the one that it will be compared with, if
    that was on its base; the tokens of another are another vocabulary's."""
    former = run_before(runs, planned, views)
    return former if former is not None and former.base == planned.base else None


def _run(row: sqlite3.Row) -> SetRun | None:
    run = decoded(row["record"], SetRun)
    return msgspec.structs.replace(run, run_id=row["run_id"]) if run is not None else None
