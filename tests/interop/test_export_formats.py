"""The cost of a format, measured in a real llama.cpp; and stopping in the middle of measuring it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dlm_tui.cli.main import main
from dlm_tui.errors import UsageError
from dlm_tui.export.cost_table import HEAD, table
from dlm_tui.export.format_costs import FormatComparison, compared_quants
from dlm_tui.export.requests import ExportRequest
from dlm_tui.progress import WARNING, run_to_end
from dlm_tui.session import Session
from tests.export_sessions import open_tiny
from tests.tiny_models import write_tiny_base

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp (extra [llama]) is not installed"
)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return open_tiny(tmp_path_factory.mktemp("formats"))


def left_behind(session: Session) -> list[str]:
    return [path.name for path in session.store.exports_dir.iterdir()] if session.store.exports_dir.exists() else []


def test_a_line_per_format_and_form_against_float32(session: Session) -> None:
    comparison = FormatComparison(ExportRequest(imatrix="auto"), session, ["Q8_0", "q4_k_m", "F32"])
    lines = run_to_end(comparison.run())
    assert [(line.quant, line.form) for line in lines] == [
        (quant, form) for quant in ("f32", "q8_0", "q4_k_m") for form in ("apart", "merged")
    ]
    exact, _, eight, _, four, four_merged = lines
    assert (exact.mean_kl, exact.changed_answers, exact.gate_moved, exact.bits) == (0.0, 0.0, 0.0, 32.0)
    assert 0 < eight.mean_kl < four.mean_kl <= four.max_kl
    assert exact.size > eight.size > four.size
    assert four.gate_moved is not None and eight.gate_moved is not None
    assert 0 < eight.gate_moved < four.gate_moved < 1
    assert four.gate_changed is not None and 0 <= four.gate_changed <= 1
    assert (four_merged.gate_moved, four_merged.gate_changed) == (None, None)
    assert all(line.tokens_per_second and line.tokens_per_second > 0 for line in lines)
    assert all(line.prompts == 6 for line in lines)
    assert left_behind(session) == []
    shown = table(lines).splitlines()
    assert len(shown) == 7
    assert all(name in shown[0] for name in HEAD)
    assert shown[5].startswith("Q4_K_M  apart")


def test_it_stops_at_any_time_and_keeps_what_it_knows(session: Session) -> None:
    comparison = FormatComparison(ExportRequest(), session, ["q8_0"])
    work = comparison.run()
    while len(comparison.lines) < 2:
        next(work)
    for _ in range(5):
        next(work)
    assert left_behind(session)
    work.close()
    assert left_behind(session) == []
    assert [line.quant for line in comparison.lines] == ["f32", "f32"]


def test_a_format_that_overflows_is_a_warning_and_not_the_end(tmp_path: Path) -> None:
    path = write_tiny_base(tmp_path / "base", "llama") / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, path, {"format": "pt"})
    comparison = FormatComparison(ExportRequest(), open_tiny(tmp_path), ["f16", "bf16"])
    warnings: list[str] = []
    run_to_end(comparison.run(), lambda step: warnings.append(step.text or "") if step.stage == WARNING else None)
    assert [line.quant for line in comparison.lines] == ["f32", "f32", "bf16", "bf16"]
    assert len(warnings) == 2
    assert all("float16 cannot hold" in text for text in warnings)


def test_names_of_formats() -> None:
    assert compared_quants(["Q8_0", "q8_0", " f32 "]) == ("q8_0",)
    assert "q4_k_m" in compared_quants(None)
    with pytest.raises(UsageError, match="q9"):
        compared_quants(["q9"])


def test_the_chosen_line_is_exported_with_the_figures(
    session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(session.path), "--home", str(session.store.home), "--base", str(session.base_override)]
    assert main([*words, "--target", "ollama", "--compare", "q8_0", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert [line["quant"] for line in lines] == ["f32", "f32", "q8_0", "q8_0"]
    more = ["--quant", "q8_0", "--out", str(tmp_path / "out"), "--no-verify", "--no-drift"]
    assert main([*words, "--target", "ollama", "--compare", "q8_0", *more]) == 0
    out = capsys.readouterr().out
    assert out.startswith("format")
    manifest = json.loads((tmp_path / "out" / "export_manifest.json").read_text())
    assert [line["form"] for line in manifest["comparison"]] == ["apart", "merged"] * 2
