"""Files that several versions have alike, a base's tokenizer above all, lie on the disk once: as hard links.

A version's files never change in place: whatever changes one writes another beside it and renames. So a link is as good
as a copy, for other tools too, and where links cannot be made the copy stays.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from dlm_tui.files import scratch_sibling, sha256_file
from dlm_tui.store.layout import Store
from dlm_tui.store.version_record import AdapterVersion

_VERSION = re.compile(r"v[0-9]+")
# Of one training alone, and small but for the weights.
_OWN = re.compile(r"(adapter_|training_|tui_|pinned_versions\.|README\.).*", re.DOTALL)


def write_shared(store: Store, version: AdapterVersion, write: Callable[[Path], object]) -> None:
    """Let `write` fill the version's folder with a base's files, then share those that another version has as well.

    Raises OSError as `write` does; that a file cannot be shared is no error.
    """
    write(version.path)
    folders = [folder for folder in _version_folders(store.adapters_dir) if folder != version.path]
    _share(version.path, folders)


def share_versions(adapters: Path) -> None:
    """Make one of what the versions below the folder `adapters` of a store have alike; for a store just written."""
    folders = list(_version_folders(adapters))
    for number, folder in enumerate(folders):
        _share(folder, folders[:number])


def freed_bytes(folders: Iterable[Path]) -> int:
    """Bytes that go when these folders are removed together: a file that is also linked elsewhere stays."""
    links: Counter[tuple[int, int]] = Counter()
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if (facts := _facts(path)) is not None:
                links[facts.st_dev, facts.st_ino] += 1
                sizes[facts.st_dev, facts.st_ino] = facts.st_size, facts.st_nlink
    return sum(size for key, (size, linked) in sizes.items() if links[key] >= linked)


def _share(folder: Path, others: Sequence[Path]) -> None:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if _OWN.fullmatch(name.name) is None and (facts := _facts(path)) is not None:
            _become_one(path, facts, [other / name for other in others])


def _become_one(path: Path, facts: os.stat_result, candidates: Sequence[Path]) -> None:
    """Replace `path` by a link to the first candidate with the same bytes; without one it stays as it is."""
    digest = ""
    tried = {facts.st_ino}
    for candidate in candidates:
        there = _facts(candidate)
        if there is None or there.st_size != facts.st_size or there.st_dev != facts.st_dev or there.st_ino in tried:
            continue
        tried.add(there.st_ino)
        digest = digest or sha256_file(path)
        scratch = scratch_sibling(path)
        # What is compared is what was linked, whatever becomes of the other version meanwhile.
        with contextlib.suppress(OSError, NotImplementedError):
            os.link(candidate, scratch)
            try:
                if sha256_file(scratch) == digest:
                    scratch.replace(path)
                    return
            finally:
                scratch.unlink(missing_ok=True)


def _facts(path: Path) -> os.stat_result | None:
    """Of a plain file, None for whatever else."""
    try:
        facts = path.lstat()
    except OSError:
        return None
    return facts if stat.S_ISREG(facts.st_mode) else None


def _version_folders(adapters: Path) -> Iterator[Path]:
    """Every version folder inside the store, flat layout first; not one that a link leads to."""
    root = adapters.resolve()
    for pattern in ("versions/*", "*/versions/*"):
        for folder in sorted(adapters.glob(pattern)):
            inside = folder.is_dir() and folder.resolve() == root / folder.relative_to(adapters)
            if inside and _VERSION.fullmatch(folder.name):
                yield folder
