"""A finished export as the wire carries it: where it is, what is typed next, and its measured figures. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from dlm_tui.counting import counted
from dlm_tui.export.cost_table import FormatCost

if TYPE_CHECKING:
    from dlm_tui.export.requests import ExportResult


class ParityFigures(msgspec.Struct, kw_only=True):
    """The export in its runtime beside the workbench, over `prompts`: differences in nats, agreement in [0, 1]."""

    runtime: str
    against: str = ""
    prompts: int
    max_abs_logprob_diff: float
    mean_kl: float
    greedy_agree: float


class CostFigures(msgspec.Struct, kw_only=True):
    """The export as its reader loads it (`dtype`) beside the workbench: divergences in nats, agreement in [0, 1]."""

    dtype: str
    mean_kl: float
    max_kl: float
    greedy_agree: float
    greedy_tokens: int = 0


class FrozenCost(msgspec.Struct, kw_only=True):
    """A mix against the live gate: mean KL at the next token in nats, share of greedy answers that change."""

    kl: float
    changed_answers: float | None = None


class DriftFigures(FrozenCost, kw_only=True):
    """The exported mix, and beside it the uniform and the best fixed one; `kept` is the share of what the gate does."""

    kept: float | None = None
    answers: int | None = None

    uniform: FrozenCost
    best_static: FrozenCost
    verdict: str = ""


class ExportReport(msgspec.Struct, kw_only=True):
    """`parity`, `cost` and `drift` are None where they were not measured.

    `comparison` is what formats were measured to cost, alone (then `folder` is empty) or before this export.
    `registered` is the name in Ollama, or `register_error` says why there is none; both None when that was not asked
    for.
    """

    folder: str
    next_command: str
    notes: list[str] = []
    parity: ParityFigures | None = None
    cost: CostFigures | None = None
    drift: DriftFigures | None = None
    comparison: list[FormatCost] = []
    registered: str | None = None
    register_error: str | None = None


def sentences(report: ExportReport) -> list[str]:
    """What an export costs, as far as it was measured: the frozen gate, the runtime, the form of the weights."""
    said = []
    if (drift := report.drift) is not None:
        changed, kept = drift.changed_answers, drift.kept
        answers = "" if changed is None else f", {changed:.0%} of {drift.answers} greedy answers change"
        share = "" if kept is None else f", {max(0.0, kept):.0%} of what the gate does is kept"
        said.append(f"frozen against the live gate: {drift.kl:.4f} nats at the next token{answers}{share}")
        said.append(drift.verdict)
    if (parity := report.parity) is not None:
        said.append(
            f"verified in {parity.runtime} against {parity.against}: mean divergence {parity.mean_kl:.2g} nats over "
            f"{counted(parity.prompts, 'prompt')}"
        )
    if (cost := report.cost) is not None:
        said.append(
            f"read as {cost.dtype} it diverges from the workbench by {cost.mean_kl:.2g} nats in the mean, "
            f"{cost.max_kl:.2g} at most; {cost.greedy_agree:.0%} of {cost.greedy_tokens} greedy tokens same"
        )
    return [sentence for sentence in said if sentence]


def export_report(result: ExportResult) -> ExportReport:
    """The report of a finished export. Its figures are those of the manifest."""
    manifest = result.manifest
    return ExportReport(
        folder=str(result.folder),
        next_command=result.next_command,
        notes=list(result.notes),
        parity=msgspec.convert(manifest["parity"], ParityFigures | None),
        comparison=msgspec.convert(manifest.get("comparison", []), list[FormatCost]),
        cost=msgspec.convert(manifest["cost"], CostFigures | None),
        drift=msgspec.convert(manifest["drift"], DriftFigures | None),
    )
