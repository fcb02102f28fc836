"""What a label writes: a prompt, with or without its right answer, as a section of the document."""

from __future__ import annotations

from dlm_tui.document.pairs import instruction_content
from dlm_tui.errors import UsageError


def label_section(prompt: str, answer: str | None) -> tuple[str, str]:
    """(section type, content): an instruction with an answer, without one a prose section that is the prompt itself.

    Raises UsageError for an empty prompt or answer.
    """
    if not prompt.strip():
        raise UsageError("The prompt to label is empty.")
    if answer is None:
        return "prose", prompt
    if not answer.strip():
        raise UsageError("The answer is empty: leave it out to label the prompt alone.")
    return "instruction", instruction_content(prompt, answer)
