"""Two versions of one adapter on the same prompts: what each does to the next token and to answers it should know."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from dlm_tui.document import Document, Row, route_sections, training_rows
from dlm_tui.document.comparison import AnswerMoved
from dlm_tui.model import Base, MixedModel
from dlm_tui.progress import Progress, part_of
from dlm_tui.scoring.effect import score_views

OWN, SAVED, ANSWER_TOKENS = 12, 24, 64
"""At most so many of the adapter's own questions, of the saved prompts, and of an answer's tokens."""


@dataclass(frozen=True)
class Question:
    """A prompt as token ids, and its answer where a section has one."""

    text: str
    ids: list[int]
    answer: list[int] | None = None


def saved_questions(document: Document, base: Base, prompts: Sequence[str]) -> list[Question]:
    """The first saved prompts, asked as the workbench asks."""
    return [Question(text, base.chat(text, document.system_prompt)) for text in prompts[:SAVED]]


def own_questions(document: Document, base: Base, name: str) -> list[Question]:
    """Questions with answers out of the sections of adapter `name`, evenly spread."""
    rows = [row for row in training_rows(document, route_sections(document)[name]) if row.kind != "text"]
    chosen = [rows[number * len(rows) // OWN] for number in range(OWN)] if len(rows) > OWN else rows
    return [_question(row, base) for row in chosen]


def compare_versions(
    model: MixedModel, before: str, after: str, saved: Sequence[Question], own: Sequence[Question]
) -> Generator[Progress, None, list[AnswerMoved]]:
    """Each of the questions under two adapters of the model, alone. Raises as `score_views`."""
    found: list[AnswerMoved] = []
    questions = [*((one, True) for one in saved), *((one, False) for one in own)]
    for number, (question, is_saved) in enumerate(questions):
        views = {"before": {before: 1.0}, "after": {after: 1.0}}
        work = score_views(model, question.ids, views, question.answer, nulls=0)
        scores = yield from part_of(work, "score", number, len(questions))
        first, second = scores.views["before"], scores.views["after"]
        found.append(
            AnswerMoved(
                text=question.text,
                saved=is_saved,
                before=first.kl,
                after=second.kl,
                before_gain=_mean(first.heat),
                after_gain=_mean(second.heat),
            )
        )
    return found


def _question(row: Row, base: Base) -> Question:
    turns = row.messages or (("user", row.prompt), ("assistant", row.chosen))
    ids, asked = base.conversation([{"role": role, "content": content} for role, content in turns])
    return Question(turns[-2][1] if len(turns) > 1 else turns[-1][1], ids[:asked], ids[asked:][:ANSWER_TOKENS] or None)


def _mean(heat: Sequence[float] | None) -> float | None:
    return sum(heat) / len(heat) if heat else None
