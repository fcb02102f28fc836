"""The arrows between the packages, and what a fresh process really loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "peft", "accelerate")
PROBE = """
import importlib, json, sys
for name in sys.argv[1].split(","):
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def loaded_by(*modules: str) -> set[str]:
    """Modules in a fresh process after importing `modules`."""
    output = subprocess.run(
        [sys.executable, "-c", PROBE, ",".join(modules)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'widgets'}"},
    )
    return set(json.loads(output.stdout))


def sources(package: str) -> list[str]:
    """Dotted names of all modules of a package."""
    top = ROOT / "widgets" if package == "dlm_widgets" else ROOT
    files = sorted((top / package.replace(".", "/")).rglob("*.py"))
    names = [str(path.relative_to(top).with_suffix("")).replace("/", ".") for path in files]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("package", ["dlm_tui.app", "dlm_tui.document", "dlm_tui.store", "dlm_widgets", "dlm_tui.cli"])
def test_packages_of_the_screen_load_no_model_library(package: str) -> None:
    loaded = loaded_by(*sources(package))
    assert not [name for name in HEAVY if name in loaded]


@pytest.mark.parametrize("package", ["dlm_tui.document", "dlm_tui.store"])
def test_packages_of_files_load_no_screen(package: str) -> None:
    assert "textual" not in loaded_by(*sources(package))


def test_the_wire_and_its_client_load_neither() -> None:
    loaded = loaded_by(
        "dlm_tui.engine.protocol", "dlm_tui.engine.client", "dlm_tui.engine.job_client", "dlm_tui.model.views"
    )
    assert not [name for name in (*HEAVY, "textual") if name in loaded]


def test_widgets_stand_alone() -> None:
    assert not [name for name in loaded_by(*sources("dlm_widgets")) if name.startswith("dlm_tui")]


def test_naming_a_package_of_the_model_does_not_load_torch() -> None:
    packages = ["model", "gate", "scoring", "training", "export", "engine"]
    assert "torch" not in loaded_by(*(f"dlm_tui.{name}" for name in packages))
