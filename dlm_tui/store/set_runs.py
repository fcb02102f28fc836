"""Runs of whole prompt sets, in a database of ours alone, and what moved between two of them.

The database is bounded in bytes, the oldest runs go first; a damaged one has no runs, and the next `keep` sets it
aside.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dlm_tui.store.errors import StoreError
from dlm_tui.store.locks import file_lock
from dlm_tui.store.replaceable import ReplaceableDatabase
from dlm_tui.store.sqlite import is_damage, read_database
from dlm_tui.system_errors import database_reason

LIMIT_BYTES = 64 << 20
_SET_ASIDE_SECONDS = 10.0
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
_log = logging.getLogger(__name__)


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


class MovedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt and view in two runs. `weight` is the largest change of any gate weight, `logprob` the change of the
    log-probability of the former answer (nats, None where either is not known)."""

    before: SetAnswer
    after: SetAnswer
    weight: float
    logprob: float | None

    @property
    def changed(self) -> bool:
        """Whether the answer is another one."""
        return self.before.text != self.after.text


def compare_runs(before: SetRun, after: SetRun) -> list[MovedAnswer]:
    """What moved for every prompt and view that is in both runs, in the order of the later one."""
    earlier = {(answer.prompt, answer.view): answer for answer in before.answers}
    moved = []
    for answer in after.answers:
        was = earlier.get((answer.prompt, answer.view))
        if was is None:
            continue
        names = {*was.weights, *answer.weights}
        weight = max((abs(answer.weights.get(name, 0.0) - was.weights.get(name, 0.0)) for name in names), default=0.0)
        known = after.former == before.run_id and answer.former_logprob is not None and was.logprob is not None
        logprob = answer.former_logprob - was.logprob if known else None  # type: ignore[operator]
        moved.append(MovedAnswer(before=was, after=answer, weight=weight, logprob=logprob))
    return moved


def new_answers(before: SetRun | None, after: SetRun) -> list[SetAnswer]:
    """The answers whose prompt and view the run before has not, in order."""
    earlier = {(answer.prompt, answer.view) for answer in before.answers} if before is not None else set()
    return [answer for answer in after.answers if (answer.prompt, answer.view) not in earlier]


def drawn_otherwise(before: SetRun, after: SetRun) -> str:
    """How answers were drawn then and are now where that differs, else empty: it moves answers by itself."""
    was, now = before.drawing, after.drawing
    parts = [
        f"{name} {was[name]:g} → {now[name]:g}" if name in was and name in now else f"{name} {(was | now)[name]:g}"
        for name in dict.fromkeys([*now, *was])
        if was.get(name) != now.get(name)
    ]
    return ", ".join(parts)


SORTS = ("order", "weights", "answer", "logprob", "checks")
"""By what a comparison can be sorted."""


def sorted_moves(moved: Sequence[MovedAnswer], by: str) -> list[MovedAnswer]:
    """What moved most first, by one of `SORTS`: the weights, changed answers, former answers that became least likely,
    expectations that are newly broken and then those that still are; `order` is that of the set."""
    match by:
        case "weights":
            return sorted(moved, key=lambda move: -move.weight)
        case "answer":
            return sorted(moved, key=lambda move: not move.changed)
        case "logprob":
            return sorted(moved, key=lambda move: 0.0 if move.logprob is None else move.logprob)
        case "checks":
            return sorted(moved, key=_by_checks)
        case _:
            return list(moved)


def _by_checks(move: MovedAnswer) -> tuple[int, int]:
    return len(move.before.broken) - len(move.after.broken), -len(move.after.broken)


def sorted_answers(answers: Sequence[SetAnswer], by: str) -> list[SetAnswer]:
    """Answers that have none before them to compare with: by `checks` the most broken first, else as they are."""
    return sorted(answers, key=lambda answer: -len(answer.broken)) if by == "checks" else list(answers)


class SetRuns:
    """The runs of a document's prompt sets, in the database at `path`. Every method raises SetRunsError for a database
    that is there and cannot be used now. Safe to use from any thread."""

    def __init__(self, path: Path, limit: int = LIMIT_BYTES) -> None:
        self.path, self._limit = path, limit

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
            rows = connection.execute("SELECT run_id, bytes FROM set_runs ORDER BY run_id").fetchall()
            excess = sum(size for _, size in rows) - self._limit
            for run_id, size in rows[:-1]:
                if excess <= 0:
                    break
                connection.execute("DELETE FROM set_runs WHERE run_id = ?", (run_id,))
                excess -= size

        database = ReplaceableDatabase(
            self.path, _SCHEMA, lambda: file_lock(self.path.with_name(f"{self.path.name}.lock"), _SET_ASIDE_SECONDS)
        )
        try:
            try:
                database.transact(add)
            finally:
                database.close()
        except (sqlite3.Error, OSError, StoreError) as error:
            raise SetRunsError(f"{self.path} cannot be written: {database_reason(error, self.path)}.") from error
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
        try:
            return read_database(self.path, lambda connection: connection.execute(sql, values).fetchall())
        except FileNotFoundError:
            return []
        except (sqlite3.Error, OSError) as error:
            if is_damage(error):
                _log.warning("%s is damaged (%s): the next run that is kept begins a new one", self.path, error)
                return []
            if "no such table" in str(error):
                return []
            raise SetRunsError(f"{self.path} cannot be read: {database_reason(error, self.path)}.") from error


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
    try:
        run = msgspec.json.decode(row["record"], type=SetRun)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return None
    return msgspec.structs.replace(run, run_id=row["run_id"])
