"""Everything there is to say about a document and its store, as `dlm show --json` says it (formats §14.1)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm_tui.document import (
    DirectiveError,
    Document,
    SideFile,
    SideFileError,
    document_side_file,
    source_bindings,
    sources,
)
from dlm_tui.document.probes import PROSE_PROBE_CHARS
from dlm_tui.errors import DlmTuiError
from dlm_tui.small_files import read_file
from dlm_tui.store.adapter_kind import training_records
from dlm_tui.store.errors import REMEDY, GateFileError, MetricsError, PointerError, StoreError
from dlm_tui.store.gate_files import read_gate_record
from dlm_tui.store.gate_state import GateState, GateStatus, gate_state, gate_status
from dlm_tui.store.layout import FLAT, Store
from dlm_tui.store.manifest import Manifest, read_manifest
from dlm_tui.store.metrics_reader import MetricsReader
from dlm_tui.store.owner import other_owner
from dlm_tui.store.training_numbers import training_numbers
from dlm_tui.store.version_record import damaged_notes
from dlm_tui.store.versions import (
    adapter_versions,
    current_version,
    latest_version,
    stored_adapters,
    trained_without_manifest,
)
from dlm_tui.training.plan import plan_training

if TYPE_CHECKING:
    from dlm_tui.model.registry import BaseSource


def show_report(
    home: Path, document: Document, *, base: BaseSource | None = None, problems: Sequence[str] = ()
) -> dict[str, Any]:
    """The keys of formats §14.1 and ours: `document`, `adapters`, `gate_state`, `base`, `problems`, `training_plan`,
    `trained`, `opened_from` (the folder or file that stands in for the document's base, else null), `quantize` and
    `offload` of the side file (null where the base is opened as it is), and `source_adapters` where folders are bound
    to adapters.

    The folders of `training.sources` are read, too. `base` is what is known of the base: the config in its folder
    names the architecture, and it knows which layers `target_modules: auto` means; `problems` are those that are known
    already. Reads only: a store that does not
    exist stays so. Parts that cannot be read become sentences in `problems`; only a broken manifest raises
    (ManifestError).
    """
    store = Store(home, document.dlm_id)
    problems = list(problems)
    manifest = read_manifest(store)
    document, scan, bindings = _with_sources(document, problems)
    if manifest is None:
        report = _not_initialised(document, store)
        if missing := trained_without_manifest(store):
            problems.append(missing + REMEDY)
    else:
        if (owner := other_owner(store, document)) is not None:
            problems.append(f"{owner.sentence(document)}: give this one an id of its own, or say --adopt if it moved")
        report = _initialised(document, store, manifest, problems)
        architecture = _architecture(base.path if base is not None else None)
        if architecture is not None:
            report["base_security"] = {
                "base_model": document.base_model,
                "architecture": architecture,
                "trust_remote_code": False,
            }
    report.update(sources.describe_for_show(document, scan))
    if bindings:
        report["source_adapters"] = bindings
    sections = Counter(section.adapter for section in document.sections)
    if scan is not None:
        # Sections that no folder binds were counted, not kept.
        ingested = sum(section.origin is not None for section in document.sections)
        sections[None] += sum(counts.section_count for counts in scan.counts) - ingested
    untagged = sections.pop(None, 0)
    counts = {name: sections.pop(name, 0) for name in document.adapter_names}
    counts.update({str(name): count for name, count in sections.items()})
    report["document"] = {
        "path": _text(document.path),
        "dlm_id": document.dlm_id,
        "base_model": document.base_model,
        "sections": counts,
        "untagged": untagged,
    }
    report["adapters"] = {name: _current(store, name, problems) for name in document.adapter_names or (FLAT,)}
    try:
        adapter_versions(store, document.adapter_names or (FLAT,))  # also what was in force and is gone
    except StoreError as error:
        problems.append(str(error))
    try:
        recorded_base = manifest.base_model if manifest is not None else None
        report["gate_state"] = gate_status(document, store, recorded_base=recorded_base).as_json()
    except (GateFileError, MetricsError) as error:
        problems.append(str(error))
        report["gate_state"] = GateStatus("damaged", str(error), "none").as_json()
    report["training_plan"] = _training_plan(document, store, scan, base, problems)
    report["trained"] = _trained(store, document)
    report["base"] = _base(store, manifest, problems)
    report["opened_from"] = base.title if base is not None and base.kind == "local" else None
    report.update(_opened_as(document, problems))
    report["problems"] = list(dict.fromkeys(problems))
    return report


def _not_initialised(document: Document, store: Store) -> dict[str, Any]:
    """What is said of a store without a manifest; where it holds something all the same, that is said, too."""
    return {
        "dlm_id": document.dlm_id,
        "base_model": document.base_model,
        "store_initialized": False,
        "source_path": _text(document.path),
        **({"path": str(store.root), "total_size_bytes": store.total_size()} if store.exists() else {}),
        **_training_settings(document),
    }


def _initialised(document: Document, store: Store, manifest: Manifest, problems: list[str]) -> dict[str, Any]:
    finished = [run.ended_at for run in manifest.training_runs if run.ended_at]
    value = manifest.model_dump(mode="json")
    source = _text(document.path) or manifest.source_path
    report: dict[str, Any] = {
        "dlm_id": manifest.dlm_id,
        "path": str(store.root),
        "base_model": manifest.base_model,
        "base_model_revision": manifest.base_model_revision,
        "adapter_version": manifest.adapter_version,
        "training_runs": len(manifest.training_runs),
        "last_trained_at": finished[-1].replace("T", " ") if finished else None,
        "has_adapter_current": _current(store, FLAT, problems) is not None,
        "replay_size_bytes": store.replay_size(),
        "total_size_bytes": store.total_size(),
        "source_path": source,
        "orphaned": source is not None and not Path(source).exists(),
        "exports": value["exports"],
        "content_hashes": manifest.content_hashes,
        "pinned_versions": manifest.pinned_versions,
        "named_adapters": [
            {
                "name": name,
                "has_current": _current(store, name, problems) is not None,
                "latest_version": latest_version(store, name) or 0,
            }
            for name in stored_adapters(store)
        ],
        **_training_settings(document),
    }
    try:
        report.update(_from_metrics(store))
    except (GateFileError, MetricsError) as error:
        problems.append(str(error))
    return report


def _training_settings(document: Document) -> dict[str, Any]:
    cache = document.training.cache
    settings: dict[str, Any] = {
        "training_cache_config": {
            "enabled": cache.enabled,
            "max_bytes": cache.max_bytes,
            "prune_older_than_days": cache.prune_older_than_days,
        }
    }
    return settings


def _opened_as(document: Document, problems: list[str]) -> dict[str, str | None]:
    """How the base is opened where it is large for the machine."""
    try:
        side = document_side_file(document)
    except SideFileError as error:
        problems.append(str(error))
        side = SideFile()
    return {"quantize": side.quantize, "offload": side.offload}


def _with_sources(
    document: Document, problems: list[str]
) -> tuple[Document, sources.SourceScan | None, dict[str, str]]:
    """The document with what its bound folders give, the finished pass or None where it failed, and the bindings."""
    bindings: dict[str, str] = {}
    try:
        bindings = source_bindings(document)
        if document.training.sources:
            document, scan = sources.expand_sources(document, only_bound=True, characters=PROSE_PROBE_CHARS)
            problems += scan.warnings
            return document, scan, bindings
    except (DirectiveError, SideFileError) as error:
        problems.append(str(error))
    return document, None, bindings


def _training_plan(
    document: Document,
    store: Store,
    scan: sources.SourceScan | None,
    base: BaseSource | None,
    problems: list[str],
) -> dict[str, Any] | None:
    """What `train` would do with the document as it is; None where that cannot be said. Folders that are bound to no
    adapter are not read here, so their rows are missing."""
    try:
        plan = plan_training(
            document,
            base_modules=base.target_modules if base is not None else (),
            before={name: record.kind for name, record in training_records(store, document.routing_names).items()},
            weights=scan.weights if scan is not None else None,
        )
    except DlmTuiError as error:
        problems.append(str(error))
        return None
    return plan.as_json()


def _trained(store: Store, document: Document) -> dict[str, Any]:
    """How the version in force of each adapter was trained, where that is known."""
    return {
        name: {
            "kind": record.words,
            "calibration": record.calibration,
            "mean_tail_depth": record.mean_tail_depth,
            "tail_depth": record.tail_depth,
        }
        for name, record in training_records(store, document.routing_names).items()
        if record.words
    }


def _from_metrics(store: Store) -> dict[str, Any]:
    found: dict[str, Any] = {}
    reader = MetricsReader(store)
    found["trainings"] = max(training_numbers(store).values(), default=0)
    tokenization = reader.tokenization()
    if tokenization is not None:
        found["training_cache"] = tokenization
    gate = _gate(gate_state(store))
    if gate is not None:
        found["gate"] = gate
    mined = reader.preference_mining()
    if mined:
        newest = mined[-1]
        found["preference_mining"] = newest
        found["preference_mining_runs"] = [row for row in mined if row["run_id"] == newest["run_id"]]
        found["total_auto_mined_pairs"] = sum(row["mined_pairs"] for row in mined)
    return found


def _gate(state: GateState) -> dict[str, Any] | None:
    events = sorted(state.events, key=lambda event: event.adapter_name)
    per_adapter: list[dict[str, Any]] = [
        {
            "adapter_name": event.adapter_name,
            "mean_weight": event.mean_weight,
            "sample_count": event.sample_count,
            "mode": event.mode,
        }
        for event in events
    ]
    if state.config is None:
        if state.mode != "diverged":
            return None
        mode, names = "diverged", [event.adapter_name for event in events]
    else:
        mode, names = state.config.mode, list(state.config.adapter_names)
    return {
        "mode": mode,
        "adapter_names": names,
        "input_dim": state.config.input_dim if state.config is not None else None,
        "hidden_proj_dim": state.config.hidden_proj_dim if state.config is not None else None,
        "last_run_id": state.last_run_id,
        "per_adapter": per_adapter or [{"adapter_name": name} for name in names],
    }


def _current(store: Store, name: str, problems: list[str]) -> int | None:
    try:
        version = current_version(store, name)
    except PointerError as error:
        problems.append(str(error))
        return None
    if version is None:
        return None
    try:
        problems += damaged_notes(version)
    except StoreError as error:
        problems.append(str(error))
    return version.version


def _base(store: Store, manifest: Manifest | None, problems: list[str]) -> dict[str, Any] | None:
    try:
        record = read_gate_record(store) or {}
    except StoreError as error:
        problems.append(str(error))
        record = {}
    names = {"id": "base_id", "revision": "base_revision"}
    hashes = {"weights_sha256": "weights_sha256", "tokenizer_sha256": "tokenizer_sha256"}
    identity = {key: record.get(source) for key, source in {**names, **hashes}.items()}
    if manifest is not None:
        identity["id"] = identity["id"] or manifest.base_model
        identity["revision"] = identity["revision"] or manifest.base_model_revision
    return identity if any(value is not None for value in identity.values()) else None


def _architecture(base_path: Path | None) -> str | None:
    if base_path is None:
        return None
    try:
        config = json.loads(read_file(base_path / "config.json"))
        first = config["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return first if isinstance(first, str) else None


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
