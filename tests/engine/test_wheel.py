"""The built wheel, in an environment of its own, from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_an_installed_wheel_has_its_assets(tmp_path: Path) -> None:
    def run(*command: str, cwd: Path = tmp_path) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT))
    wheel = next((tmp_path / "dist").glob("*.whl"))
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    python = str(tmp_path / "venv" / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel))
    # The dependencies come from the environment the tests run in; the program itself only from the wheel.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", "import dlm_tui; print(dlm_tui.__file__)").strip()
    assert where.startswith(str(site))
    for pattern in ("*.tcss", "panes/*.tcss", "screens/*.tcss"):
        kept = {path.name for path in (site / "dlm_tui" / "app").glob(pattern)}
        assert kept == {path.name for path in (ROOT / "dlm_tui" / "app").glob(pattern)} and kept
    command = str(tmp_path / "venv" / "bin" / "dlm-tui")
    placed = json.loads(run(command, "demo", "d", "--no-open", "--json"))
    shown = json.loads(run(command, "show", placed["document"], "--home", str(tmp_path / "home"), "--json"))
    assert shown["document"]["base_model"] == "pocket"
    doctor = json.loads(run(command, "doctor", "--json"))
    assert doctor["ok"] and doctor["embedded_base_bytes"] > 1_000_000
    routed = json.loads(run(command, "route", placed["document"], "hello", "--home", str(tmp_path / "home"), "--json"))
    assert routed["mode"] == "none" and routed["results"][0]["tokens"] > 0
