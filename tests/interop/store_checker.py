"""Checks every file of a store against the written formats; knows nothing of the product's own code.

`check_store(root, adapters)` raises AssertionError naming the file. `trimmed=True` accepts stores from which large
files were removed (weights, run logs, the replay corpus).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sqlite3
import struct
from pathlib import Path
from typing import Any

from tests.interop.peer_fixture import peer_root

SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
SECONDS_Z = re.compile(SECONDS.pattern + "Z")
HEX64 = re.compile(r"[0-9a-f]{64}")
VERSION = re.compile(r"v(\d{4,})(-rejected(-\d+)?)?")
_LAYOUT = """manifest.json dlm.lock .lock .lock.tui metrics.sqlite metrics.sqlite-wal metrics.sqlite-shm adapter logs
replay exports cache tokenized-cache blobs vl-cache audio-cache audio-waveform-cache controls preference synth"""
TOP_LEVEL = set(_LAYOUT.split())
TEXT, NUMBER, MAP, FLAG = (str,), (int, float), (dict,), (bool,)
NONE = type(None)

MANIFEST = {
    "dlm_id": TEXT,
    "base_model": TEXT,
    "schema_version": (int,),
    "created_at": TEXT,
    "updated_at": TEXT,
    "base_model_revision": (str, NONE),
    "base_model_sha256": (str, NONE),
    "adapter_sha256": (str, NONE),
    "adapter_config_sha256": (str, NONE),
    "source_path": (str, NONE),
    "adapter_version": (int,),
    "adapter_versions": MAP,
    "training_runs": (list,),
    "exports": (list,),
    "content_hashes": MAP,
    "pinned_versions": MAP,
    "license_acceptance": (dict, NONE),
}
RUN = {
    "run_id": (int,),
    "started_at": TEXT,
    "ended_at": (str, NONE),
    "adapter_version": (int,),
    "base_model_revision": (str, NONE),
    "seed": (int,),
    "steps": (int,),
    "final_train_loss": (*NUMBER, NONE),
    "final_val_loss": (*NUMBER, NONE),
    "status": TEXT,
    "pinned_versions": MAP,
    "summary_path": (str, NONE),
    "adapter_name": (str, NONE),
    "weight_distribution": (dict, NONE),
}
LOSS_UNITS = {
    "sft": "nats per token",
    "dpo": "nats per pair",
    "dpo-hinge": "margin per pair",
    "dpo-ipo": "nats² per pair",
    "orpo": "nats per pair",
    "signed": "nats per token",
}
EXPORT = {
    "exported_at": TEXT,
    "target": TEXT,
    "quant": TEXT,
    "merged": FLAG,
    "ollama_name": (str, NONE),
    "ollama_version": (str, NONE),
    "llama_cpp_tag": (str, NONE),
    "base_gguf_sha256": (str, NONE),
    "adapter_gguf_sha256": (str, NONE),
    "smoke_output_first_line": (str, NONE),
    "adapter_name": (str, NONE),
    "adapter_mix": (list, NONE),
}
LOCK_RECORD = {
    "lock_version": (int,),
    "created_at": TEXT,
    "dlm_id": TEXT,
    "dlm_sha256": TEXT,
    "base_model_revision": (str, NONE),
    "base_model_sha256": (str, NONE),
    "pinned_versions": MAP,
    "cuda_version": (str, NONE),
    "rocm_version": (str, NONE),
    "hardware_tier": TEXT,
    "seed": (int,),
    "determinism_flags": MAP,
    "determinism_class": TEXT,
    "license_acceptance": (dict, NONE),
    "last_run_id": (int,),
    "world_size": (int,),
}


def check_store(root: Path, adapters: list[str], *, trimmed: bool = False) -> None:
    """Check the store at `root`; `adapters` are those that must have a committed version, in declared order."""
    for path in sorted(root.iterdir()):
        _that(path.name in TOP_LEVEL or path.name.startswith("tui_"), path, "is no part of the layout")
    manifest = _manifest(root, trimmed)
    _lock_record(root)
    for name in adapters:
        _adapter(root, name, manifest, trimmed)
    if adapters:
        _gate(root / "adapter" / "_gate", adapters)
    if (root / "metrics.sqlite").exists():
        _metrics(root / "metrics.sqlite")
    _logs(root / "logs")
    _replay(root / "replay")
    _exports(root / "exports")


def _that(condition: bool, path: Path, what: str) -> None:
    if not condition:
        raise AssertionError(f"{path}: {what}")


def _json(path: Path, *, canonical: bool = True) -> Any:
    _that(path.is_file(), path, "is missing")
    data = path.read_bytes()
    value = json.loads(data.decode("utf-8"))
    if canonical:
        text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        _that(data == text.encode(), path, "is not sorted, indented by two and ended by a line feed")
    return value


def _shape(path: Path, value: Any, keys: dict[str, tuple[type, ...]], where: str = "") -> None:
    _that(isinstance(value, dict), path, f"{where} is no object")
    _that(set(value) == set(keys), path, f"{where} keys differ: {sorted(set(value) ^ set(keys))}")
    for key, types in keys.items():
        good = isinstance(value[key], types) and (bool in types or not isinstance(value[key], bool))
        _that(good, path, f"{where}.{key} is {value[key]!r}")
        if isinstance(value[key], float):
            _that(math.isfinite(value[key]), path, f"{where}.{key} is not finite")


def _manifest(root: Path, trimmed: bool) -> dict[str, Any]:
    path = root / "manifest.json"
    value = _json(path)
    _shape(path, value, MANIFEST)
    _that(value["schema_version"] == 1 and value["dlm_id"] == root.name, path, "names another version or document")
    for key in ("created_at", "updated_at"):
        _that(bool(SECONDS.fullmatch(value[key])), path, f"{key} is {value[key]!r}")
    seen: set[int] = set()
    for run in value["training_runs"]:
        _shape(path, run, RUN, "training_runs")
        _that(run["run_id"] >= 1 and run["run_id"] not in seen, path, f"run id {run['run_id']}")
        seen.add(run["run_id"])
        _that(run["adapter_version"] >= 1 and run["steps"] >= 0, path, f"run {run['run_id']} counts")
        _that(run["status"] in ("running", "completed", "failed", "cancelled"), path, run["status"])
        _that(bool(SECONDS.fullmatch(run["started_at"])), path, f"started_at {run['started_at']}")
        if run["ended_at"] is not None:
            _that(bool(SECONDS.fullmatch(run["ended_at"])), path, f"ended_at {run['ended_at']}")
            _that(run["started_at"] <= run["ended_at"], path, f"run {run['run_id']} ended before it started")
        if run["summary_path"] is not None and not trimmed:
            _that((root / run["summary_path"]).is_file(), root / run["summary_path"], "is missing")
            _same_losses(path, run, _json(root / run["summary_path"]))
    for export in value["exports"]:
        _shape(path, export, EXPORT, "exports")
        for entry in export["adapter_mix"] or []:
            good = len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], NUMBER)
            _that(good, path, f"adapter_mix entry {entry!r}")
    for key, same in value["content_hashes"].items():
        _that(key == same and re.fullmatch(r"[0-9a-f]{16}", key) is not None, path, f"content hash {key!r}")
    return value


def _same_losses(path: Path, run: dict[str, Any], summary: dict[str, Any]) -> None:
    """A run's losses in the manifest and in its summary, where somebody recorded of what kind they are."""
    for key in ("final_train_loss", "final_val_loss"):
        _that(run[key] == summary[key], path, f"run {run['run_id']}: {key} is not that of its summary")
    kind = run["pinned_versions"].get("final_train_loss_kind")
    if kind is None:
        return
    _that(kind in LOSS_UNITS and kind == summary["final_train_loss_kind"], path, f"a loss of kind {kind!r}")
    _that(summary["final_train_loss_unit"] == LOSS_UNITS[kind], path, f"{kind} in {summary['final_train_loss_unit']!r}")
    for loss in summary["train_losses"]:
        _that(loss["unit"] == LOSS_UNITS[loss["kind"]], path, f"{loss['kind']} in {loss['unit']!r}")
    _that(summary["train_losses"][-1]["value"] == run["final_train_loss"], path, "the last loss is not the final one")


