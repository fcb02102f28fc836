"""The packages' lazy facades as the type checker and the interpreter see them.

A facade is an `__init__.pyi` that lists the public names; `lazy_loader` reads it when the package is imported.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUBS = sorted((ROOT / "dlm_tui").rglob("__init__.pyi"))
FACADES = {".".join(stub.parent.relative_to(ROOT).parts): stub for stub in STUBS}
# A number array has `Any` in place of its number of dimensions; there is no other way to write "of any shape".
SHAPE = "numpy.ndarray[tuple[Any, ...],"
UNTYPED = {
    "dlm_tui.model.Base": "the tokenizer is a transformers object, and transformers has no types here",
    "dlm_tui.model.architectures.layer_specs": "it reads a transformers configuration",
    "dlm_tui.model.architectures.why_not": "it reads a transformers configuration",
    "dlm_tui.export.ExportResult": "the manifest is a JSON object as it is written beside the export",
}
"""Names whose signature holds an `Any`, and why. Anything else must be typed."""


def names(stub: Path) -> list[str]:
    """The public names of a facade."""
    imports = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
    return [alias.asname or alias.name for node in imports for alias in node.names]


MISSPELT = ["from dlm_tui.model import MixedModle", *(f"from {package} import Misspelt" for package in FACADES)]
PUBLIC = [f"{package}.{name}" for package, stub in FACADES.items() for name in names(stub)]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What mypy says about each line of one file, with the project's settings and its cache.

    One run for all tests: two at once, of one name, would be told what the cache has of the other.
    """
    lines = [*MISSPELT, *(f"import {package}" for package in FACADES), *(f"reveal_type({name})" for name in PUBLIC)]
    path = tmp_path_factory.mktemp("checked") / "facades.py"
    path.write_text("\n".join(lines) + "\n")
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--no-error-summary", str(path)],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": f"{ROOT}{os.pathsep}{ROOT / 'widgets'}"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1, found.stdout + found.stderr
    answers = dict.fromkeys(lines, "")
    # what it said of the same text before comes from its cache, with the path of then
    for match in re.finditer(rf"^.*{re.escape(path.name)}:(\d+): (.*)$", found.stdout, re.MULTILINE):
        answers[lines[int(match[1]) - 1]] += match[2]
    return answers


def test_there_are_facades() -> None:
    assert {"dlm_tui.model", "dlm_tui.gate", "dlm_tui.scoring", "dlm_tui.store", "dlm_tui.document"} <= set(FACADES)
    assert all(names(stub) for stub in STUBS)


def test_a_misspelt_import_is_an_error(said: dict[str, str]) -> None:
    assert 'Module "dlm_tui.model" has no attribute "MixedModle"' in said[MISSPELT[0]]
    for line in MISSPELT:
        assert "has no attribute" in said[line], f"mypy lets {line!r} pass"


def test_no_any_leaks_through_a_facade(said: dict[str, str]) -> None:
    types = {name: re.search(r'Revealed type is "(.*)"', said[f"reveal_type({name})"]) for name in PUBLIC}
    assert not [name for name, found in types.items() if found is None]
    leaking = {
        name: found[1]
        for name, found in types.items()
        if found is not None and re.search(r"\bAny\b", found[1].replace(SHAPE, ""))
    }
    assert {name: found for name, found in leaking.items() if name not in UNTYPED} == {}
    assert set(UNTYPED) <= set(leaking), "a name that is typed by now needs no exception"


@pytest.mark.parametrize("package", FACADES)
def test_every_name_of_a_facade_resolves(package: str) -> None:
    module = importlib.import_module(package)
    listed = names(FACADES[package])
    assert listed and sorted(module.__all__) == sorted(set(listed))
    for name in listed:
        assert getattr(module, name) is not None
