"""The document's gate: probes to embeddings to a stored gate, with every outcome recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_tui.document import gate_samples, lacking_samples, probes_digest
from dlm_tui.document.seeds import seed_in_range
from dlm_tui.gate.embedding import cached_embeddings
from dlm_tui.gate.fitting import Fit, FitSettings, fit_gate
from dlm_tui.gate.gate import Gate, save_gate
from dlm_tui.gate.ood import fit_ood
from dlm_tui.gate.probes import GateProbe, trained_probes
from dlm_tui.gate.static import mean_gate_weights
from dlm_tui.model.information import entropy
from dlm_tui.progress import Progress
from dlm_tui.store import GateConfig, MetricsWriter, Store, read_gate_config
from dlm_tui.store.collapse import collapse_text, collapsed_onto
from dlm_tui.store.gate_state import cold_start_text, diverged_text

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.model import MixedModel

PHASE = "gate"
_TAIL = 10


@dataclass(frozen=True)
class GateOutcome:
    """`mode`: trained, uniform or diverged; `gate` is the new gate in force, None when the previous one stays.

    Loss is the mean over the last ten updates, entropy the mean over the training prompts after training, both in
    nats. `embedded` counts the prompts that were not in the cache. `warning` tells of a collapse, else empty.
    """

    mode: str
    reason: str
    run_id: int
    mean_weights: dict[str, float]
    samples: dict[str, int]
    loss: float | None = None
    entropy: float | None = None
    seconds: float = 0.0
    embedded: int = 0
    warning: str = ""
    gate: Gate | None = field(default=None, repr=False)


def train_document_gate(
    document: Document, store: Store, model: MixedModel, *, run_id: int | None = None, seed: int | None = None
) -> Generator[Progress, None, GateOutcome]:
    """Train the gate of a document and put it in force; the seed is the document's training.seed unless given.

    With too few probes a uniform gate is stored. When the loss stops being finite nothing is stored, the previous gate
    stays, and the divergence is recorded. `run_id` names a run that was started already; without it this is a run of
    its own (phase "gate"), finished "ok", "failed" (diverged or an error) or "cancelled" (closed).
    """
    from dlm_tui.errors import Cancelled, UsageError

    if not document.gate_enabled or len(document.adapter_names) < 2:
        raise UsageError(
            "The document has no gate to train: set training.gate.enabled and declare at least two adapters."
        )
    began = time.perf_counter()
    chosen = seed_in_range(document.training.seed if seed is None else seed)
    with MetricsWriter(store.create()) as metrics:
        run = metrics.begin_run(PHASE, chosen) if run_id is None else run_id
        status = "failed"
        try:
            outcome = yield from _train(document, store, model, metrics, run, chosen, began)
            status = "failed" if outcome.mode == "diverged" else "ok"
        except (GeneratorExit, Cancelled, KeyboardInterrupt):
            status = "cancelled"
            raise
        finally:
            if run_id is None:
                metrics.finish_run(run, status)
    return outcome


def _train(
    document: Document, store: Store, model: MixedModel, metrics: MetricsWriter, run: int, seed: int, began: float
) -> Generator[Progress, None, GateOutcome]:
    names = document.adapter_names
    settings = document.training.gate
    probes = trained_probes(document)
    counts = gate_samples(document)
    config = GateConfig(names, settings.entropy_lambda, settings.hidden_proj_dim, model.base.hidden_size, "trained")
    record = gate_record(document, model, run, seed)

    lacking = lacking_samples(document)
    if lacking:
        means = dict.fromkeys(names, 1.0 / len(names))
        uniform = GateConfig(names, config.entropy_lambda, config.hidden_proj_dim, config.input_dim, "uniform")
        gate = Gate(names, uniform, record={**record, "static_mean": means})
        save_gate(store, gate)
        events = [(name, means[name], counts[name]) for name in names]
        metrics.record_gate_events(run, events, "uniform", math.log(len(names)))
        reason = cold_start_text(lacking, settings.cold_start_floor)
        return GateOutcome("uniform", reason, run, means, counts, seconds=time.perf_counter() - began, gate=gate)

    embeddings, embedded = yield from cached_embeddings(model, store, [probe.prompt for probe in probes])
    fit = yield from fit_document(document, embeddings, probes, seed)
    metrics.record_gate_steps(run, [(step.step, step.loss, step.entropy) for step in fit.history])
    if fit.network is None:
        metrics.record_gate_events(run, [(name, 0.0, 0) for name in names], "diverged")
        before = read_gate_config(store)
        reason = diverged_text(before.mode if before is not None else "none")
        seconds = time.perf_counter() - began
        return GateOutcome("diverged", reason, run, {}, counts, seconds=seconds, embedded=embedded)

    labels = [probe.label for probe in probes]
    means = dict(mean_gate_weights(fit.network, config, list(embeddings)))
    spread = float(entropy(fit.network(embeddings).double()).mean())
    tail = [step.loss for step in fit.history[-_TAIL:]]
    gate = Gate(names, config, fit.network, {**record, "static_mean": means}, fit_ood(embeddings, labels, seed))
    save_gate(store, gate)
    metrics.record_gate_events(run, [(name, means[name], counts[name]) for name in names], "trained", spread)
    onto = collapsed_onto(means, spread, counts)
    warning = collapse_text(onto, means[onto], spread, settings.entropy_lambda, counts) if onto else ""
    return GateOutcome(
        "trained",
        f"The gate is trained on {len(probes)} prompts.",
        run,
        means,
        counts,
        loss=sum(tail) / len(tail),
        entropy=spread,
        seconds=time.perf_counter() - began,
        embedded=embedded,
        warning=warning,
        gate=gate,
    )


def fit_settings(document: Document, seed: int) -> FitSettings:
    """The document's gate block as settings of the training loop."""
    gate = document.training.gate
    return FitSettings(gate.hidden_proj_dim, gate.steps, gate.lr, gate.entropy_lambda, seed)


def fit_document(
    document: Document, embeddings: Tensor, probes: Sequence[GateProbe], seed: int
) -> Generator[Progress, None, Fit]:
    """Train a network on the probes' embeddings [n, H] with the document's settings; nothing is stored."""
    labels = torch.tensor([probe.label for probe in probes])
    work = fit_gate(embeddings, labels, len(document.adapter_names), fit_settings(document, seed))
    return (yield from work)


def gate_record(document: Document, model: MixedModel, run: int, seed: int) -> dict[str, object]:
    """What a gate was trained for, kept beside the shared files."""
    identity = model.base.identity
    return {
        "base_model": document.base_model,
        "base_id": identity.id,
        "base_revision": identity.revision,
        "weights_sha256": identity.weights_sha256,
        "tokenizer_sha256": identity.tokenizer_sha256,
        "document_sha256": document.sha256,
        "probes": gate_samples(document),
        "probes_sha256": probes_digest(document),
        "run_id": run,
        "seed": seed,
    }
