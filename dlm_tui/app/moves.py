"""What a training moved, in words."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_tui.document.comparison import Moved


def moves_text(moved: Sequence[Moved], text: str, names: Sequence[str]) -> str:
    """What moved for one prompt: `tone 0.12 \u2192 0.80, style 0.60 \u2192 0.08`; empty when it was not compared."""
    change = next((change for change in moved if change.text == text.strip()), None)
    if change is None:
        return ""
    moves = [
        f"{name} {change.before[name]:.2f} \u2192 {change.after[name]:.2f}"
        for name in names
        if name in change.before and abs(change.after.get(name, 0.0) - change.before[name]) >= 0.005
    ]
    return f"{', '.join(moves)}." if moves else "No weight of this prompt moved."


def changed_text(moved: Sequence[Moved]) -> str:
    """How many prompts have another strongest adapter, as a sentence; empty when none has."""
    changed = sum(change.top_changed for change in moved)
    have = "has" if changed == 1 else "have"
    return f"{changed} of {len(moved)} remembered prompts {have} another top adapter now." if changed else ""
