"""`export_manifest.json`: what was exported from what, with which figures, and the hash of every file."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dlm_tui import __version__
from dlm_tui.export.atomic_folder import CREATOR, MANIFEST
from dlm_tui.export.choices import GGUF_TARGETS
from dlm_tui.export.mix import ResolvedMix
from dlm_tui.export.requests import ExportRequest, Session
from dlm_tui.files import json_bytes, write_atomic
from dlm_tui.progress import Progress
from dlm_tui.small_files import regular_file
from dlm_tui.store import current_version

_TOOLS = ("torch", "transformers", "peft", "safetensors", "gguf", "xllamacpp")
_PIECE = 16 << 20


def tool_versions() -> dict[str, str | None]:
    """Versions of what writes and checks exports; None for what is not installed."""
    found: dict[str, str | None] = {"dlm-tui": __version__}
    for tool in _TOOLS:
        try:
            found[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            found[tool] = None
    return found


def artifacts(folder: Path) -> Generator[Progress, None, list[dict[str, Any]]]:
    """Relative path, SHA-256 and size in bytes of every file below `folder`, except the manifest itself."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name == MANIFEST:
            continue
        digest, size = hashlib.sha256(), path.stat().st_size
        with regular_file(path) as (handle, _):
            while piece := handle.read(_PIECE):
                digest.update(piece)
                yield Progress("hash", handle.tell(), size, name)
        found.append({"path": name, "sha256": digest.hexdigest(), "size_bytes": size})
    return found


def build_manifest(
    request: ExportRequest,
    session: Session,
    mix: ResolvedMix,
    files: list[dict[str, Any]],
    figures: Mapping[str, Any],
) -> dict[str, Any]:
    """The keys of the format, then ours: gate_mode, mix, mix_name, ranks, base, document, versions, parity, drift.

    `figures` adds merged, ollama_name, mix_rank, parity, drift, says_system_prompt (None: the document has none) and
    what else the target knows.
    """
    document, base = session.document, session.base
    used = [name for name, weight in mix.weights if weight != 0.0]
    adapters = {name: session.model.adapters[name] for name in used}
    current = {name: current_version(session.store, name) for name in used}
    versions = {name: version.version if version is not None else 1 for name, version in current.items()}
    return {
        "target": request.target,
        "quant": request.quant if request.target in GGUF_TARGETS else "hf",
        "merged": False,
        "dequantized": False,
        "ollama_name": None,
        "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "created_by": f"{CREATOR}{__version__}",
        "llama_cpp_tag": None,
        "base_model_hf_id": base.identity.id,
        "base_model_revision": base.identity.revision,
        # several adapters have no common version: the format then says 1
        "adapter_version": versions[used[0]] if len(used) == 1 else 1,
        "artifacts": files,
        "gate_mode": mix.gate_mode,
        "mix": [[name, weight] for name, weight in mix.weights],
        "mix_name": request.mix_name,
        "adapters": {
            name: {"version": versions[name], "rank": adapter.rank, "parameterization": adapter.parameterization}
            for name, adapter in adapters.items()
        },
        "base": {
            "id": base.identity.id,
            "revision": base.identity.revision,
            "weights_sha256": base.identity.weights_sha256,
            "tokenizer_sha256": base.identity.tokenizer_sha256,
            "dtype": str(base.dtype).removeprefix("torch."),
        },
        "document": {"dlm_id": document.dlm_id, "sha256": document.sha256, "base_model": document.base_model},
        "versions": tool_versions(),
        **figures,
    }


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """The last file of an export: its presence says that all others are complete."""
    write_atomic(folder / MANIFEST, json_bytes(dict(manifest)))
