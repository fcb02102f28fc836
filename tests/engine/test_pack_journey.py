"""Packed on one machine, unpacked on another: the same weights for the same prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from tests.demo import Demo

_PROMPTS = ("Where does Nell live?", "I am tired today.", "Write about the storm.")


@pytest.mark.slow
def test_a_pack_routes_alike_on_another_machine(demo: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = demo.copy(tmp_path / "here")
    (here.document.parent / "harbour.prompts.json").write_text('{"mine": ["Where is the quay?"]}')

    def routed(document: Path, home: Path) -> list[dict[str, float]]:
        found = []
        for prompt in _PROMPTS:
            assert main(["route", str(document), prompt, "--home", str(home), "--json"]) == 0
            told = json.loads(capsys.readouterr().out)
            assert told["mode"] == "trained"
            found.append(told["results"][0]["weights"])
        return found

    before = routed(here.document, here.home)
    pack = tmp_path / "carried.pack"
    assert main(["pack", str(here.document), "--home", str(here.home), "--out", str(pack)]) == 0
    assert main(["verify", str(pack)]) == 0
    shutil.rmtree(tmp_path / "here")
    capsys.readouterr()
    there, home = tmp_path / "there", tmp_path / "home"
    assert main(["unpack", str(pack), "--home", str(home), "--out", str(there), "--json"]) == 0
    document = Path(json.loads(capsys.readouterr().out)["document"])
    assert routed(document, home) == before
    assert (there / "harbour.prompts.json").exists()
    assert main(["show", str(document), "--home", str(home), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["source_path"], told["orphaned"], told["problems"]) == (str(document), False, [])
    assert main(["metrics", str(document), "--home", str(home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"]
