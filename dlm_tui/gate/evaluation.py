"""Judging the gate: stratified k-fold figures, calibration, collapse, and which sections it misroutes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_tui.document import gate_samples, lacking_samples
from dlm_tui.document.counts import checked_folds
from dlm_tui.document.probes import NOTHING_BETWEEN
from dlm_tui.document.seeds import seed_in_range
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.gate.calibration import BINS, best_temperature, confusion, scores, stratified_folds
from dlm_tui.gate.embedding import cached_embeddings
from dlm_tui.gate.gate import load_gate
from dlm_tui.gate.messages import BADLY_CALIBRATED, verdict_text
from dlm_tui.gate.network import normalised
from dlm_tui.gate.ood import fit_ood
from dlm_tui.gate.probes import GateProbe, trained_probes
from dlm_tui.gate.report import EvaluationReport, MisroutedPrompt, OodRates
from dlm_tui.gate.surprise import cached_surprises
from dlm_tui.gate.training import fit_document
from dlm_tui.model.information import entropy
from dlm_tui.progress import Progress, part_of
from dlm_tui.store import MetricsError, MetricsReader, MetricsWriter
from dlm_tui.store.collapse import collapse_floor, collapse_text, collapsed_onto
from dlm_tui.store.gate_state import cold_start_text

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.model import MixedModel
    from dlm_tui.store import Store

WORST = 10
_SHOWN = 200


def evaluate_gate(
    document: Document, store: Store, model: MixedModel, *, folds: int = 5
) -> Generator[Progress, None, EvaluationReport]:
    """Train on k − 1 parts of the probes, judge on the rest, k times; nothing is stored. The report of `eval --json`.

    Held-out figures: accuracy, log_loss (nats), ece, confusion {true: {top: count}}, temperature (None unless the ece
    is 0.1 or more). Of the gate in force (or, where none is trained, of the folds): mean_weights, mean_entropy (nats).
    Folds are reduced to the smallest adapter's number of probes. Raises UsageError without two adapters or with fewer
    than two folds, and DlmTuiError when an adapter has fewer than two probes or a fold's training diverges.
    """
    names = document.adapter_names
    if len(names) < 2:
        raise UsageError(NOTHING_BETWEEN)
    checked_folds(folds)
    chosen = seed_in_range(document.training.seed)
    probes = trained_probes(document)
    counts = gate_samples(document)
    poor = [name for name, count in counts.items() if count < 2]
    if poor:
        raise DlmTuiError(f"The gate cannot be judged: {', '.join(poor)} needs at least 2 sections with a prompt.")
    used = min(folds, min(counts.values()))

    prompts = [probe.prompt for probe in probes]
    embeddings, _ = yield from cached_embeddings(model, store, prompts)
    surprises = yield from cached_surprises(model, store, prompts)
    logits = yield from held_out_logits(document, embeddings, probes, used, chosen)
    labels = torch.tensor([probe.label for probe in probes])
    held_out = scores(logits, labels)
    temperature = best_temperature(logits, labels)

    state, weights = _weights_in_force(store, model, embeddings, logits, names)
    means = dict(zip(names, weights.double().mean(dim=0).tolist(), strict=True))
    spread = float(entropy(weights.double()).mean())
    onto = collapsed_onto(means, spread, counts)
    strength = document.training.gate.entropy_lambda
    collapse = collapse_text(onto, means[onto], spread, strength, counts) if onto else None
    floor = document.training.gate.cold_start_floor
    lacking = lacking_samples(document)
    table = confusion(logits, labels, len(names))
    return EvaluationReport(
        folds=used,
        prompts=len(probes),
        adapters=list(names),
        samples=counts,
        accuracy=held_out.accuracy,
        log_loss=held_out.log_loss,
        ece=held_out.ece,
        ece_bins=BINS,
        held_out_entropy=held_out.mean_entropy,
        confusion={truth: dict(zip(names, row, strict=True)) for truth, row in zip(names, table, strict=True)},
        confused_lines=_confused_lines(names, probes, logits),
        mean_weights=means,
        mean_entropy=spread,
        normalised_entropy=normalised(spread, len(names)),
        gate=state,
        collapsed=onto,
        collapse_floor=collapse_floor(len(names)),
        cold_start=cold_start_text(lacking, floor) if lacking else None,
        temperature=temperature if held_out.ece >= BADLY_CALIBRATED else None,
        ood=_ood_rates(embeddings, surprises, probes, chosen),
        verdict=verdict_text(held_out.accuracy, _mean_recall(table), len(names), collapse, held_out.ece, temperature),
        misrouted=_misrouted(names, probes, logits),
    )


def record_evaluation(store: Store, report: EvaluationReport) -> str:
    """Keep the report in the store's metrics, with the newest gate run; why it is not kept, empty when it is.

    A document without a store has nowhere to keep it, which is no failure.
    """
    if not store.exists():
        return ""
    try:
        with MetricsWriter(store) as metrics:
            metrics.record_gate_evaluation(MetricsReader(store).latest_gate_run(), report.as_json())
    except MetricsError as error:
        return str(error)
    return ""


def held_out_logits(
    document: Document, embeddings: Tensor, probes: Sequence[GateProbe], folds: int, seed: int
) -> Generator[Progress, None, Tensor]:
    """Logits [n, N] of every probe by a gate that did not see its fold. Raises DlmTuiError when a fold diverges."""
    assigned = torch.tensor(stratified_folds([probe.label for probe in probes], folds, seed))
    logits = torch.zeros(len(probes), len(document.adapter_names))
    for fold in range(folds):
        inside = assigned != fold
        seen = [probe for probe, chosen in zip(probes, inside.tolist(), strict=True) if chosen]
        work = fit_document(document, embeddings[inside], seen, seed)
        fit = yield from part_of(work, "fold", fold, folds)
        if fit.network is None:
            raise DlmTuiError("Gate training diverges on this document: lower training.gate.lr.")
        with torch.no_grad():
            logits[~inside] = fit.network.logits(embeddings[~inside])
    return logits


def _mean_recall(table: Sequence[Sequence[int]]) -> float:
    """Mean over the adapters of the share of its prompts that are routed to it, from counts [true][top], none empty."""
    return sum(row[index] / sum(row) for index, row in enumerate(table)) / len(table)


def _weights_in_force(
    store: Store, model: MixedModel, embeddings: Tensor, logits: Tensor, names: Sequence[str]
) -> tuple[str, Tensor]:
    """The stored gate's weights of the probes, or the held-out ones where no gate of these adapters is trained."""
    try:
        gate = load_gate(store, model.base.identity, model.base.hidden_size)
    except DlmTuiError:
        gate = None
    if gate is None or gate.network is None or gate.names != tuple(names):
        return "folds", torch.softmax(logits, dim=-1)
    return "trained", gate.weights(embeddings)


