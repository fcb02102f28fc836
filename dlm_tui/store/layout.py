"""Where things are: the dlm home and the folder of one document below it (formats §12)."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from dlm_tui.errors import UsageError
from dlm_tui.input import is_utf8, with_home
from dlm_tui.store.errors import StoreError
from dlm_tui.system_errors import cause

ADAPTER_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
FLAT = "default"
_SAFE_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


def resolve_home(flag: str | Path | None = None) -> Path:
    """The dlm home: the flag, else `DLM_HOME`, else `%APPDATA%\\dlm` on Windows, else `~/.dlm`.

    User-expanded and absolute; nothing is created. Raises UsageError for a `~name` nobody has, and for bytes that are
    not UTF-8.
    """
    chosen = str(flag) if flag is not None and str(flag) else os.environ.get("DLM_HOME", "")
    if not chosen:
        appdata = os.environ.get("APPDATA", "") if sys.platform == "win32" else ""
        chosen = str(Path(appdata) / "dlm") if appdata else "~/.dlm"
    home = with_home(chosen).absolute()
    if not is_utf8(str(home)):  # neither the tokenizer's library nor safetensors writes there
        raise UsageError(f"The dlm home {home} is not UTF-8 text, so no adapter could be saved in it; use another.")
    return home


def why_not_written(folder: Path) -> str | None:
    """Why nothing can be written into `folder`, or where it would be made; None where it can. Tried, not guessed: what
    the permissions say is not all (/proc, a read-only disk)."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path) or path == path.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".dlm-tui-", dir=there):
            return None
    except OSError as error:
        return f"nothing can be written in {there} ({cause(error)})" if there.is_dir() else f"{there} is no folder"


def utc_seconds(moment: datetime | None = None) -> str:
    """Naive UTC `YYYY-MM-DDTHH:MM:SS`, the form of the manifest and the logs."""
    return (moment or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


class Store:
    """The folder `<home>/store/<dlm_id>/`. Making this object touches nothing on disk."""

    def __init__(self, home: Path, dlm_id: str) -> None:
        if not _SAFE_ID.fullmatch(dlm_id):
            raise StoreError(f"{dlm_id!r} cannot name a store.")
        self.home = Path(home)
        self.dlm_id = dlm_id
        self.root = self.home / "store" / dlm_id

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    @property
    def manifest_path(self) -> Path:
        return self.root / "manifest.json"

    @property
    def lock_record_path(self) -> Path:
        return self.root / "dlm.lock"

    @property
    def lock_path(self) -> Path:
        """The mutual exclusion file, there only while somebody holds the store."""
        return self.root / ".lock"

    @property
    def metrics_path(self) -> Path:
        return self.root / "metrics.sqlite"

    @property
    def adapters_dir(self) -> Path:
        return self.root / "adapter"

    @property
    def gate_dir(self) -> Path:
        return self.adapters_dir / "_gate"

    @property
    def former_gates_dir(self) -> Path:
        return self.root / "tui_gates"

    @property
    def queue_dir(self) -> Path:
        return self.root / "queue"

    @property
    def logs_dir(self) -> Path:
        return self.root / "logs"

    @property
    def exports_dir(self) -> Path:
        return self.root / "exports"

    @property
    def cache_dir(self) -> Path:
        return self.root / "cache"

    @property
    def replay_dir(self) -> Path:
        return self.root / "replay"

    def adapter_dir(self, name: str) -> Path:
        """The folder with `current.txt` and `versions/`; the name "default" is the flat layout.

        Raises UsageError for a name that the format does not allow.
        """
        if not ADAPTER_NAME.fullmatch(name):
            raise UsageError(f"{name!r} is not an adapter name: a-z, then at most 31 of a-z, 0-9 and _.")
        return self.adapters_dir if name == FLAT else self.adapters_dir / name

    def exists(self) -> bool:
        """Whether a document was ever trained or prepared here."""
        return self.manifest_path.is_file() or self.metrics_path.is_file() or self.adapters_dir.is_dir()

    def refuse_unwritable(self) -> None:
        """For work that changes something else first, and for what could not be written. Raises StoreError."""
        if (why := why_not_written(self.root)) is not None:
            raise StoreError(f"The store {self.root} cannot be written: {why}; choose another home (--home, DLM_HOME).")

    def create(self) -> Store:
        """Make the folders that every store has: `adapter/`, `adapter/versions/`, `logs/`."""
        try:
            (self.adapters_dir / "versions").mkdir(parents=True, exist_ok=True)
            self.logs_dir.mkdir(exist_ok=True)
        except OSError as error:
            self.refuse_unwritable()
            raise StoreError(f"The store {self.root} cannot be created: {cause(error)}.") from error
        return self

    def total_size(self) -> int:
        """Bytes of all regular files below the root; links are not followed, and a file with two names counts once."""
        return _tree_size(self.root)

    def replay_size(self) -> int:
        """Bytes of the replay corpus and its index."""
        return sum(_file_size(self.replay_dir / name) for name in ("corpus.zst", "index.json"))


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _tree_size(root: Path) -> int:
    sizes: dict[tuple[int, int], int] = {}
    for folder, _, files in os.walk(root):
        for name in files:
            with contextlib.suppress(OSError):
                facts = Path(folder, name).lstat()
                if stat.S_ISREG(facts.st_mode):
                    sizes[facts.st_dev, facts.st_ino] = facts.st_size
    return sum(sizes.values())
