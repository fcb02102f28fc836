"""The errors a person sees: one sentence each, and the exit code a shell sees."""

from __future__ import annotations


class DlmTuiError(Exception):
    """Something failed for a reason that one sentence can say (exit code 1)."""

    exit_code: int = 1


class UsageError(DlmTuiError):
    """The request itself makes no sense: unknown option value, unknown adapter name (exit code 2)."""

    exit_code = 2


class InvalidDocument(DlmTuiError):
    """A document that cannot be read as `.dlm` (exit code 3)."""

    exit_code = 3


class Cancelled(DlmTuiError):
    """The person stopped it (exit code 130)."""

    exit_code = 130


def full_stop(text: str) -> str:
    """What an error says, ended so that another sentence can follow: most say it without a stop."""
    return text if text.endswith((".", "?", "!")) else f"{text}."
