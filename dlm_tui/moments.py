"""Moments are kept in UTC and shown as the clock on the wall has them."""

from __future__ import annotations

from datetime import datetime


def local_time(at: str, form: str) -> str:
    """A moment that is kept in UTC (ISO 8601), as the clock on the wall has it; what is no moment as it is."""
    try:
        return datetime.fromisoformat(at).astimezone().strftime(form)
    except (ValueError, OverflowError, OSError):
        return at
