"""Moments are kept in UTC and shown as the clock on the wall has them."""

from __future__ import annotations

from datetime import UTC, datetime


def local_time(at: str, form: str) -> str:
    """A moment that is kept in UTC (ISO 8601), as the clock on the wall has it; what is no moment as it is."""
    try:
        moment = datetime.fromisoformat(at)
        # stores of the formats write UTC without saying so
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone().strftime(form)
    except (ValueError, OverflowError, OSError):
        return at
