"""What came of a job, in a few words for a line of text."""

from __future__ import annotations

from dlm_tui.counting import counted
from dlm_tui.engine.protocol import Evaluated, Exported, Imported, Swept, Trained


def result_words(result: Trained | Evaluated | Exported | Swept | Imported | None) -> str:
    """In force, the judgement, the folder, the best settings; empty where a job has no result."""
    match result:
        case Trained(report=trained):
            versions = [f"{name} version {item.version}" for name, item in trained.adapters.items()]
            gate = [f"gate {trained.gate.mode}"] if trained.gate is not None else []
            return ", ".join([*versions, *gate, *([trained.gate_error] if trained.gate_error else [])])
        case Evaluated(report=judged):
            return f"accuracy {judged.accuracy:.0%}, log loss {judged.log_loss:.2f} nats: {judged.verdict}"
        case Exported(report=exported):
            return exported.folder or f"{len(exported.comparison)} formats compared"
        case Swept(report=swept):
            return swept.reason or f"{counted(len(swept.trials), 'trial')}, none could be judged"
        case Imported():
            return f"{result.name} version {result.version}, rank {result.rank}"
    return ""
