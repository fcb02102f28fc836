"""What an export is asked while it is tried: questions held out of training first, then sentences of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlm_tui.errors import DlmTuiError

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.model import Base

COUNT = 16
_HELD_OUT = 6

SENTENCES = (
    "The lighthouse keeper wrote down the weather every morning, and today",
    "What is the capital of Portugal?",
    "def area(radius):\n    return",
    "Dear colleagues, thank you for",
    "1, 2, 3, 5, 8,",
    "Explain in one sentence why the sky is blue.",
    "Es war einmal ein kleines Haus am Meer,",
    "The opposite of cold is",
    "Once the train had left the station, nobody",
    "List three things you need to bake bread:",
    "She opened the letter and read:",
    "Why do cats purr?",
    "To be, or not to be,",
    "The recipe calls for two eggs and",
    "Summarise the plan for next week.",
    "Hello",
)


def _held_out(document: Document) -> list[str]:
    """Questions of the rows that the split keeps for validation; none when the document's bodies do not parse."""
    from dlm_tui.document import split_side, training_rows

    seed = document.training.seed
    try:
        rows = training_rows(document)
    except DlmTuiError:
        return []
    return [
        row.messages[0][1]
        for row in rows
        if row.kind == "messages" and split_side(seed, row.section_id, row.sub_index) == "val"
    ]


def parity_prompts(document: Document, base: Base, longest: int, count: int = COUNT) -> list[list[int]]:
    """`count` prompts as token ids of at most `longest`: held-out questions in the chat form, sentences as they are."""
    questions = _held_out(document)[:_HELD_OUT]
    asked = [base.chat(question, document.system_prompt) for question in questions]
    texts = SENTENCES * (count // len(SENTENCES) + 1)
    asked += [base.encode_raw(text, limit=longest) for text in texts[: count - len(asked)]]
    return [ids[-longest:] for ids in asked if ids]
