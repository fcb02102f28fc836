"""A small store without torch: what changes it as the program does, and what must hold of it at any moment."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

from dlm_tui.document import append_section, load
from dlm_tui.export.atomic_folder import publish
from dlm_tui.files import json_bytes, remove, scratch_sibling, write_atomic
from dlm_tui.store import (
    ExportRecord,
    GateConfig,
    Manifest,
    MetricsReader,
    MetricsWriter,
    RunLog,
    Store,
    TrainingRun,
    adapter_versions,
    change,
    check_gate_files,
    new_version,
    put_in_force,
    read_gate_config,
    read_gate_record,
    read_lock_record,
    read_manifest,
    run_lock,
    seal_version,
    stage_lock_record,
    stage_manifest,
    store_lock,
    update_manifest,
    utc_seconds,
    verify_version,
    write_gate_config,
    write_gate_record,
)
from dlm_tui.store.adapter_history import use_versions
from dlm_tui.store.former_gates import GateAt, stage_former

ID = "01JCAMPA1GNCAMPA1GNCAMPA1G"
NAMES = ("tone", "style")
Told = Callable[[str], None]
_DOCUMENT = f"""---
dlm_id: {ID}
dlm_version: 15
base_model: tiny
training:
  adapters: {{tone: {{}}, style: {{}}}}
  gate: {{enabled: true}}
