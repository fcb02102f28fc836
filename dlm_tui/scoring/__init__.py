"""Does an adapter change anything? Protocols, backends, divergences and scores. Names load on first use, without
torch.
"""

from __future__ import annotations

from typing import Any

from dlm_tui.lazy import load as load_name

_HOMES = {
    "CacheStats": "cache",
    "DifferentialBackend": "protocols",
    "DummyDifferentialBackend": "dummy",
    "DummyResponses": "dummy",
    "EmptyText": "errors",
    "Model": "protocols",
    "NonFiniteScores": "errors",
    "NullCalibratedBackend": "protocols",
    "NullScaleError": "errors",
    "NullSummary": "zscore",
    "PreflightCheckable": "protocols",
    "RollingLogprob": "protocols",
    "ScalableDifferentialBackend": "protocols",
    "Score": "effect",
    "Scores": "effect",
    "ScoringBackend": "protocols",
    "ScoringError": "errors",
    "ScoringModel": "protocols",
    "SweepPoint": "sweeping",
    "TokenDist": "protocols",
    "TorchDifferentialBackend": "torch_backend",
    "ViewActive": "errors",
    "log_effect": "zscore",
    "js_divergence": "divergence",
    "kl_divergence": "divergence",
    "score_suite": "suite",
    "score_views": "effect",
    "sweep": "sweeping",
    "token_heat": "effect",
    "z_score": "zscore",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    return load_name(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
