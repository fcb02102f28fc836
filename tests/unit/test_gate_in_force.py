"""What is in force is said the same everywhere: `prompt`, `score` and `route` on stale, damaged and missing gates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.gate.training import train_document_gate
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from tests.export_sessions import open_tiny


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return open_tiny(tmp_path)


def command(session: Session, name: str, *words: str) -> int:
    home, base = str(session.store.home), str(session.base_override)
    return main([name, str(session.path), *words, "--home", home, "--base", base])


def edit(session: Session) -> None:
    """Make the gate stale: its record knows another set of adapters than the document declares."""
    text = session.path.read_text()
    session.path.write_text(text.replace("    style: {}\n", "    style: {}\n    more: {}\n"))


def test_a_stale_gate_routes_and_is_called_so(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    edit(session)
    run_to_end(session.reload())
    learned = run_to_end(session.router.route("Say hello kindly."))
    assert session.gate_status.mode == "stale" and session.gate_status.in_force == "trained"
    assert learned.learned and max(learned.weights.values()) > 0.34
    assert command(session, "prompt", "Say hello kindly.", "--json", "--max-tokens", "2", "--temperature", "0") == 0
    out, told = capsys.readouterr()
    assert json.loads(out)["weights"] == pytest.approx(learned.weights)
    assert "uniform" not in told and "Its learned weights are used." in told and "train the gate again" in told
    assert command(session, "score", "Say hello kindly.", "--views", "gated", "--null", "0", "--json") == 0
    assert "Its learned weights are used." in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:20],
        lambda text: "[]",
        lambda text: text.replace('"mode"', '"mood"'),
        lambda text: text.replace('"entropy_lambda": ', '"entropy_lambda": 1' + "0" * 400 + ', "was": '),
    ],
    ids=["cut", "list", "key", "huge"],
)
def test_a_damaged_configuration_means_equal_weights_until_the_gate_is_trained_again(
    session: Session, damage: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = session.store.gate_dir / "gate_config.json"
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    session.reload_gate()
    assert session.static == {} and session.gate_status.mode == "damaged"
    assert command(session, "route", "Say hello kindly.", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert "gate_config.json" in report["reason"] and report["reason"].endswith("; train the gate again.")
    assert list(report["results"][0]["weights"].values()) == pytest.approx([1 / 3] * 3)
    assert command(session, "prompt", "Say hello kindly.", "--max-tokens", "1") == 0
    assert main(["show", str(session.path), "--home", str(session.store.home)]) == 0
    run_to_end(train_document_gate(session.document, session.store, session.model))
    session.reload_gate()
    assert session.gate_error is None


def test_a_gate_that_cannot_be_read_is_not_called_trained(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    (session.store.gate_dir / "gate.safetensors").write_bytes(b"no tensors")
    session.reload_gate()
    status = session.gate_status
    assert (status.mode, status.in_force) == ("damaged", "none") and "gate.safetensors" in status.problem
    assert command(session, "route", "Say hello kindly.", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    (result,) = report["results"]
    assert (report["mode"], report["in_force"], result["mode"]) == ("damaged", "none", "none")
    assert report["reason"] == status.problem and result["reason"].startswith(status.problem)
    assert list(result["weights"].values()) == pytest.approx([1 / 3] * 3)
    assert command(session, "prompt", "Say hello kindly.", "--max-tokens", "1") == 0
    assert "Every adapter has the same weight." in capsys.readouterr().err


def test_route_agrees_with_itself_on_a_good_gate(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert load(session.path).gate_enabled
    assert command(session, "route", "Say hello kindly.", "--json") == 0
    out, told = capsys.readouterr()
    report = json.loads(out)
    assert (report["mode"], report["in_force"], report["reason"], told) == ("trained", "trained", "", "")
    assert report["results"][0]["mode"] == "trained"
