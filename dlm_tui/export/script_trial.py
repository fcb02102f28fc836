"""Start scripts, run as their reader runs them, with a recording program in the place of the one that they start.

What a script does is the shell's to say: quotes, `$` and the interpreter's line are not parsed here but run.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlm_tui.export.requests import ExportRefused
from dlm_tui.files import temporary_folder
from dlm_tui.system_errors import cause

PATIENCE_SECONDS = 60.0
_RECORDED = "words"
_RECORDER = """#!/bin/sh
printf '%s\\0' "$(pwd -P)" "$@" > "${0%/*}/words"
"""


@dataclass(frozen=True)
class Start:
    """How a program was started: in which folder, with which words behind its name."""

    folder: Path
    words: list[str]


def started(
    command: Sequence[str | Path],
    program: str,
    variables: Mapping[str, str] | None = None,
    *,
    elsewhere: str | None = None,
    patience: float = PATIENCE_SECONDS,
) -> Start:
    """How `command` starts `program` when it is run in a fresh folder, with a PATH and `variables` for its environment.

    `elsewhere`: a variable that then names the program that is recorded, while the one on the PATH may not be started.
    Raises ValueError, with words that follow the command's name, where it starts nothing of that.
    """
    with temporary_folder("start") as folder:
        if not runs_programs(folder):
            raise ExportRefused(
                f"the start script cannot be tried: no program may run in {folder.parent}; set TMPDIR to a folder where"
                " that is possible"
            )
        recorder = _recorder(folder / "path" / program)
        environment = {"PATH": os.pathsep.join([str(recorder.parent), os.environ.get("PATH", os.defpath)])}
        if elsewhere is not None:
            recorder = _recorder(folder / "a folder" / "a program")
            environment[elsewhere] = str(recorder)
        (here := folder / "here").mkdir()
        _run(command, here, {**environment, **(variables or {})}, patience)
        try:
            where, *words = os.fsdecode(recorder.with_name(_RECORDED).read_bytes()).split("\0")[:-1]
        except FileNotFoundError as error:
            raise ValueError(f"does not start {program if elsewhere is None else f'${elsewhere}'}") from error
    return Start(Path(where), words)


def runs_programs(folder: Path) -> bool:
    """Whether the file system of the folder lets programs run that lie on it."""
    return not os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0)


def _recorder(path: Path) -> Path:
    path.parent.mkdir()
    path.write_text(_RECORDER, encoding="utf-8")
    path.chmod(0o755)
    return path


def _run(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str], patience: float) -> None:
    with tempfile.TemporaryFile() as log:
        try:
            done = subprocess.run(
                [str(word) for word in command], cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=log, timeout=patience, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"starts nothing within {patience:g} s") from error
        except OSError as error:
            raise ValueError(f"cannot be run: {cause(error)}") from error
        log.seek(0)
        said = log.read(1 << 16).decode(errors="replace").strip().splitlines()
    if done.returncode:
        raise ValueError(f"ends with code {done.returncode}{f': {said[-1].strip()}' if said else ''}")
