"""Handing an export to an installed Ollama. No torch."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

from dlm_tui.export.requests import ExportRefused

_GRACE_SECONDS = 5.0


def find_ollama() -> Path | None:
    """The `ollama` on the PATH, or None."""
    found = shutil.which("ollama")
    return Path(found) if found else None


def create_model(folder: Path, name: str) -> Generator[str, None, None]:
    """Run `ollama create NAME -f Modelfile` in the export's folder and yield its output line by line.

    Raises ExportRefused when there is no ollama, or when it fails.
    """
    program = find_ollama()
    if program is None:
        raise ExportRefused("ollama is not on the PATH")
    with subprocess.Popen(
        [program, "create", name, "-f", "Modelfile"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield line.rstrip("\n")
        except BaseException:  # nobody listens any more; one that ended its output is left to end by itself
            process.terminate()
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if process.returncode != 0:
        raise ExportRefused(f"ollama create ended with code {process.returncode}")
