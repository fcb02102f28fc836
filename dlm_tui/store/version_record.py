"""`tui_version.json` in a version folder: who is filling it, and what its files were when it was finished.

An addition of this program: versions without it are as valid as before, only no more than their form can be checked.

`claim` in it names the training that has finished the version and not put it in force, by what decides its result: as
long as it stands, the version is that training's to make again or leave. Putting it in force and keeping it take the
claim away for good.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm_tui.files import json_bytes, sha256_file, write_atomic
from dlm_tui.small_files import is_no_file, read_file, regular_file
from dlm_tui.store.errors import REMEDY, StoreError, VersionDamaged
from dlm_tui.store.layout import FLAT, Store
from dlm_tui.store.locks import TRAINING, held_elsewhere
from dlm_tui.store.own_hash import OWN_HASH, own_sha256
from dlm_tui.store.process import Life, is_this_process, life_of_writer, this_process
from dlm_tui.tensor_files import TensorFileDamaged, is_finite, stored_shapes

RECORD_NAME = "tui_version.json"
FORMAT = 2
"""Records of format 1 have no hash of themselves."""
# What an adapter is made of when it is applied; a tokenizer beside it is for other tools.
_APPLIED = ("adapter_model.safetensors", "adapter_config.json")
# What is known of its base and its training.
_NOTES = ("tui_base.json", "tui_training.json", "training_run.json", "pinned_versions.json")
_LIMIT = 1 << 20
WHOLE_BESIDE = "the adapter's own files are whole as far as their form tells"
"""What can be said of a version of which only the record is damaged."""


@dataclass(frozen=True)
class AdapterVersion:
    """One folder `versions/vNNNN` of one adapter."""

    name: str
    version: int
    path: Path


def begin_record(version: AdapterVersion) -> None:
    """Mark a new folder as being filled by this process. Raises OSError."""
    _write(version, "filling", {})


def seal_version(version: AdapterVersion, claim: str | None = None) -> None:
    """Write down the hash and size of every file of a folder that was being filled; `claim` is of the training that is
    going to put it in force. Raises OSError."""
    record = read_record(version.path)
    if record is not None and record["state"] == "filling":
        _write(version, "trained", _files(version.path), claim)


def mark_kept(version: AdapterVersion, kept: bool = True, claim: str | None = None) -> None:
    """Say that this version was trained, is not in force, and is only a person's to remove, or that of the training
    whose `claim` it is, to make it again. Raises OSError."""
    record = read_record(version.path)
    sealed = record is not None and record["state"] != "filling" and isinstance(record.get("files"), dict)
    files = record["files"] if record is not None and sealed else _files(version.path)
    _write(version, "kept" if kept else "trained", files, claim)


def end_claim(version: AdapterVersion) -> None:
    """From now on the version is no training's to make again, whatever becomes of it. Raises OSError."""
    record = read_record(version.path)
    if record is not None and claim_of(record) is not None:
        _write(version, record["state"], record.get("files", {}))


def forget_file(version: AdapterVersion, name: str) -> None:
    """From now on the version is one without this file. Raises OSError."""
    record = read_record(version.path)
    if record is not None and isinstance(record.get("files"), dict):
        files = {other: known for other, known in record["files"].items() if other != name}
        _write(version, record["state"], files, claim_of(record))


def claim_of(record: dict[str, Any]) -> str | None:
    """The training that finished the version and has not put it in force."""
    claim = record.get("claim")
    return claim if isinstance(claim, str) else None


def is_kept(folder: Path) -> bool:
    """Whether `mark_kept` marked the folder."""
    record = read_record(folder)
    return record is not None and record["state"] == "kept"


def may_be_kept(folder: Path) -> bool:
    """Whether a record that is damaged, or was and is set aside, may have said that the version is kept."""
    return _is_damaged(folder) or bool(set_aside_records(folder))


