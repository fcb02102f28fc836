"""Every answer that was given to a document's prompts, in a database of ours alone.

An answer is kept whole: what was asked, under which mix of which adapter versions, how it was sampled, and what came.
The oldest go first where they become too many.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from dlm_tui.store.errors import AnswersError
from dlm_tui.store.kept_records import LIMIT_BYTES, KeptRecords, decoded

_ROW_BYTES = 160  # what a row takes beside its texts: keys, time, digest, index entries
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
        answer_id     INTEGER PRIMARY KEY AUTOINCREMENT,
        at            TEXT NOT NULL,
        asked         BLOB NOT NULL,
        conversation  TEXT,
        folded        TEXT NOT NULL,
        bytes         INTEGER NOT NULL,
        record        BLOB NOT NULL
    );
CREATE INDEX IF NOT EXISTS answers_asked ON answers (asked);
CREATE INDEX IF NOT EXISTS answers_conversation ON answers (conversation);
CREATE INDEX IF NOT EXISTS answers_bytes ON answers (answer_id, bytes);
CREATE TABLE IF NOT EXISTS answer_adapters (
        answer_id  INTEGER NOT NULL REFERENCES answers (answer_id) ON DELETE CASCADE,
        adapter    TEXT NOT NULL,
        PRIMARY KEY (answer_id, adapter)
    ) WITHOUT ROWID;
"""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier turn of a conversation."""

    prompt: str
    answer: str


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """What one or more tokens added to an answer; `heat` is log p(mix) - log p(base) in nats, None if not measured."""

    text: str
    heat: float | None = None


class KeptAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer.

    `turns` came before the prompt, oldest first, `turn_ids` are the ids of those answers, and `turn` is the place
    in `conversation`, from 0; None outside of conversations. `dropped` of the turns did not fit the context. Of the
    `prompt_tokens` that were asked `run_tokens` had to be run, in `prefill_seconds`. `view` is the name of what was
    asked and `kind` that of a `View`; `mix` is adapter -> coefficient as it was computed (absent ones are 0),
    `versions` the adapters' versions then in force; a name in `mix` may carry its own, `knowledge@3`. `weights` are
    the gate's for the prompt where it was asked. `base` is the base's identity and `dtype` what the answer was
    decoded in. `token_ids` are those before the end token and `pieces` the same as text; `reason` is why it ended:
    `stop`, `length`, `context`, `stopped` by a person, or `failed`. `at` is when it was asked, UTC
    `YYYY-MM-DDTHH:MM:SS.mmmZ`; answers that were asked for together have one, and those of one view differ in
    `sample`, from 0, and in their seeds. `answer_id` is given by `keep`, and grows.
    """

    prompt: str
    text: str
    view: str
    kind: str
    mix: dict[str, float]
    versions: dict[str, int]
    base: str
    seed: int
    temperature: float
    top_p: float
    max_tokens: int
    reason: str
    at: str
    dtype: str = "float32"
    system: str | None = None
    turns: list[Turn] = []
    conversation: str | None = None
    turn: int | None = None
    turn_ids: list[int] = []
    dropped: int = 0
    prompt_tokens: int = 0
    run_tokens: int = 0
    prefill_seconds: float | None = None
    weights: dict[str, float] = {}
    token_ids: list[int] = []
    pieces: list[Piece] = []
    seconds: float | None = None
    sample: int = 0
    answer_id: int = 0

    @property
    def adapters(self) -> list[str]:
        """The adapters that took part, without their versions."""
        return sorted({name.partition("@")[0] for name, value in self.mix.items() if value})

    @property
    def after(self) -> int | None:
        """The id of the answer that it follows in its conversation."""
        return self.turn_ids[-1] if self.turn_ids else None

    def version_of(self, name: str) -> int | None:
        """The version of the adapter that `name` of the mix meant."""
        adapter, _, number = name.partition("@")
        return int(number) if number.isdecimal() else self.versions.get(adapter)


class ConversationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation: its id, its first prompt, how many answers its branches have, and when the newest was given."""

    name: str
    title: str
    answers: int
    at: str


def answer_time(moment: datetime | None = None) -> str:
    """A moment as answers write it; now, if none is given."""
    return (moment or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class KeptAnswers:
    """The answers of one document, in the database at `path`; at most about `limit` bytes of them.

    Safe to use from any thread. Every method raises AnswersError for a database that is there and cannot be used now
    (locked for five seconds, no permission, a full disk).
    """

    def __init__(self, path: Path, limit: int = LIMIT_BYTES) -> None:
        self.path = path
        self._records = KeptRecords(
            path, _SCHEMA, table="answers", key="answer_id", limit=limit, one="answer", error=AnswersError
        )

    def keep(self, answers: Iterable[KeptAnswer]) -> list[KeptAnswer]:
        """Add these answers in one transaction, and let the oldest go for them; they come back with their ids."""
        kept: list[KeptAnswer] = []

        def add(connection: sqlite3.Connection) -> None:
            kept.clear()
            kept.extend(_insert(connection, answer) for answer in answers)
            self._records.evict(connection, keeping=len(kept))

        answers = list(answers)
        if answers:
            self._records.write(add)
        return kept

    def forget(self, ids: Sequence[int]) -> None:
        """Remove answers; their text is overwritten, not only unlinked."""
        self._forget("answer_id = ?", ids)

    def forget_conversation(self, conversation: str) -> None:
        """Remove every answer of a conversation with all its forks, however many there are, as `forget` does it."""
        self._forget("conversation = ?", [conversation])

    def _forget(self, which: str, values: Sequence[object]) -> None:
        """Remove the answers that the condition holds for with any of the values."""

        def remove(connection: sqlite3.Connection) -> None:
            connection.execute("PRAGMA secure_delete = ON")
            connection.executemany(f"DELETE FROM answers WHERE {which}", [(value,) for value in values])

        if values and self.path.exists():
            self._records.write(remove)

    def get(self, answer_id: int) -> KeptAnswer | None:
        """One answer; None when it was evicted or forgotten."""
        found = self._ask("WHERE answer_id = ?", [answer_id], 1)
        return found[0] if found else None

    def of_prompt(self, prompt: str, turns: Sequence[Turn] = (), *, limit: int = 100) -> list[KeptAnswer]:
        """The answers to exactly this prompt after exactly these turns, newest first."""
        return self._ask("WHERE asked = ?", [_digest(prompt, turns)], limit)

    def of_conversation(self, conversation: str, limit: int = 1000) -> list[KeptAnswer]:
        """The answers of a conversation with all its forks, newest first."""
        return self._ask("WHERE conversation = ?", [conversation], limit)

    def conversations(self, limit: int = 200) -> list[ConversationSummary]:
        """The conversations that have answers here, the one with the newest answer first."""
        sql = (
            "SELECT conversation, COUNT(*) AS answers, MIN(answer_id) AS oldest, MAX(answer_id) AS answer_id"
            " FROM answers WHERE conversation IS NOT NULL GROUP BY conversation ORDER BY answer_id DESC LIMIT ?"
        )

        def query(connection: sqlite3.Connection) -> list[tuple[str, int, KeptAnswer | None, KeptAnswer | None]]:
            record = "SELECT answer_id, record FROM answers WHERE answer_id = ?"

            def answer(number: int) -> KeptAnswer | None:
                return _answer(connection.execute(record, [number]).fetchone())

            rows = connection.execute(sql, [limit]).fetchall()
            return [
                (row["conversation"], row["answers"], answer(row["oldest"]), answer(row["answer_id"])) for row in rows
            ]

        return [
            ConversationSummary(
                name=name,
                title=newest.turns[0].prompt if newest.turns else newest.prompt,
                # those before the oldest: the one that it began with, and what was evicted since
                answers=count + (len(oldest.turns) if oldest else 0),
                at=newest.at,
            )
            for name, count, oldest, newest in self._records.read(query) or []
            if newest is not None
        ]

    def search(
        self,
        text: str = "",
        *,
        adapter: str | None = None,
        since: str | None = None,
        until: str | None = None,
        before: int | None = None,
        limit: int = 200,
    ) -> list[KeptAnswer]:
        """Newest first, those that match everything that is asked for.

        Every word of `text` is in the prompt or in the answer, whatever its case; `adapter` took part in the mix;
        `at` is at or after `since` and before `until` (a beginning of the time, such as `2026-11-29`, will do);
        `before` goes on behind the answer with that id.
        """
        clauses: list[str] = []
        values: list[object] = []
        for word in text.casefold().split():
            clauses.append("instr(folded, ?)")
            values.append(word)
        if adapter is not None:
            clauses.append("answer_id IN (SELECT answer_id FROM answer_adapters WHERE adapter = ?)")
            values.append(adapter)
        for clause, value in (("at >= ?", since), ("at < ?", until), ("answer_id < ?", before)):
            if value is not None:
                clauses.append(clause)
                values.append(value)
        return self._ask(f"WHERE {' AND '.join(clauses)}" if clauses else "", values, limit)

    def _ask(self, where: str, values: Sequence[object], limit: int) -> list[KeptAnswer]:
        sql = f"SELECT answer_id, record FROM answers {where} ORDER BY answer_id DESC LIMIT ?"
        rows = self._records.read(lambda connection: connection.execute(sql, [*values, limit]).fetchall())
        return [answer for row in rows or [] if (answer := _answer(row)) is not None]


def _insert(connection: sqlite3.Connection, answer: KeptAnswer) -> KeptAnswer:
    record = msgspec.json.encode(answer)
    folded = f"{answer.prompt}\n{answer.text}".casefold()
    size = len(record) + len(folded.encode()) + _ROW_BYTES
    cursor = connection.execute(
        "INSERT INTO answers (at, asked, conversation, folded, bytes, record) VALUES (?, ?, ?, ?, ?, ?)",
        (answer.at, _digest(answer.prompt, answer.turns), answer.conversation, folded, size, record),
    )
    number = cursor.lastrowid or 0
    adapters = [(number, name) for name in answer.adapters]
    connection.executemany("INSERT INTO answer_adapters (answer_id, adapter) VALUES (?, ?)", adapters)
    return msgspec.structs.replace(answer, answer_id=number)


def _answer(row: sqlite3.Row) -> KeptAnswer | None:
    answer = decoded(row["record"], KeptAnswer)
    return msgspec.structs.replace(answer, answer_id=row["answer_id"]) if answer is not None else None


def _digest(prompt: str, turns: Sequence[Turn]) -> bytes:
    return hashlib.sha256(msgspec.json.encode((list(turns), prompt))).digest()[:16]
