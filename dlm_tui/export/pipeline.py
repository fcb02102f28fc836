"""One export from request to folder: resolve, write beside, try, describe, swap in, remember."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import msgspec

from dlm_tui.export.atomic_folder import check_destination, check_space, publish
from dlm_tui.export.bookkeeping import record_export
from dlm_tui.export.concatenate import concatenate
from dlm_tui.export.drift import measure_drift
from dlm_tui.export.export_context import ExportContext, Target
from dlm_tui.export.live import LiveTarget
from dlm_tui.export.manifest import artifacts, build_manifest, write_manifest
from dlm_tui.export.mix import ResolvedMix, resolve_mix
from dlm_tui.export.requests import ExportRefused, ExportRequest, ExportResult, Session
from dlm_tui.export.scripts import SEND_SYSTEM
from dlm_tui.export.targets_gguf import LlamaServerTarget, OllamaTarget
from dlm_tui.export.targets_hf import MergedTarget, PeftTarget, VllmTarget
from dlm_tui.export.verify import verify
from dlm_tui.input import with_home
from dlm_tui.progress import Progress
from dlm_tui.system_errors import cause

_SPARE_BYTES = 4 << 20
_BESIDE = ("*.json", "*.jinja", "*.model", "*.txt")
_TARGETS: dict[str, Callable[[ExportContext], Target]] = {
    "ollama": OllamaTarget,
    "llama-server": LlamaServerTarget,
    "peft": PeftTarget,
    "vllm": VllmTarget,
    "merged": MergedTarget,
}


def destination(request: ExportRequest, session: Session) -> Path:
    """Where the export goes: `--out`, else the store's folder of the target (GGUF: of the quantisation).

    The name of a saved mix is part of the folder's.
    """
    request = request.for_document(session.document)
    if request.out:
        chosen = with_home(request.out).absolute()
        return chosen.resolve() if chosen.is_symlink() else chosen
    live = "-live" if request.gate == "live" else ""
    names = {"ollama": f"{request.quant}", "llama-server": f"llama-server{live}-{request.quant}"}
    mix = f"-{request.mix_name}" if request.mix_name else ""
    return session.store.exports_dir / f"{names.get(request.target, request.target)}{mix}"


def _bytes_beside(base: Path | None) -> int:
    """Of a base's files that lie beside its weights: tokenizer and configuration, which exports repeat."""
    found = (path for pattern in _BESIDE for path in base.glob(pattern)) if base is not None else ()
    return sum(path.stat().st_size for path in found if path.is_file())


def export_document(request: ExportRequest, session: Session) -> Generator[Progress, None, ExportResult]:
    """Export the document's adapters under one frozen mix.

    Nothing is written before everything that can be refused has been checked, and nothing replaces an older export
    before the new one is complete and, with verification, has answered as the workbench does. Closing the generator
    stops and cleans up. Raises UsageError and ExportRefused, each with one sentence.
    """
    started = time.monotonic()
    request = request.for_document(session.document)
    _refuse_unsuitable(request, session)
    folder = destination(request, session)
    try:
        check_destination(folder)
        yield Progress("mix")
        mix = yield from resolve_mix(request, session)
        target = _prepare(request, session, mix)
        check_space(folder, target.nbytes + _bytes_beside(session.base.source.path), _SPARE_BYTES)
        drift = (yield from _drift(request, session, mix)) if request.drift else None
        notes = [*mix.notes, *target.notes]
        if session.document.system_prompt is not None and not target.says_system:
            notes.append(f"the document's system prompt is not in this export: {SEND_SYSTEM}")
        with publish(folder) as scratch:
            manifest = yield from _fill(scratch, target, mix, drift, notes)
    except OSError as error:
        raise ExportRefused(
            f"the export cannot be written to {folder}: {cause(error)}; what was there before is unchanged"
        ) from error
    notes += record_export(session, manifest, folder, time.monotonic() - started)
    for note in notes:
        yield Progress("note", text=note)
    return ExportResult(manifest, folder, target.command(folder), notes)


def _refuse_unsuitable(request: ExportRequest, session: Session) -> None:
    """Before anything is worked out: a mix can take minutes to find."""
    quantisation = session.base.quantisation
    if quantisation is not None and request.target != "peft":
        asked = session.base.source.quantize is not None
        before = "as it was before (--quantize none)" if asked else "that this one was made from (--base PATH)"
        raise ExportRefused(
            f"the base is quantised as {quantisation}, and {request.target} would hold other weights than the adapters"
            f" were tried on: export them with --target peft, or open the base {before}"
        )
    if request.verify and session.base.is_offloaded:
        raise ExportRefused("the export cannot be verified: the base has no room in memory; leave --verify away")


def _prepare(request: ExportRequest, session: Session, mix: ResolvedMix) -> Target:
    pairs = concatenate(session.model.adapters, mix.weights)
    session.base.renderer.fold_for_others()
    context = ExportContext(request, session, mix, pairs)
    return LiveTarget(context) if request.gate == "live" else _TARGETS[request.target](context)


def _drift(
    request: ExportRequest, session: Session, mix: ResolvedMix
) -> Generator[Progress, None, dict[str, Any] | None]:
    if mix.drift is not None:
        return mix.drift
    return (yield from measure_drift(session, mix.mapping()))


def _fill(
    scratch: Path, target: Target, mix: ResolvedMix, drift: dict[str, Any] | None, notes: list[str]
) -> Generator[Progress, None, dict[str, Any]]:
    """All files, the trial, and the manifest as the last file."""
    context = target.context
    yield from target.write(scratch)
    tried = yield from verify(target, context, scratch, notes)
    files = yield from artifacts(scratch)
    says_system = None if context.session.document.system_prompt is None else target.says_system
    figures = {**target.figures, **tried, "drift": drift, "says_system_prompt": says_system}
    if context.request.comparison:
        figures["comparison"] = [msgspec.to_builtins(line) for line in context.request.comparison]
    manifest = build_manifest(context.request, context.session, mix, files, figures)
    write_manifest(scratch, manifest)
    return manifest
