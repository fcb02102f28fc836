"""`make` takes the newest Python that the machine has, of those that the README names."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def chosen(folder: Path, *words: str) -> str:
    """The interpreter that `make lint` would make its environment with."""
    tree = folder / "tree"
    tree.mkdir(exist_ok=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tree / name).write_bytes((ROOT / name).read_bytes())
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    shown = subprocess.run(
        ["make", "-n", "lint", *words], cwd=tree, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    found = re.search(r"^(\S+) -m venv", shown.stdout, re.MULTILINE)
    assert found, shown.stderr
    return found[1]


def python(folder: Path, minor: int, works: bool) -> str:
    """A stand-in for an interpreter; without its venv module where it does not work."""
    script = folder / f"python3.{minor}"
    script.write_text(f"#!/bin/sh\necho {script}\n" if works else "#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    return str(script)


def test_the_newest_that_works_is_taken(tmp_path: Path) -> None:
    python(tmp_path, 14, works=False)
    third = python(tmp_path, 13, works=True)
    python(tmp_path, 12, works=True)
    assert chosen(tmp_path) == third
    assert chosen(tmp_path, "PYTHON=/opt/other") == "/opt/other"


def test_the_readme_names_what_is_tried() -> None:
    minors = re.search(r"foreach minor,([\d ]+),", (ROOT / "Makefile").read_text())
    assert minors is not None
    for minor in minors[1].split():
        assert f"3.{minor}" in (ROOT / "README.md").read_text()
