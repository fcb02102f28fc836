"""Which mix is exported: the gate frozen, one picked by hand, uniform, the best static one, or a single adapter."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field, replace

from dlm_tui.document import Document
from dlm_tui.document.names import refuse_unknown_adapter
from dlm_tui.errors import UsageError
from dlm_tui.export.requests import ExportRefused, ExportRequest, Session
from dlm_tui.progress import Progress, part_of

_INSTEAD = "train the gate, or choose a mix yourself (--mix a:0.7,b:0.3, --mix uniform, --adapter NAME)"


@dataclass(frozen=True)
class ResolvedMix:
    """Adapter weights in declared order. `gate_mode` is static_mean, uniform, hand_picked, best_static, single
    or live, where the weights are those the gate would be frozen to."""

    weights: list[tuple[str, float]]
    gate_mode: str
    notes: list[str] = field(default_factory=list)
    drift: dict[str, object] | None = None

    def mapping(self) -> dict[str, float]:
        """The same as a mapping."""
        return dict(self.weights)


def resolve_mix(request: ExportRequest, session: Session) -> Generator[Progress, None, ResolvedMix]:
    """The mix that `request` asks for, over adapters that are trained.

    Raises UsageError for unknown names and bad specs, ExportRefused for a gate that is missing, diverged or damaged and
    for adapters without a trained version, ForeignGate for a gate of another base.
    """
    if (written := written_mix(request, session.document)) is not None:
        mix = written
    elif request.mix == "best":
        mix = yield from _best(session)
    else:
        mix = yield from _frozen_gate(session)
    if request.gate == "live":
        mix = _live(mix, session)
    _check_trained(mix, session)
    return mix


def written_mix(request: ExportRequest, document: Document) -> ResolvedMix | None:
    """The mix where request and document say it without a base; None where it is to be found out.

    Raises UsageError for unknown names and bad specs.
    """
    names = list(document.routing_names)
    if request.adapter is not None:
        refuse_unknown_adapter(request.adapter, names)
        return ResolvedMix([(request.adapter, 1.0)], "single")
    if request.mix == "uniform":
        return ResolvedMix([(name, 1.0 / len(names)) for name in names], "uniform")
    if request.mix is not None and request.mix != "best":
        return ResolvedMix(_hand_picked(request.mix, document, request.signed), "hand_picked")
    return ResolvedMix([(names[0], 1.0)], "single") if request.mix is None and len(names) == 1 else None


def _live(frozen: ResolvedMix, session: Session) -> ResolvedMix:
    """The gate itself, with the mix it would be frozen to beside it."""
    if session.gate is None or session.gate.network is None:
        raise ExportRefused("the document has no trained gate to take along: train it, or leave out --gate live")
    which = "that is for llama-server_launch.sh; serve.py asks the gate for every prompt"
    return replace(frozen, gate_mode="live", notes=[*frozen.notes, which])


def _hand_picked(spec: str, document: Document, signed: bool) -> list[tuple[str, float]]:
    """Saved mixes may be negative and name earlier versions, which no export has."""
    from dlm_tui.document.named_mixes import mix_of_argument

    weights = list(mix_of_argument(document, spec, document.routing_names, signed=signed).items())
    for name, _ in weights:
        if "@" in name:
            raise UsageError(f"the mix takes {name}, and exports take the versions in force: put it in force first")
    if not any(weight for _, weight in weights):
        raise UsageError("every weight in the mix is 0: there is nothing to export")
    return weights


def _check_trained(mix: ResolvedMix, session: Session) -> None:
    untrained = [name for name, weight in mix.weights if weight != 0.0 and name not in session.model.names]
    if untrained:
        raise ExportRefused(
            f"the mix needs {', '.join(untrained)}, and no trained version is in the store: train the document first"
        )


def _require_gate(session: Session) -> None:
    """Raises what stands in the way of asking the stored gate."""
    from dlm_tui.gate import load_gate
    from dlm_tui.store import gate_status

    status = gate_status(session.document, session.store, session.base.identity, session.base.hidden_size)
    if status.mode == "diverged":
        raise ExportRefused(f"the gate's newest training diverged, so there is no mix to freeze: {_INSTEAD}")
    if status.mode == "none":
        raise ExportRefused(f"the document has no trained gate, so there is no mix to freeze: {_INSTEAD}")
    # raises for a gate of another base, damaged files and weights that are not finite
    load_gate(session.store, session.base.identity, session.base.hidden_size)


def _frozen_gate(session: Session) -> Generator[Progress, None, ResolvedMix]:
    from dlm_tui.gate import static_mix
    from dlm_tui.store import gate_status

    _require_gate(session)
    frozen = yield from part_of(static_mix(session.document, session.store, session.model), "mix", 0, 1)
    if any(not math.isfinite(weight) for _, weight in frozen.mix):
        raise ExportRefused(f"the gate's mean weights are not finite: {_INSTEAD}")
    status = gate_status(session.document, session.store, session.base.identity, session.base.hidden_size)
    if frozen.mode == "uniform" and status.mode == "stale":
        raise ExportRefused(f"{status.reason} ({frozen.reason}): {_INSTEAD}")
    notes = [status.reason] if status.mode == "stale" else []
    return ResolvedMix(list(frozen.mix), frozen.mode, [*notes, *frozen.resolution().banner_lines])


def _best(session: Session) -> Generator[Progress, None, ResolvedMix]:
    from dlm_tui.export.drift import measure_drift
    from dlm_tui.gate.messages import frozen_text, kept_share

    _require_gate(session)
    report = yield from measure_drift(session, None)
    best = report["best_static"] if report is not None else None
    if report is None or best is None:
        raise ExportRefused(f"no best static mix is known, because the gate is not a trained one: {_INSTEAD}")
    weights = dict(best["mix"])
    names = session.document.routing_names
    frozen, uniform = best["kl"], report["uniform"]["kl"]
    kept = kept_share(frozen, uniform)
    figures = {
        **report,
        **{key: value for key, value in best.items() if key != "mix"},
        "kept": kept,
        "verdict": frozen_text(kept, frozen, uniform, frozen),
    }
    return ResolvedMix([(name, float(weights.get(name, 0.0))) for name in names], "best_static", [], figures)