def _lock_record(root: Path) -> None:
    path = root / "dlm.lock"
    if not path.exists():
        return
    value = _json(path)
    _shape(path, value, LOCK_RECORD)
    _that(value["lock_version"] == 1 and value["dlm_id"] == root.name, path, "names another version or document")
    _that(bool(re.fullmatch(SECONDS.pattern + r"\.\d{6}Z", value["created_at"])), path, value["created_at"])
    _that(bool(HEX64.fullmatch(value["dlm_sha256"])), path, "dlm_sha256")
    tiers = ("cuda-sm80+", "cuda-sm<80", "mps", "cpu", "rocm")
    _that(value["hardware_tier"] in tiers, path, value["hardware_tier"])
    _that(value["determinism_class"] in ("strong", "best-effort", "advisory"), path, value["determinism_class"])
    _that(value["last_run_id"] >= 1 and value["world_size"] >= 1, path, "counts start at 1")


def _adapter(root: Path, name: str, manifest: dict[str, Any], trimmed: bool) -> None:
    folder = root / "adapter" if name == "default" else root / "adapter" / name
    pointer = folder / "current.txt"
    _that(pointer.is_file(), pointer, "is missing")
    text = pointer.read_text(encoding="utf-8")
    prefix = folder.relative_to(root).as_posix() + "/versions/"
    _that(text.startswith(prefix) and text.endswith("\n") and text.count("\n") == 1, pointer, repr(text))
    for version in (folder / "versions").iterdir():
        _that(bool(VERSION.fullmatch(version.name)) and version.is_dir(), version, "is no version folder")
    current = root / text.strip()
    match = VERSION.fullmatch(current.name)
    _that(match is not None and match.group(2) is None and current.is_dir(), pointer, f"names {current.name}")
    assert match is not None
    recorded = manifest["adapter_version"] if name == "default" else manifest["adapter_versions"].get(name)
    _that(recorded == int(match.group(1)), root / "manifest.json", f"says version {recorded} of {name}")
    _version(current, trimmed)


