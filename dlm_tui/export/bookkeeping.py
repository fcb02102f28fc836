"""Where a finished export is remembered: the store's manifest and the metrics database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlm_tui.errors import DlmTuiError
from dlm_tui.export.requests import Session
from dlm_tui.system_errors import system_sentence

LOCK_WAIT_SECONDS = 10.0
"""How long the store's manifest is waited for. The export itself is complete by then."""


def _hash_of(manifest: dict[str, Any], *prefixes: str) -> str | None:
    for artifact in manifest["artifacts"]:
        if artifact["path"].startswith(prefixes) and artifact["path"].endswith(".gguf"):
            return str(artifact["sha256"])
    return None


def record_export(session: Session, manifest: dict[str, Any], folder: Path, seconds: float) -> list[str]:
    """Add the export to both; returns a sentence for each that could not be written. The export stands either way."""
    return [*_into_manifest(session, manifest), *_into_metrics(session, manifest, folder, seconds)]


def _into_manifest(session: Session, manifest: dict[str, Any]) -> list[str]:
    from dlm_tui.store import ExportRecord, Manifest, update_manifest

    single = manifest["gate_mode"] == "single"
    record = ExportRecord(
        exported_at=manifest["created_at"],
        target=manifest["target"],
        quant=manifest["quant"],
        merged=manifest["merged"],
        ollama_name=manifest["ollama_name"],
        base_gguf_sha256=_hash_of(manifest, "base.", "model."),
        adapter_gguf_sha256=_hash_of(manifest, "mix.", "adapter.gguf"),
        adapter_name=manifest["mix"][0][0] if single else None,
        adapter_mix=None if single else [(name, weight) for name, weight in manifest["mix"]],
    )

    def add(stored: Manifest) -> None:
        stored.exports = [*stored.exports, record]

    try:
        update_manifest(session.store, add, base_model=session.document.base_model, timeout=LOCK_WAIT_SECONDS)
    except (DlmTuiError, OSError) as error:
        return [f"the export is complete, but the store's manifest does not list it: {system_sentence(error) or error}"]
    return []


def _into_metrics(session: Session, manifest: dict[str, Any], folder: Path, seconds: float) -> list[str]:
    from dlm_tui.store import MetricsWriter

    try:
        with MetricsWriter(session.store) as metrics:
            metrics.record_export(
                target=manifest["target"],
                quant=manifest["quant"],
                merged=manifest["merged"],
                ollama_name=manifest["ollama_name"],
                size_bytes=sum(artifact["size_bytes"] for artifact in manifest["artifacts"]),
                duration_s=seconds,
                mix=[(name, weight) for name, weight in manifest["mix"]],
                gate_mode=manifest["gate_mode"],
                drift=manifest["drift"],
                folder=str(folder),
            )
    except (DlmTuiError, OSError) as error:
        return [f"the export is complete, but the metrics do not list it: {system_sentence(error) or error}"]
    return []
