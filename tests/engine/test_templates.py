"""Every template trains a gate out of the box on the embedded base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import gate_probes
from dlm_tui.document.templates import TEMPLATES
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session


@pytest.mark.slow
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_trains_a_gate_that_tells_its_adapters_apart(
    template: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.dlm"
    home = ["--home", str(tmp_path / "home"), "--json"]
    assert main(["new", str(path), "--template", template, "--no-open", *home]) == 0
    adapters = json.loads(capsys.readouterr().out)["adapters"]
    assert main(["train", str(path), *home]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert sorted(outcome["adapters"]) == sorted(adapters)
    assert outcome["gate"]["mode"] == "trained"
    assert not any(item["warning"] for item in outcome["adapters"].values()), "every adapter has learned something"
    session = run_to_end(Session.open(path, tmp_path / "home", adapters=False))
    probes = gate_probes(session.document)
    routed = [run_to_end(session.router.route(probe.prompt)).weights for probe in probes]
    right = sum(max(row, key=row.__getitem__) == probe.adapter for row, probe in zip(routed, probes, strict=True))
    assert right / len(probes) > 0.8
