"""What whoever serves a document should know of it, beside that it is served."""

from __future__ import annotations

from collections.abc import Collection

from dlm_tui.model.views import GATED
from dlm_tui.serving.views import applicable
from dlm_tui.session import Session


def session_notes(session: Session) -> list[str]:
    """Sentences for what is not trained, and for a gate that is not the document's trained one."""
    names, declared = session.model.names, session.document.routing_names
    if not names:
        return ["No adapter is trained: whatever is asked for, the base answers."]
    lacking = [name for name in declared if name not in names]
    notes = [f"Not trained, and not answered with: {', '.join(lacking)}."] if lacking else []
    routed = applicable(GATED, names, routed=session.document.gate_enabled).kind == "gated"
    if routed and (problem := session.gate_status.problem):
        notes.append(problem)
    return notes


def news(before: Collection[str], served: Collection[str], session: Session) -> list[str]:
    """What is new of the notes after a reload, where `before` were told and the adapters `served`."""
    gone = [name for name in served if name not in session.model.names]
    lost = [f"No longer served: {', '.join(gone)}."] if gone else []
    return lost + [note for note in session_notes(session) if note not in before]