def _misrouted(names: Sequence[str], probes: Sequence[GateProbe], logits: Tensor) -> list[MisroutedPrompt]:
    """Held-out probes whose top adapter is another one, worst first: least weight on their own adapter."""
    weights = torch.softmax(logits.double(), dim=-1).tolist()
    wrong = []
    for probe, row in zip(probes, weights, strict=True):
        top = max(range(len(names)), key=row.__getitem__)
        if top != probe.label:
            wrong.append(
                MisroutedPrompt(
                    line=probe.line,
                    adapter=probe.adapter,
                    routed=names[top],
                    weight=row[probe.label],
                    weights=dict(zip(names, row, strict=True)),
                    prompt=probe.prompt[:_SHOWN],
                )
            )
    wrong.sort(key=lambda item: (item.weight, item.line))
    return wrong[:WORST]


def _confused_lines(
    names: Sequence[str], probes: Sequence[GateProbe], logits: Tensor
) -> dict[str, dict[str, list[int]]]:
    """The line numbers behind every cell of the confusion table."""
    lines: dict[str, dict[str, list[int]]] = {truth: {top: [] for top in names} for truth in names}
    for probe, top in zip(probes, logits.argmax(dim=-1).tolist(), strict=True):
        lines[probe.adapter][names[top]].append(probe.line)
    return lines


def _ood_rates(embeddings: Tensor, surprises: Tensor | None, probes: Sequence[GateProbe], seed: int) -> OodRates | None:
    """Share of the document's own prompts called out of distribution: as seen in training, and while held out."""
    detector = fit_ood(embeddings, [probe.label for probe in probes], seed, surprises)
    return detector.rates(embeddings, surprises) if detector is not None else None
