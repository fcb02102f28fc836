"""The document's gate: probes to embeddings to a stored gate, with every outcome recorded."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_tui.counting import counted
from dlm_tui.document import gate_samples, lacking_samples, probes_digest
from dlm_tui.document.probes import NO_GATE
from dlm_tui.document.seeds import seed_in_range
from dlm_tui.errors import Cancelled, DlmTuiError, UsageError
from dlm_tui.gate.embedding import Embed, cached_embeddings, embed_here
from dlm_tui.gate.fitting import Fit, FitSettings, fit_gate
from dlm_tui.gate.gate import Gate, save_gate
from dlm_tui.gate.ood import fit_ood
from dlm_tui.gate.probes import GateProbe, trained_probes
from dlm_tui.gate.static import mean_gate_weights
from dlm_tui.gate.surprise import cached_surprises
from dlm_tui.model.information import entropy
from dlm_tui.progress import Progress
from dlm_tui.store import (
    GateConfig,
    GateFileError,
    MetricsError,
    MetricsWriter,
    RunLog,
    Store,
    StoreError,
    claim,
    read_gate_config,
)
from dlm_tui.store.collapse import collapse_text, collapsed_onto
from dlm_tui.store.gate_state import alarm_text, cold_start_text, diverged_text
from dlm_tui.store.owed import settle_gate
from dlm_tui.store.trained_on import base_record
from dlm_tui.system_errors import error_line, system_sentence

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.model import MixedModel

_log = logging.getLogger(__name__)
PHASE = "gate"
GATE_NOT_TRAINED = "The gate was not trained: "
"""How the sentence of a GateTrainingError begins."""
_TAIL = 10


class GateTrainingError(DlmTuiError):
    """The training of a gate broke off, for whatever reason; the gate before it is still in force."""

    @classmethod
    def of(cls, error: BaseException) -> GateTrainingError:
        """What happened in one sentence."""
        if isinstance(error, cls):
            return error
        if isinstance(error, DlmTuiError):
            return cls(f"{GATE_NOT_TRAINED}{error}")
        return cls(f"{GATE_NOT_TRAINED}{system_sentence(error) or error_line(error)}")


@dataclass(frozen=True)
class GateOutcome:
    """`mode`: trained, uniform or diverged; `gate` is the new gate in force, None when the previous one stays.

    Loss is the mean over the last ten updates, entropy the mean over the training prompts after training, both in
    nats. `embedded` counts the prompts that were not in the cache. `warning` tells of a collapse, and of a record that
    could not be kept; else empty.
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

    @property
    def alarm(self) -> str:
        """What a person has to know of this outcome at once; else empty."""
        return alarm_text(self.mode, self.reason, self.warning)


def train_document_gate(
    document: Document,
    store: Store,
    model: MixedModel,
    *,
    run_id: int | None = None,
    seed: int | None = None,
    embed: Embed = embed_here,
) -> Generator[Progress, None, GateOutcome]:
    """Train the gate of a document and put it in force; the seed is the document's training.seed unless given.

    With too few probes a uniform gate is stored. When the loss stops being finite nothing is stored, the previous gate
    stays, and the divergence is recorded. `embed` computes the embeddings that are not kept yet. `run_id` names a run
    that was started already; without it this is a run of its own (phase "gate"), finished "ok", "failed" (diverged or
    an error) or "cancelled" (closed). The run's log tells how it ended. Raises UsageError for a document without a
    gate, and GateTrainingError for any other error.
    """
    if not document.gate_enabled or len(document.adapter_names) < 2:
        raise UsageError(NO_GATE)
    began = time.perf_counter()
    chosen = seed_in_range(document.training.seed if seed is None else seed)
    try:
        with MetricsWriter(store.create()) as metrics:
            run = metrics.begin_run(PHASE, chosen) if run_id is None else run_id
            status = "failed"
            try:
                outcome = yield from _train(document, store, model, metrics, run, chosen, began, embed)
                status = "failed" if outcome.mode == "diverged" else "ok"
                settle_gate(store)
            except (GeneratorExit, Cancelled, KeyboardInterrupt):
                status = "cancelled"
                raise
            except Exception as error:
                failure = GateTrainingError.of(error)
                told = "".join(traceback.format_exception(error))
                _note(store, run, "gate_error", error=GateTrainingError.__name__, text=str(failure), traceback=told)
                raise failure from error
            finally:
                if run_id is None:
                    _finish(metrics, run, status)
    except (Cancelled, GateTrainingError):
        raise
    except Exception as error:
        raise GateTrainingError.of(error) from error
    _note(
        store,
        run,
        "gate",
        mode=outcome.mode,
        reason=outcome.reason,
        warning=outcome.warning,
        loss=outcome.loss,
        entropy=outcome.entropy,
        mean_weights=outcome.mean_weights,
    )
    return outcome


