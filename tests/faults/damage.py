"""One file of a small store changed at random, and what is in force as a session reads it."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from dlm_tui.document import load
from dlm_tui.store import (
    MetricsReader,
    adapter_versions,
    check_gate_files,
    read_gate_config,
    read_gate_record,
    refuse_foreign_base,
    verify_version,
)
from tests.faults.small_store import NAMES, SmallStore

_SHARES = (
    ("adapter_model.safetensors", 4),
    ("adapter_config.json", 3),
    ("current.txt", 4),
    ("tui_version.json", 2),
    ("gate.safetensors", 3),
    ("gate_config.json", 3),
    ("tui_gate.json", 3),
    ("manifest.json", 4),
    ("dlm.lock", 1),
    ("metrics.sqlite", 4),
    ("tui_history.json", 1),
    (".journal.tui", 2),
    (".lock", 1),
    ("metrics.sqlite-wal", 1),
)


def damage(small: SmallStore, chance: random.Random) -> str:
    """Change one file; returns what was done."""
    names, shares = zip(*_SHARES, strict=True)
    name = chance.choices(names, shares)[0]
    found = sorted(path for path in small.store.root.rglob(name) if path.is_file())
    path = chance.choice(found) if found else small.store.root / name
    data = path.read_bytes() if found else b""
    how, changed = _change(data, chance)
    if changed is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(changed)
    return f"{path.relative_to(small.store.root)} ({how})"


def in_force(small: SmallStore) -> dict[str, str]:
    """File → hash of everything that a session would use now. Raises the program's sentences."""
    store, document = small.store, load(small.document)
    refuse_foreign_base(store, document)
    used: list[Path] = []
    versions = adapter_versions(store, NAMES)
    found = {name: str(version.version) for name, version in versions.items()}
    for version in versions.values():
        verify_version(store, version)
        used += [version.path / "adapter_model.safetensors", version.path / "adapter_config.json"]
    if len(versions) != len(NAMES):
        found["adapters"] = "some are gone"
    config = read_gate_config(store)
    if config is not None:
        check_gate_files(store, config)
        found["gate"] = str(config)
        record = read_gate_record(store)
        if record is not None:  # without one the gate is as good as another tool's
            found["gate's record"] = str(sorted(record.items()))
        used.append(store.gate_dir / "gate.safetensors")
    reader = MetricsReader(store)
    reader.runs()
    reader.gate_history()
    reader.exports()
    for path in used:
        found[path.relative_to(store.root).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _change(data: bytes, chance: random.Random) -> tuple[str, bytes | None]:
    how = chance.choice(("bit", "bit", "bit", "digit", "cut", "empty", "zeros", "noise", "nested", "gone", "twice"))
    place = chance.randrange(len(data)) if data else 0
    if how == "bit" and data:
        return f"bit {place}", data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
    digits = [index for index, byte in enumerate(data) if chr(byte).isdigit()]
    if how == "digit" and digits:
        place = chance.choice(digits)
        return f"digit {place}", data[:place] + str(chance.randrange(10)).encode() + data[place + 1 :]
    if how == "cut":
        return f"cut at {place}", data[:place]
    if how == "zeros" and data:
        size = min(len(data) - place, 512)
        return f"zeros at {place}", data[:place] + b"\0" * size + data[place + size :]
    if how == "noise":
        return "noise", chance.randbytes(max(16, len(data) // 2))
    if how == "nested":
        return "nested", b"[" * 200_000
    if how == "gone":
        return "gone", None
    if how == "twice":
        return "twice", data + data
    return "empty", b""
