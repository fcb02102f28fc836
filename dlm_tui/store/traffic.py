"""What a server was asked: one row per request in `tui_traffic`, without its text unless that was asked for."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from dlm_tui.store.layout import Store
from dlm_tui.store.metrics_database import MetricsDatabase
from dlm_tui.store.metrics_reader import MetricsReader

MOST_ROWS = 100_000
"""The oldest rows beyond this many go."""

_COLUMNS = (
    "at", "route", "view", "mode", "weights", "entropy", "normalised_entropy", "ood_score", "is_ood",
    "prompt_tokens", "answer_tokens", "first_token", "seconds", "finish", "prompt",
)  # fmt: skip


class TrafficRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `at` is UTC `YYYY-MM-DDTHH:MM:SS.mmmZ`; `weights` what it was answered with; `entropy` in nats;
    `first_token` and `seconds` from the request on, in seconds; `finish` is ok, gone or failed; `prompt` is what was
    embedded, None unless prompts are kept. `traffic_id` grows with every row.
    """

    at: str
    route: str
    view: str
    mode: str
    weights: dict[str, float]
    entropy: float | None
    normalised_entropy: float | None
    ood_score: float | None
    is_ood: bool
    prompt_tokens: int
    answer_tokens: int
    first_token: float | None
    seconds: float
    finish: str
    prompt: str | None = None
    traffic_id: int = 0


def traffic_time(seconds: float) -> str:
    """Seconds since the epoch as the table writes them."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class TrafficWriter:
    """Appends rows. `keep_prompts`: the newest that many keep their text, all others lose it."""

    def __init__(self, store: Store, keep_prompts: int = 0) -> None:
        self._database = MetricsDatabase(store)
        self._keep = keep_prompts

    def add(self, rows: Sequence[TrafficRow]) -> None:
        """Add rows in one transaction. Raises MetricsError."""

        def write(connection: sqlite3.Connection) -> None:
            names, marks = ", ".join(_COLUMNS), ", ".join("?" * len(_COLUMNS))
            sql = f"INSERT INTO tui_traffic ({names}) VALUES ({marks})"
            connection.executemany(sql, [self._values(row) for row in rows])
            # forgotten text is overwritten, not only unlinked
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute(
                "UPDATE tui_traffic SET prompt = NULL WHERE prompt IS NOT NULL AND traffic_id NOT IN"
                " (SELECT traffic_id FROM tui_traffic WHERE prompt IS NOT NULL ORDER BY traffic_id DESC LIMIT ?)",
                (self._keep,),
            )
            connection.execute(
                "DELETE FROM tui_traffic WHERE traffic_id <= (SELECT MAX(traffic_id) FROM tui_traffic) - ?",
                (MOST_ROWS,),
            )

        self._database.transact(write)

    def close(self) -> None:
        """Close the database. Safe to call twice."""
        self._database.close()

    def _values(self, row: TrafficRow) -> list[Any]:
        values = msgspec.structs.asdict(row)
        values["weights"] = json.dumps(row.weights, allow_nan=False)
        values["is_ood"] = int(row.is_ood)
        if not self._keep:
            values["prompt"] = None
        return [values[name] for name in _COLUMNS]


def traffic_rows(
    store: Store, *, since: str | None = None, after: int = 0, limit: int | None = None
) -> list[TrafficRow]:
    """Requests at or after `since` (the table's time) with an id above `after`, oldest first; of more than `limit` the
    newest. [] for a store that was never served. Raises MetricsError.
    """
    found = MetricsReader(store).traffic(since=since, after=after, limit=limit)
    return [_row(values) for values in reversed(found)]


def _row(values: dict[str, Any]) -> TrafficRow:
    try:
        weights = {str(name): float(weight) for name, weight in json.loads(values["weights"]).items()}
    except (TypeError, ValueError, AttributeError):
        weights = {}
    return TrafficRow(**{**values, "weights": weights, "is_ood": bool(values["is_ood"])})