def _note(store: Store, run: int, kind: str, **fields: object) -> None:
    """A line in the run's log; a log that cannot be written stops nothing."""
    with contextlib.suppress(StoreError, OSError), RunLog.of_run(store, run) as log:
        log.event(kind, **fields)


def _finish(metrics: MetricsWriter, run: int, status: str) -> None:
    """Say how a run ended; it has ended that way even if the metrics cannot be written."""
    try:
        metrics.finish_run(run, status)
    except MetricsError as error:
        _log.warning("run %d ended as %s, which could not be recorded: %s", run, status, error)


def _record(
    metrics: MetricsWriter, run: int, events: Sequence[tuple[str, float, int]], mode: str, spread: float | None = None
) -> str:
    """Record what is in force already; a sentence where that fails, since it stays in force all the same."""
    try:
        metrics.record_gate_events(run, events, mode, spread)
    except MetricsError as error:
        return f"The gate's weights could not be recorded: {error}"
    return ""


def _train(
    document: Document,
    store: Store,
    model: MixedModel,
    metrics: MetricsWriter,
    run: int,
    seed: int,
    began: float,
    embed: Embed,
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
        _put_in_force(document, store, model, gate)
        events = [(name, means[name], counts[name]) for name in names]
        unkept = _record(metrics, run, events, "uniform", math.log(len(names)))
        reason = cold_start_text(lacking, settings.cold_start_floor)
        seconds = time.perf_counter() - began
        return GateOutcome("uniform", reason, run, means, counts, seconds=seconds, warning=unkept, gate=gate)

    prompts = [probe.prompt for probe in probes]
    embeddings, embedded = yield from cached_embeddings(model, store, prompts, embed)
    surprises = yield from cached_surprises(model, store, prompts)
    fit = yield from fit_document(document, embeddings, probes, seed)
    metrics.record_gate_steps(run, [(step.step, step.loss, step.entropy) for step in fit.history])
    if fit.network is None:
        unkept = _record(metrics, run, [(name, 0.0, 0) for name in names], "diverged")
        reason = diverged_text(_mode_before(store))
        seconds = time.perf_counter() - began
        return GateOutcome("diverged", reason, run, {}, counts, seconds=seconds, embedded=embedded, warning=unkept)

    labels = [probe.label for probe in probes]
    means = dict(mean_gate_weights(fit.network, config, list(embeddings)))
    spread = float(entropy(fit.network(embeddings).double()).mean())
    tail = [step.loss for step in fit.history[-_TAIL:]]
    detector = fit_ood(embeddings, labels, seed, surprises)
    gate = Gate(names, config, fit.network, {**record, "static_mean": means}, detector)
    _put_in_force(document, store, model, gate)
    unkept = _record(metrics, run, [(name, means[name], counts[name]) for name in names], "trained", spread)
    onto = collapsed_onto(means, spread, counts)
    collapse = collapse_text(onto, means[onto], spread, settings.entropy_lambda, counts) if onto else ""
    return GateOutcome(
        "trained",
        f"The gate is trained on {counted(len(probes), 'prompt')}.",
        run,
        means,
        counts,
        loss=sum(tail) / len(tail),
        entropy=spread,
        seconds=time.perf_counter() - began,
        embedded=embedded,
        warning=" ".join(part for part in (collapse, unkept) if part),
        gate=gate,
    )


def _mode_before(store: Store) -> str:
    """The mode of the gate that stays in force; "none" without one, and for one that cannot be read."""
    try:
        before = read_gate_config(store)
    except GateFileError:
        before = None
    return before.mode if before is not None else "none"


def _put_in_force(document: Document, store: Store, model: MixedModel, gate: Gate) -> None:
    """Store the gate; where it is the first thing in the store, that is this document's from now on."""
    claim(store, document, model.base.identity.revision)
    save_gate(store, gate)


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
    return {
        "base_model": document.base_model,
        **base_record(model.base.identity),
        "document_sha256": document.sha256,
        "probes": gate_samples(document),
        "probes_sha256": probes_digest(document),
        "run_id": run,
        "seed": seed,
    }
