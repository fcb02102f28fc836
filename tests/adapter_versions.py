"""Stores with finished trainings, without a model: what the tests of versions start from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dlm_tui.files import json_bytes
from dlm_tui.store import Manifest, Store, TrainingRun, commit_version, new_version, update_manifest


def rewrite_record(folder: Path, **changes: object) -> None:
    """Another record of a version, as if the program had written it."""
    path = folder / "tui_version.json"
    record = {**json.loads(path.read_bytes()), **changes}
    del record["record_sha256"]
    path.write_bytes(json_bytes({**record, "record_sha256": hashlib.sha256(json_bytes(record)).hexdigest()}))


def finished_training(store: Store, *names: str, run: int) -> dict[str, int]:
    """A training of these adapters, as the pipeline records it, on day `run`; returns adapter → version."""
    made = {}
    for name in names:
        version = new_version(store, name)
        (version.path / "adapter_config.json").write_text(json.dumps({"r": 8, "dlm_parameterization": "lora"}))
        (version.path / "adapter_model.safetensors").write_bytes(bytes(100 * run))
        commit_version(store, version)
        made[name] = version.version

    def record(manifest: Manifest) -> None:
        for offset, (name, number) in enumerate(made.items()):
            manifest.adapter_versions[name] = number
            manifest.training_runs.append(
                TrainingRun(
                    run_id=run + offset,
                    started_at=f"2026-01-0{run}T00:00:00",
                    ended_at=f"2026-01-0{run}T01:00:00",
                    adapter_version=number,
                    seed=1,
                    steps=2,
                    final_train_loss=1.0 / run,
                    status="completed",
                    adapter_name=name,
                )
            )

    update_manifest(store, record, base_model="pocket")
    return made
