"""Exports: one frozen mix of the adapters in the form other programs load. Names load on first use (torch is heavy)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlm_tui.lazy import load as load_name

if TYPE_CHECKING:
    from dlm_tui.export.mix import ResolvedMix, resolve_mix
    from dlm_tui.export.ollama import create_model, find_ollama
    from dlm_tui.export.pipeline import destination, export_document
    from dlm_tui.export.requests import (
        QUANTS,
        TARGETS,
        ExportProgress,
        ExportRefused,
        ExportRequest,
        ExportResult,
    )

_HOME = {
    "mix": ("ResolvedMix", "resolve_mix"),
    "ollama": ("create_model", "find_ollama"),
    "pipeline": ("destination", "export_document"),
    "requests": ("QUANTS", "TARGETS", "ExportProgress", "ExportRefused", "ExportRequest", "ExportResult"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "QUANTS",
    "TARGETS",
    "ExportProgress",
    "ExportRefused",
    "ExportRequest",
    "ExportResult",
    "ResolvedMix",
    "create_model",
    "destination",
    "export_document",
    "find_ollama",
    "resolve_mix",
]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _MODULE_OF, name)
