"""The gate frozen to one mix: its mean weights over the training prompts."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from dlm_tui.progress import Progress

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.model import MixedModel
    from dlm_tui.store import GateConfig, Store

Mix = list[tuple[str, float]]


class GateFunction(Protocol):
    """Anything that maps embeddings [n, H] to weights [n, N]: a Gate, a GateNetwork."""

    def __call__(self, embeddings: Tensor, /) -> Tensor: ...


class GateMetadata(Protocol):
    """What is known of a gate beside its weights: a GateConfig, for example."""

    @property
    def adapter_names(self) -> Sequence[str]: ...
    @property
    def input_dim(self) -> int: ...


def mean_gate_weights(gate: GateFunction, metadata: GateMetadata, prompt_embeddings: Sequence[Tensor]) -> Mix:
    """[(name, mean softmax weight over the prompts)] in declared order, for embeddings [H] each (or one [n, H]).

    Summed in float64, so it sums to 1 to rounding without renormalising. Raises ValueError for no embeddings and for
    an embedding whose size is not the gate's `input_dim`.
    """
    rows = [row.detach().float().reshape(-1) for row in prompt_embeddings]
    if not rows:
        raise ValueError("mean_gate_weights needs at least 1 prompt embedding, got 0")
    for row in rows:
        if len(row) != metadata.input_dim:
            raise ValueError(f"a prompt embedding has {len(row)} numbers, the gate's input_dim is {metadata.input_dim}")
    with torch.no_grad():
        mean = gate(torch.stack(rows)).double().mean(dim=0)
    return list(zip(metadata.adapter_names, mean.tolist(), strict=True))


def uniform_adapter_mix(names: Sequence[str]) -> Mix:
    """[(name, 1/N)], [] for no names."""
    return [(name, 1.0 / len(names)) for name in names]


def resolve_gate_mix(store: Store, parsed: Document) -> Mix | None:
    """The mix that stands in for the live gate, by the stored gate's state, without loading a base.

    None without an enabled gate, with fewer than two adapters, or without a stored gate. A uniform gate gives 1/N. A
    trained one gives its mean weights over the training prompts: recomputed when their embeddings are all kept, else
    as recorded when it was trained, else from the newest gate events of a trained run, else 1/N. After a divergence
    the previous gate is still the one that counts. Never a zero for a missing name.
    """
    resolved = _resolve(store, parsed)
    return None if resolved is None else resolved[0]


@dataclass(frozen=True)
class GateMixResolution:
    """The mix that stands in for the live gate, None when nothing is substituted, and the lines that say so."""

    entries: Mix | None
    banner_lines: list[str]

    @classmethod
    def of(cls, mix: Mix, how: str) -> GateMixResolution:
        """A mix, and in a few words where it comes from."""
        weights = ", ".join(f"{name} {weight:.4f}" for name, weight in mix)
        return cls(mix, [f"gate frozen to a static mix ({how}): {weights}"])


def resolve_and_announce(store: Store, parsed: Document) -> GateMixResolution:
    """`resolve_gate_mix` with the lines to print for it."""
    resolved = _resolve(store, parsed)
    return GateMixResolution(None, []) if resolved is None else GateMixResolution.of(*resolved)


def _resolve(store: Store, parsed: Document) -> tuple[Mix, str] | None:
    from dlm_tui.store import read_gate_config

    names = list(parsed.adapter_names)
    if not parsed.gate_enabled or len(names) < 2:
        return None
    config = read_gate_config(store)
    if config is None:
        return None
    if config.mode == "uniform":
        return uniform_adapter_mix(names), "uniform: the gate had too few prompts to train"
    if set(names) != set(config.adapter_names):
        return uniform_adapter_mix(names), "uniform: the stored gate is for other adapters"
    sources = (
        (_recomputed, "mean over the training prompts"),
        (_recorded, "mean over the training prompts, as recorded when the gate was trained"),
        (_from_events, "mean over the training prompts, from the newest gate events"),
    )
    for source, how in sources:
        mix = source(store, parsed, config)
        if mix is not None:
            return mix, how
    return uniform_adapter_mix(names), "uniform: the gate's mean weights are not known"


def _ordered(weights: dict[str, float], names: Sequence[str]) -> Mix | None:
    """The weights in declared order; None unless there is one for every name and they sum to 1."""
    if set(weights) != set(names) or abs(sum(weights.values()) - 1.0) > 1e-3:
        return None
    return [(name, weights[name]) for name in names]


def _recomputed(store: Store, parsed: Document, config: GateConfig) -> Mix | None:
    from dlm_tui.errors import DlmTuiError
    from dlm_tui.gate.cache import EmbeddingCache
    from dlm_tui.gate.gate import load_gate
    from dlm_tui.gate.probes import trained_probes
    from dlm_tui.store.trained_on import recorded_key

    try:
        gate = load_gate(store)
    except DlmTuiError:
        return None
    record = gate.record if gate is not None else None
    if gate is None or record is None or not record.get("weights_sha256"):
        return None
    cache = EmbeddingCache(store.cache_dir, recorded_key(record), config.input_dim)
    found = cache.find([probe.prompt for probe in trained_probes(parsed)])
    rows = [row for row in found if row is not None]
    if not rows or len(rows) < len(found):
        return None
    return _ordered(dict(mean_gate_weights(gate, config, rows)), parsed.adapter_names)


def _recorded(store: Store, parsed: Document, config: GateConfig) -> Mix | None:
    from dlm_tui.store import matching_record

    static: Any = (matching_record(store, config) or {}).get("static_mean")
    if not isinstance(static, dict) or not all(isinstance(weight, float) for weight in static.values()):
        return None
    return _ordered(static, parsed.adapter_names)


def _from_events(store: Store, parsed: Document, config: GateConfig) -> Mix | None:
    from dlm_tui.store import MetricsReader

    for run in reversed(MetricsReader(store).gate_history(200)):
        if run.mode == "trained":
            return _ordered(dict(run.weights), parsed.adapter_names)
    return None


@dataclass(frozen=True)
class StaticMix:
    """The frozen mix in declared order; `mode` is "static_mean", or "uniform" with the reason why."""

    mix: Mix
    mode: str
    reason: str = ""

    def weights(self) -> dict[str, float]:
        """The mix as a mapping."""
        return dict(self.mix)

    def resolution(self) -> GateMixResolution:
        """The mix with the line that says where it comes from."""
        how = "mean over the training prompts" if self.mode == "static_mean" else f"uniform: {self.reason}"
        return GateMixResolution.of(self.mix, how)


def static_mix(document: Document, store: Store, model: MixedModel) -> Generator[Progress, None, StaticMix]:
    """The mix to export: the stored gate's mean weights over the document's prompts as they are now.

    1/N with a reason when the gate is uniform, there is none, it names other adapters, or no prompt is left. Raises
    ForeignGate when it was trained on another base, GateFileError when it is damaged.
    """
    from dlm_tui.gate.embedding import cached_embeddings
    from dlm_tui.gate.gate import load_gate
    from dlm_tui.gate.probes import trained_probes

    names = document.adapter_names
    gate = load_gate(store, model.base.identity, model.base.hidden_size)
    probes = trained_probes(document)
    reason = ""
    if gate is None:
        reason = "no gate is trained"
    elif gate.network is None:
        reason = "the gate had too few prompts to train"
    elif set(gate.names) != set(names):
        reason = "the stored gate is for other adapters"
    elif not probes:
        reason = "the document has no gate prompts"
    if gate is None or reason:
        return StaticMix(uniform_adapter_mix(names), "uniform", reason)
    embeddings, _ = yield from cached_embeddings(model, store, [probe.prompt for probe in probes])
    means = dict(mean_gate_weights(gate, gate.config, list(embeddings)))
    return StaticMix([(name, means[name]) for name in names], "static_mean")
