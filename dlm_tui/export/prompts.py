"""What an export is asked while it is tried: questions held out of training first, then sentences of our own."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from dlm_tui.errors import DlmTuiError

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.model import Base

COUNT = 16
LONGEST = 1500
"""How long a prompt of a trial may be so that something of the base begins within it."""
BEYOND = 32
"""How many tokens such a prompt goes on behind that place."""
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


def long_length(config: Any, tried: int, room: int) -> int | None:
    """How long a prompt has to be to reach beyond the window, or into the long rope factors, of a base with `config`.

    None where nothing of the kind begins behind `tried` tokens and within `LONGEST` and `room`, the context.
    """
    rope = dict(getattr(config, "rope_parameters", None) or {})
    begins = [getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None]
    if rope.get("rope_type") == "longrope":
        begins.append(rope.get("original_max_position_embeddings"))
    lengths = [int(place) + BEYOND for place in begins if place]
    return max((length for length in lengths if tried < length <= min(LONGEST, room)), default=None)


def long_prompt(base: Base, length: int) -> list[int]:
    """`length` token ids: the words of the sentences in ever another order, so that no part repeats an earlier one."""
    words, shuffling = " ".join(SENTENCES).split(), random.Random(0)
    text: list[str] = []
    ids: list[int] = []
    while len(ids) < length:
        text += shuffling.sample(words, len(words))
        ids = base.encode_raw(" ".join(text), limit=length)
    return ids