def set_aside_records(folder: Path) -> list[Path]:
    """What is left of damaged records of the version."""
    return sorted(folder.glob(f"{Path(RECORD_NAME).stem}.damaged*"))


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a version folder with at least `state`, or None: other tools write none. None too for one that is
    not what was written."""
    path = folder / RECORD_NAME
    try:
        if path.is_symlink():
            return None
        raw = json.loads(read_file(path, _LIMIT))
        if not isinstance(raw, dict) or not isinstance(raw.get("state"), str):
            return None
        own = raw.pop(OWN_HASH, None)
        proved = own == own_sha256(raw) or (own is None and raw.get("format") == 1)
    except (OSError, ValueError, RecursionError):
        return None
    return raw if proved else None


def _is_damaged(folder: Path) -> bool:
    """Whether a record is there and is not what was written."""
    return read_record(folder) is None and os.path.lexists(folder / RECORD_NAME)


def writer_is_dead(store: Store, record: dict[str, Any]) -> bool:
    """Whether the process that made the folder ran on this host and has ended."""
    return _life(store, record) == "ended"


def filled_by_others(record: dict[str, Any] | None) -> bool:
    """Whether another process, which may have ended, began to fill the folder and has not finished it."""
    return record is not None and record["state"] == "filling" and not is_this_process(record)


def held_by_others(store: Store, record: dict[str, Any]) -> bool:
    """Whether another process of this host that made the folder still runs."""
    return _life(store, record) == "lives" and not is_this_process(record)


def _life(store: Store, record: dict[str, Any]) -> Life:
    """Where the record does not say when its writer started, as those of earlier versions do not, a process of that id
    is its writer only while another one has the right to train."""
    life = life_of_writer(record)
    if life != "may live":
        return life
    return "lives" if is_this_process(record) or held_elsewhere(store, TRAINING) else "ended"


def damage(version: AdapterVersion, *, all_files: bool = False) -> dict[str, str]:
    """What is wrong with which file: its name and a sentence without a full stop.

    A version without a record is looked at for its form: whether its files are whole and fit together. So is one whose
    record is damaged, which says nothing about the files any more. Raises StoreError for a file that cannot be read,
    which says nothing about what is in it.
    """
    record, path = read_record(version.path), version.path / RECORD_NAME
    if record is None and not os.path.lexists(path):
        return _malformed(version.path)
    files = record.get("files") if record is not None else None
    if not isinstance(files, dict):
        _refuse_unreadable(path)
        return {RECORD_NAME: f"{path} is not the file that was written", **_malformed(version.path)}
    names = [name for name in files if all_files or name in _APPLIED]
    return {
        name: f"{version.path / name} is not the file that was written (its hash differs)"
        for name in names
        if not _matches(version.path / name, files[name])
    }


def only_record(damaged: Mapping[str, str]) -> bool:
    """Whether of all that `damage` looked at nothing but the record is damaged."""
    return list(damaged) == [RECORD_NAME]


def damaged_notes(version: AdapterVersion) -> list[str]:
    """A sentence for each small file about the version that is not what was written: it is applied without it, and
    what the file says of it is not known. Raises StoreError for a file that cannot be read."""
    record = read_record(version.path)
    files = record.get("files") if record is not None else None
    return [
        f"{version.path / name} is not the file that was written (its hash differs); `dlm-tui doctor DOC` tells more"
        for name in _NOTES
        if isinstance(files, dict) and name in files and not _matches(version.path / name, files[name])
    ]


def verify_version(store: Store, version: AdapterVersion) -> None:
    """Raises VersionDamaged naming the file and the remedy, which is the newest older version that is sound where the
    files of this one are not; StoreError for a file that cannot be read."""
    damaged = damage(version)
    if not damaged:
        return
    if only_record(damaged):
        raise VersionDamaged(f"{damaged[RECORD_NAME]}; {WHOLE_BESIDE}.{REMEDY}")
    good = last_good_version(store, version.name, below=version.version)
    adapter = "the adapter" if version.name == FLAT else f"the adapter {version.name!r}"
    remedy = (
        f"the last good version of {adapter} is {good}: `dlm-tui adapter use DOC {version.name} --version {good}`."
        if good is not None
        else f"no older version of {adapter} is sound: train it again."
    )
    raise VersionDamaged(f"{next(iter(damaged.values()))}; {remedy}")


def last_good_version(store: Store, name: str, *, below: int | None = None) -> int | None:
    """The newest finished version whose files are what they were, below a number if one is given."""
    versions = store.adapter_dir(name) / "versions"
    numbers = sorted(
        (int(path.name[1:]) for path in versions.glob("v*") if path.name[1:].isdecimal() and path.is_dir()),
        reverse=True,
    )
    for number in numbers:
        version = AdapterVersion(name, number, versions / f"v{number:04d}")
        record = read_record(version.path)
        finished = record is None or record["state"] != "filling"
        older = below is None or number < below
        if older and finished and (version.path / _APPLIED[1]).is_file() and _is_sound(version):
            return number
    return None


def _is_sound(version: AdapterVersion) -> bool:
    try:
        return not damage(version)
    except StoreError:
        return False


def _malformed(folder: Path) -> dict[str, str]:
    """What can be seen without a hash: files that are there, whole, of shapes that fit together, and finite."""
    weights, config = folder / _APPLIED[0], folder / _APPLIED[1]
    found: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for path in (weights, config):
        _refuse_unreadable(path)
    try:
        settings = json.loads(read_file(config))
        if not isinstance(settings, dict):
            raise ValueError
    except FileNotFoundError:
        found[config.name] = f"{config} is missing"
    except (OSError, ValueError, RecursionError):
        found[config.name] = f"{config} is damaged: it is no JSON object"
    try:
        _refuse_malformed(weights, {} if found else settings)
    except FileNotFoundError:
        if not (folder / "adapter_model.bin").exists():  # who reads it says that it is not taken, and why
            found[weights.name] = f"{weights} is missing"
    except TensorFileDamaged as error:
        found[weights.name] = str(error)
    except OSError as error:
        found[weights.name] = f"{weights} is damaged: {error.strerror or error}"
    return found


def _refuse_malformed(weights: Path, settings: dict[str, Any]) -> None:
    """Raises TensorFileDamaged, OSError."""
    shapes = stored_shapes(weights)
    rank = None if settings.get("rank_pattern") else settings.get("r")
    for name, shape in shapes.items():
        if not name.endswith("lora_A.weight") or len(shape) != 2:
            continue
        other = shapes.get(name.replace("lora_A", "lora_B"), ())
        if len(other) != 2 or other[1] != shape[0]:
            raise TensorFileDamaged(f"{weights} is damaged: the two halves of {name} do not fit together")
        if isinstance(rank, int) and rank != shape[0]:
            raise TensorFileDamaged(
                f"{weights} is damaged: the rank of {name} is {shape[0]}, its configuration says {rank}"
            )
    if not is_finite(weights):
        raise TensorFileDamaged(f"{weights} is damaged: it holds weights that are not finite")


def _refuse_unreadable(path: Path) -> None:
    """Raises StoreError for a file that is there and that this process may not, or cannot, read."""
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), regular_file(path):
            pass
    except OSError as error:
        if not is_no_file(error):
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path} cannot be read ({error.strerror or error}); look after its owner and permissions.")


def _matches(path: Path, wanted: Any) -> bool:
    try:
        return (
            isinstance(wanted, dict)
            and path.stat().st_size == wanted.get("size")
            and sha256_file(path) == wanted.get("sha256")
        )
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if is_no_file(error):
            return False
        raise _unreadable(path, error) from error


def _files(folder: Path) -> dict[str, Any]:
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != RECORD_NAME
    }


def _write(version: AdapterVersion, state: str, files: dict[str, Any], claim: str | None = None) -> None:
    value = {
        "format": FORMAT,
        "adapter": version.name,
        "version": version.version,
        "state": state,
        **this_process(),
        "files": files,
        **({"claim": claim} if claim is not None else {}),
    }
    write_atomic(version.path / RECORD_NAME, json_bytes({**value, OWN_HASH: own_sha256(value)}))