def _version(folder: Path, trimmed: bool) -> None:
    config_path = folder / "adapter_config.json"
    config = _json(config_path, canonical=False)
    _that(config.get("peft_type") == "LORA", config_path, f"peft_type {config.get('peft_type')!r}")
    _that(config.get("bias") == "none" and config.get("task_type") == "CAUSAL_LM", config_path, "bias or task")
    _that(isinstance(config.get("base_model_name_or_path"), str), config_path, "names no base")
    _that(isinstance(config.get("r"), int) and config["r"] >= 1, config_path, "r")
    weights = folder / "adapter_model.safetensors"
    if weights.exists() or not trimmed:
        _lora(weights, config)
    run = _json(folder / "training_run.json", canonical=False)
    _that(isinstance(run.get("use_qlora"), bool), folder / "training_run.json", "use_qlora")
    pinned_path = folder / "pinned_versions.json"
    pinned = _json(pinned_path, canonical=False)
    _that({"torch", "transformers", "peft"} <= set(pinned), pinned_path, f"has {sorted(pinned)}")
    _that(all(isinstance(v, (str, NONE)) for v in pinned.values()), pinned_path, "versions are strings or null")
    _that((folder / "tokenizer_config.json").is_file(), folder / "tokenizer_config.json", "is missing")
    state = folder / "training_state.pt"
    if state.exists():
        expected = hashlib.sha256(state.read_bytes()).hexdigest() + "\n"
        _that((folder / "training_state.pt.sha256").read_text() == expected, state, "does not match its hash")
    rng_path = folder / "training_state.rng.json"
    if rng_path.exists():
        rng = _json(rng_path, canonical=False)
        _that(rng.get("_rng_sidecar_version") == 2, rng_path, "version")
        _that({"numpy_rng_state", "python_random_state"} <= set(rng), rng_path, f"has {sorted(rng)}")


def safetensors_header(path: Path) -> tuple[dict[str, Any], Any]:
    """Tensors of a safetensors file (name → dtype, shape, data_offsets) and its metadata, read by hand."""
    _that(path.is_file(), path, "is missing")
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    ends = [tensor["data_offsets"][1] for tensor in header.values()]
    _that(max(ends, default=0) == len(data) - 8 - length, path, "has bytes that no tensor owns")
    return header, metadata


