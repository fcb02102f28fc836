"""A finished judgement, as the commands print it and the screen shows it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """Figures by name; JSON values only. The functions that make one say what each means and its unit."""

    figures: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The figures as a plain object."""
        return dict(self.figures)

    def __getitem__(self, name: str) -> Any:
        return self.figures[name]
