"""The gate: network, prompt embedding with prefix reuse, training, judgement, static mean, drift.

Names load on first use: importing the room costs nothing, and what needs no torch (status, texts) loads none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlm_tui.lazy import load as load_name

if TYPE_CHECKING:
    from dlm_tui.gate.cache import EmbeddingCache
    from dlm_tui.gate.drift import drift_report
    from dlm_tui.gate.embedding import EmbedProgress, embed_prompts, prompt_tokens
    from dlm_tui.gate.evaluation import evaluate_gate
    from dlm_tui.gate.explain import TokenPull
    from dlm_tui.gate.fitting import Fit, FitSettings, FitStep, fit_gate
    from dlm_tui.gate.gate import Gate, load_document_gate, load_gate, save_gate
    from dlm_tui.gate.label import LabelOutcome, label_prompt
    from dlm_tui.gate.network import GateNetwork, Standardiser, entropy
    from dlm_tui.gate.novelty import Novelty, fit_novelty
    from dlm_tui.gate.probes import ForeignGate, GateProbe, GateStatus, trained_probes
    from dlm_tui.gate.report import Report
    from dlm_tui.gate.router import PrefillProgress, PromptRouter, RouteResult
    from dlm_tui.gate.static import (
        StaticMix,
        mean_gate_weights,
        resolve_and_announce,
        resolve_gate_mix,
        static_mix,
        uniform_adapter_mix,
    )
    from dlm_tui.gate.status import gate_status
    from dlm_tui.gate.training import GateOutcome, GateProgress, train_document_gate

_HOME = {
    "cache": ("EmbeddingCache",),
    "drift": ("drift_report",),
    "embedding": ("EmbedProgress", "embed_prompts", "prompt_tokens"),
    "evaluation": ("evaluate_gate",),
    "explain": ("TokenPull",),
    "fitting": ("Fit", "FitSettings", "FitStep", "fit_gate"),
    "gate": ("Gate", "load_document_gate", "load_gate", "save_gate"),
    "label": ("LabelOutcome", "label_prompt"),
    "network": ("GateNetwork", "Standardiser", "entropy"),
    "novelty": ("Novelty", "fit_novelty"),
    "probes": ("ForeignGate", "GateProbe", "GateStatus", "trained_probes"),
    "report": ("Report",),
    "router": ("PrefillProgress", "PromptRouter", "RouteResult"),
    "static": (
        "StaticMix",
        "mean_gate_weights",
        "resolve_and_announce",
        "resolve_gate_mix",
        "static_mix",
        "uniform_adapter_mix",
    ),
    "status": ("gate_status",),
    "training": ("GateOutcome", "GateProgress", "train_document_gate"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "EmbedProgress",
    "EmbeddingCache",
    "Fit",
    "FitSettings",
    "FitStep",
    "ForeignGate",
    "Gate",
    "GateNetwork",
    "GateOutcome",
    "GateProbe",
    "GateProgress",
    "GateStatus",
    "LabelOutcome",
    "Novelty",
    "PrefillProgress",
    "PromptRouter",
    "Report",
    "RouteResult",
    "Standardiser",
    "StaticMix",
    "TokenPull",
    "drift_report",
    "embed_prompts",
    "entropy",
    "evaluate_gate",
    "fit_gate",
    "fit_novelty",
    "gate_status",
    "label_prompt",
    "load_document_gate",
    "load_gate",
    "mean_gate_weights",
    "prompt_tokens",
    "resolve_and_announce",
    "resolve_gate_mix",
    "save_gate",
    "static_mix",
    "train_document_gate",
    "trained_probes",
    "uniform_adapter_mix",
]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _MODULE_OF, name)