def _lora(path: Path, config: dict[str, Any]) -> None:
    tensors, _ = safetensors_header(path)
    pairs = {name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_" in name}
    _that(bool(pairs), path, "has no low-rank pair")
    for name in tensors:
        _that(name.startswith("base_model.model."), path, f"tensor {name}")
    for name in pairs:
        lora_A, lora_B = tensors.get(f"{name}.lora_A.weight"), tensors.get(f"{name}.lora_B.weight")
        _that(lora_A is not None and lora_B is not None, path, f"{name} has half a pair")
        assert lora_A is not None and lora_B is not None
        _that(lora_A["shape"][0] == lora_B["shape"][1], path, f"{name} ranks differ")
        if not config.get("rank_pattern"):
            _that(lora_A["shape"][0] == config["r"], path, f"{name} is not of rank {config['r']}")


def _gate(folder: Path, adapters: list[str]) -> None:
    path = folder / "gate_config.json"
    if not path.exists():
        return
    config = _json(path)
    keys = {"adapter_names": (list,), "entropy_lambda": NUMBER, "hidden_proj_dim": (int,), "input_dim": (int,)}
    _shape(path, config, {**keys, "mode": TEXT})
    _that(config["adapter_names"] == adapters, path, f"names {config['adapter_names']}")
    _that(config["mode"] in ("trained", "uniform"), path, config["mode"])
    if config["mode"] == "trained":
        weights = folder / "gate.safetensors"
        tensors, metadata = safetensors_header(weights)
        _that(metadata is None, weights, "has metadata")
        hidden, inputs, count = config["hidden_proj_dim"], config["input_dim"], len(adapters)
        shapes = {"0.weight": [hidden, inputs], "0.bias": [hidden], "2.weight": [count, hidden], "2.bias": [count]}
        _that({name: t["shape"] for name, t in tensors.items()} == shapes, weights, "has other tensors")
        _that(all(t["dtype"] == "F32" for t in tensors.values()), weights, "is not float32")
    for path in folder.iterdir():
        known = path.name in ("gate_config.json", "gate.safetensors") or path.name.startswith("tui_")
        _that(known, path, "is no gate file")
    record = folder / "tui_gate.json"
    if record.exists():
        _that(isinstance(_json(record), dict), record, "is no object")


def _columns(connection: sqlite3.Connection) -> dict[str, list[tuple[Any, ...]]]:
    names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {name: connection.execute(f'PRAGMA table_info("{name}")').fetchall() for name in names}


def _metrics(path: Path) -> None:
    _that(path.read_bytes()[18:20] == b"\x02\x02", path, "is not in WAL mode")
    model = sqlite3.connect(":memory:")
    schema = (peer_root() / "metrics_schema.sql").read_text(encoding="utf-8")
    model.executescript(schema.replace("CREATE TABLE sqlite_sequence(name,seq);", ""))
    expected = _columns(model)
    model.close()
    busy = Path(f"{path}-wal")
    quiet = not busy.exists() or busy.stat().st_size == 0
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if quiet else ''}", uri=True)
    try:
        found = _columns(connection)
        for name, columns in expected.items():
            _that(found.get(name) == columns, path, f"table {name} differs")
        for name in set(found) - set(expected):
            _that(name.startswith("tui_"), path, f"table {name} is neither shared nor ours")
        _that(connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok", path, "is damaged")
        _that(not connection.execute("PRAGMA foreign_key_check").fetchall(), path, "has rows without a run")
        _metrics_rows(path, connection)
    finally:
        connection.close()


def _metrics_rows(path: Path, connection: sqlite3.Connection) -> None:
    for run_id, started, ended, status in connection.execute("SELECT run_id, started_at, ended_at, status FROM runs"):
        _that(run_id >= 1 and bool(SECONDS_Z.fullmatch(started)), path, f"run {run_id} started {started!r}")
        _that(ended is None or bool(SECONDS_Z.fullmatch(ended)), path, f"run {run_id} ended {ended!r}")
        _that(status in ("running", "ok", "failed", "cancelled"), path, f"run {run_id} is {status!r}")
        _that((ended is None) == (status == "running"), path, f"run {run_id}: {status} with end {ended!r}")
    for table in ("steps", "evals", "gate_events"):
        for (at,) in connection.execute(f"SELECT at FROM {table}"):
            _that(bool(SECONDS_Z.fullmatch(at)), path, f"{table}.at {at!r}")
    events: dict[int, list[tuple[str, float, int]]] = {}
    rows = connection.execute("SELECT run_id, mode, mean_weight, sample_count FROM gate_events")
    for run_id, mode, weight, count in rows:
        events.setdefault(run_id, []).append((mode, weight, count))
    for run_id, found in events.items():
        modes = {mode for mode, _, _ in found}
        _that(len(modes) == 1 and modes <= {"trained", "uniform", "diverged"}, path, f"run {run_id}: {modes}")
        total = math.fsum(weight for _, weight, _ in found)
        if modes == {"diverged"}:
            _that(total == 0.0 and not any(count for _, _, count in found), path, f"run {run_id} diverged")
        else:
            _that(abs(total - 1.0) < 1e-5, path, f"run {run_id}: mean weights sum to {total}")
        if modes == {"uniform"}:
            _that(all(abs(w - 1 / len(found)) < 1e-9 for _, w, _ in found), path, f"run {run_id}: not 1/N")


def _logs(folder: Path) -> None:
    for path in sorted(folder.glob("*")):
        name = re.fullmatch(r"train-(\d{6})-\d{8}T\d{6}\.(jsonl|summary\.json)", path.name)
        _that(name is not None or path.name == "rpc-injected.jsonl", path, "has no run log's name")
        if name is None:
            continue
        if name.group(2) == "summary.json":
            summary = _json(path)
            wanted = {"run_id", "adapter_version", "seed", "steps", "early_stopped", "duration_seconds"}
            wanted |= {"determinism_class", "probes", "source_directives"}
            _that(wanted <= set(summary), path, f"lacks {sorted(wanted - set(summary))}")
            _that(summary["run_id"] == int(name.group(1)), path, "is of another run")
            continue
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        _that(bool(lines) and lines[0]["type"] == "banner", path, "does not begin with the banner")
        for line, text in zip(lines, path.read_text(encoding="utf-8").splitlines(), strict=True):
            _that(text == json.dumps(line, sort_keys=True, ensure_ascii=False), path, "has unsorted keys")
        banner = {"run_id", "seed", "determinism_class", "determinism_notes", "pinned_versions", "plan"}
        _that(banner <= set(lines[0]), path, f"banner lacks {sorted(banner - set(lines[0]))}")
        for line in lines:
            if line["type"] == "step":
                step = {"step", "loss", "lr", "grad_norm", "tokens_per_sec", "val_loss", "timestamp"}
                _that(step <= set(line), path, f"step lacks {sorted(step - set(line))}")
                _that(bool(SECONDS.match(line["timestamp"])), path, line["timestamp"])
                if "loss_kind" in line:
                    same = LOSS_UNITS.get(line["loss_kind"]) == line["loss_unit"]
                    _that(same, path, f"{line['loss_kind']} in {line['loss_unit']!r}")


def _replay(folder: Path) -> None:
    if not (folder / "index.json").exists():
        return
    index = _json(folder / "index.json", canonical=False)
    ids = [entry["section_id"] for entry in index]
    _that(ids == sorted(ids), folder / "index.json", "is not sorted by section id")
    corpus = folder / "corpus.zst"
    if corpus.exists():
        size = corpus.stat().st_size
        for entry in index:
            inside = entry["byte_offset"] >= 0 and entry["byte_offset"] + entry["length"] <= size
            _that(inside, folder / "index.json", f"{entry['section_id']} lies outside the corpus")


def _exports(folder: Path) -> None:
    for path in sorted(folder.glob("*/export_manifest.json")):
        value = _json(path)
        wanted = "target quant merged dequantized ollama_name created_at created_by llama_cpp_tag base_model_hf_id"
        missing = {*wanted.split(), "base_model_revision", "adapter_version", "artifacts"} - set(value)
        _that(not missing, path, f"lacks {sorted(missing)}")
        _that(bool(SECONDS.fullmatch(value["created_at"])), path, value["created_at"])
        _that(value["adapter_version"] >= 1, path, "adapter_version")
        for artifact in value["artifacts"]:
            file = path.parent / artifact["path"]
            _that(file.is_file() and file.resolve().is_relative_to(path.parent.resolve()), file, "is missing")
            _that(file.stat().st_size == artifact["size_bytes"], file, "has another size")
            _that(hashlib.sha256(file.read_bytes()).hexdigest() == artifact["sha256"], file, "has another hash")