---
::prose#tone::
begin
"""


class SmallStore:
    """A document and its store below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.document = root / "d.dlm"
        self.store = Store(root / "home", ID)

    def make(self) -> SmallStore:
        """Trained twice, with a gate, an export and a label."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.document.write_text(_DOCUMENT)
        self.store.create()
        chance = random.Random(0)
        for token in ("first", "second"):
            self.train(token, _nobody, chance)
        self.gate("second", _nobody)
        self.export("second", _nobody)
        self.label("second", _nobody)
        return self

    # ---- what the program does -------------------------------------------------------------------------------------

    def train(self, token: str, told: Told, chance: random.Random) -> None:
        """Both adapters on new weights that carry `token`, in force together: `training/pipeline` without torch."""
        store = self.store
        with run_lock(store), MetricsWriter(store) as metrics:
            done = []
            for name in NAMES:
                version = new_version(store, name)
                run_id = metrics.begin_run("sft", 0, adapter_version=version.version, adapter_name=name)
                with RunLog(store, run_id) as log:
                    metrics.record_step(run_id, 1, chance.random(), 0.1)
                    log.step(1, 1.0, 0.1)
                write_atomic(version.path / "adapter_model.safetensors", token.encode() * 64)
                write_atomic(version.path / "adapter_config.json", json_bytes({"r": 1, "token": token}))
                seal_version(version, token)
                done.append((run_id, version))

            def record(manifest: Manifest) -> None:
                manifest.source_path = token
                for run_id, version in done:
                    manifest.adapter_versions[version.name] = version.version
                    manifest.training_runs.append(
                        TrainingRun(
                            run_id=run_id,
                            started_at=utc_seconds(),
                            adapter_version=version.version,
                            seed=0,
                            steps=1,
                            status="completed",
                            adapter_name=version.name,
                            token=token,
                        )
                    )

            with store_lock(store, 20.0), change(store) as together:
                for _, version in done:
                    put_in_force(store, version, together)
                stage_manifest(store, together, record, base_model="tiny")
                stage_lock_record(
                    store,
                    together,
                    dlm_sha256=hashlib.sha256(token.encode()).hexdigest(),
                    seed=0,
                    last_run_id=done[-1][0],
                    base_model_revision=None,
                    pinned_versions={},
                )
            told(f"set {token} {' '.join(str(run_id) for run_id, _ in done)}")
            for run_id, _ in done:
                metrics.finish_run(run_id)

    def gate(self, token: str, told: Told) -> None:
        """All files of the gate as one swap: `gate/gate.save_gate` without torch, recorded as `gate/training` does."""
        store = self.store
        with MetricsWriter(store) as metrics:
            run_id = metrics.begin_run("gate", 0)
            with store_lock(store, 20.0), change(store) as together:
                folder = scratch_sibling(store.gate_dir)
                folder.mkdir(parents=True)
                try:
                    staged = GateAt(store, folder)
                    write_atomic(folder / "gate.safetensors", token.encode() * 64)
                    write_gate_config(staged, GateConfig(NAMES, 0.01, 8, 4, "trained"))
                    hashes = {
                        f"{key}_sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()
                        for key, name in (("gate", "gate.safetensors"), ("config", "gate_config.json"))
                    }
                    write_gate_record(staged, {"format": 1, "run_id": run_id, "base_id": token, **hashes})
                    stage_former(store, together)
                    together.replace_folder(store.gate_dir, folder)
                except BaseException:
                    remove(folder)
                    raise
            metrics.record_gate_events(run_id, [(name, 0.5, 4) for name in NAMES], "trained")
            metrics.finish_run(run_id)
            told(f"gate {token} {run_id}")

    def label(self, token: str, told: Told) -> None:
        """A section at the end of the document."""
        append_section(
            self.document, load(self.document).sha256, type="prose", adapter="tone", content=f"label {token}"
        )
        told(f"label {token}")

    def use(self, told: Told) -> None:
        """Back to the versions before, and forward again."""
        with store_lock(self.store, 20.0):
            now = {name: version.version for name, version in adapter_versions(self.store, NAMES).items()}
            manifest = read_manifest(self.store)
            assert manifest is not None
            sets = _finished_sets(manifest)
            other = sets[-2] if now == sets[-1] else sets[-1]
            use_versions(self.store, other)
        told("use")

    def export(self, token: str, told: Told) -> None:
        """One folder, whole or as it was before, and its row."""
        with publish(self.store.exports_dir / "peft") as scratch:
            for name in ("a.bin", "b.bin"):
                write_atomic(scratch / name, token.encode() * 64)
            manifest = {
                "created_by": "dlm-tui-test",
                "artifacts": [{"path": name, "sha256": "", "size_bytes": 0} for name in ("a.bin", "b.bin")],
            }
            write_atomic(scratch / "export_manifest.json", json_bytes(manifest))
        record = ExportRecord(exported_at=utc_seconds(), target="peft", quant="hf", ollama_name=f"t:{token}")
        update_manifest(self.store, lambda stored: stored.exports.append(record), timeout=20.0)
        with MetricsWriter(self.store) as metrics:
            metrics.record_export(target="peft", ollama_name=token)
        told(f"export {token}")

    def look(self, told: Told) -> None:
        """What a reader asks."""
        assert set(adapter_versions(self.store, NAMES)) == set(NAMES)
        reader = MetricsReader(self.store)
        reader.runs()
        reader.gate_history()
        reader.exports()
        told("look")

    # ---- what must hold --------------------------------------------------------------------------------------------

    def mixed(self) -> list[str]:
        """Things that belong together and are of different trainings."""
        versions = adapter_versions(self.store, NAMES)
        found = []
        tokens = {}
        for name, version in versions.items():
            verify_version(self.store, version)
            token = json.loads((version.path / "adapter_config.json").read_bytes())["token"]
            weights = (version.path / "adapter_model.safetensors").read_bytes()
            if weights != token.encode() * 64:
                found.append(f"{name}: weights and configuration")
            tokens[name] = token
        if set(versions) != set(NAMES) or len(set(tokens.values())) != 1:
            found.append(f"adapters: {tokens}")
        manifest = read_manifest(self.store)
        read_lock_record(self.store)
        recorded = dict(manifest.adapter_versions) if manifest else {}
        if recorded != {name: version.version for name, version in versions.items()}:
            found.append(f"manifest {recorded}, pointers {versions}")
        config = read_gate_config(self.store)
        if config is not None:
            check_gate_files(self.store, config)
            record = read_gate_record(self.store) or {}
            if (self.store.gate_dir / "gate.safetensors").read_bytes() != str(record.get("base_id")).encode() * 64:
                found.append("gate weights and record")
        export = self.store.exports_dir / "peft"
        if export.exists() and len({(export / name).read_bytes() for name in ("a.bin", "b.bin")}) != 1:
            found.append("export")
        return found

    def lost(self, acknowledged: list[str]) -> list[str]:
        """What a process said was done, and is not there."""
        found = []
        texts = {section.content for section in load(self.document).sections}
        reader = MetricsReader(self.store)
        found += [f"integrity: {text}" for text in reader.problems()]
        rows = {row["run_id"]: row for row in reader.runs(limit=None)}
        manifest = read_manifest(self.store)
        runs = {run.run_id for run in manifest.training_runs} if manifest else set()
        exports = [record.ollama_name for record in manifest.exports] if manifest else []
        names = [row.get("target") for row in reader.exports(None)]
        for line in acknowledged:
            what, *rest = line.split()
            there = {
                "label": lambda line=line: line in texts,
                "set": lambda rest=rest: all(int(run) in runs and int(run) in rows for run in rest[1:]),
                "gate": lambda rest=rest: rows[int(rest[1])]["status"] == "ok" and reader.gate_events(int(rest[1])),
                "export": lambda rest=rest: f"t:{rest[0]}" in exports,
            }
            if what in there and not there[what]():
                found.append(line)
        if len(names) < sum(line.startswith("export") for line in acknowledged):
            found.append(f"export rows: {len(names)}")
        return found

    def litter(self) -> list[str]:
        """Scratch files and unfinished versions, after the next training has had its chance."""
        found = [path for path in self.root.rglob("*") if ".tmp." in path.name]
        found += [
            path for path in self.store.adapters_dir.rglob("tui_version.json") if b'"filling"' in path.read_bytes()
        ]
        running = [f"run {row['run_id']}" for row in MetricsReader(self.store).runs(None) if row["status"] == "running"]
        return [path.relative_to(self.root).as_posix() for path in found] + running


def _finished_sets(manifest: Manifest) -> list[dict[str, int]]:
    """The versions of each training, oldest first."""
    sets: dict[str, dict[str, int]] = {}
    for run in sorted(manifest.training_runs, key=lambda run: run.run_id):
        sets.setdefault(str((run.model_extra or {}).get("token")), {})[run.adapter_name or ""] = run.adapter_version
    return [versions for versions in sets.values() if set(versions) == set(NAMES)]


def _nobody(_: str) -> None:
    """Nobody asks."""
