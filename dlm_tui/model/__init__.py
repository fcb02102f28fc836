"""The base, its adapters, and the mixer. Names are loaded on first use, so that plain-data parts never import torch."""

from __future__ import annotations

from typing import Any

from dlm_tui.lazy import load as load_name

_HOMES = {
    "Adapter": "adapters",
    "AdapterError": "adapters",
    "BASE": "views",
    "BASES": "registry",
    "Backbone": "backbone",
    "Base": "base",
    "BaseIdentity": "identity",
    "BaseSource": "registry",
    "BaseUnavailable": "registry",
    "GATED": "views",
    "Generated": "generation",
    "GenerationEvent": "generation",
    "HistoryBake": "history",
    "KVCache": "backbone",
    "LowRank": "adapters",
    "MixedModel": "mixed",
    "Mixer": "mixer",
    "ModulatedLoRA": "modulated",
    "ModulatedPiSSA": "modulated",
    "PiSSAHistoryBake": "history",
    "Progress": "progress",
    "ReferenceBackbone": "backbone",
    "STATIC": "views",
    "Sampling": "sampling",
    "UNIFORM": "views",
    "View": "views",
    "custom": "views",
    "drain": "progress",
    "generate": "generation",
    "load_base": "base",
    "load_peft_adapter": "adapters",
    "missing_message": "registry",
    "resolve_base": "registry",
    "resolve_view": "views",
    "save_peft_adapter": "adapters",
    "solo": "views",
    "threads_for": "threads",
    "uniform_mix": "views",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    return load_name(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
