"""Stores written by the `dlm` tool, and a tiny base: from beside the checkout when there, else the copy in it."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_BESIDE = _HERE.parents[2] / "shared" / "peer"
_COPY = _HERE / "data" / "peer"

PEER_IDS = {
    "routed": "01JPEERPEERPEERPEERPEERPEE",
    "uniform": "01JVN1FVN1FVN1FVN1FVN1FVN1",
    "diverged": "01JD1VD1VD1VD1VD1VD1VD1VD1",
}
PEER_ADAPTERS = ["tone", "knowledge", "style"]


def peer_root() -> Path:
    """The folder with `base/`, `home/`, the three documents and what the tool printed for them.

    Nothing may be written there, and whatever opens a store to work with it writes: take `copy_peer` for that.
    """
    return _BESIDE if (_BESIDE / "home").is_dir() else _COPY


def copy_peer(target: Path, *, read_only: bool = False, base: bool = False) -> Path:
    """A copy of the peer tree at `target` (which must not exist), writable or with every write bit off."""
    skipped = () if base else ("base",)
    shutil.copytree(peer_root(), target, ignore=lambda folder, names: [n for n in names if n in skipped])
    for path in [target, *target.rglob("*")]:
        mode = 0o755 if path.is_dir() else 0o644
        path.chmod(mode & 0o555 if read_only else mode)
    return target


def make_writable(root: Path) -> None:
    """Undo `read_only`, so that the tree can be removed."""
    for path in [root, *root.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)


def tree_snapshot(root: Path) -> dict[str, tuple[int, int, int, str]]:
    """Relative name → (mode, size, mtime in ns, sha256) of every file and folder, links not followed."""
    found = {}
    for path in sorted([root, *root.rglob("*")]):
        status = os.lstat(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        size = status.st_size if path.is_file() else 0
        found[path.relative_to(root).as_posix()] = (status.st_mode, size, status.st_mtime_ns, digest)
    return found
