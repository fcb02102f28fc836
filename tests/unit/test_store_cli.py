"""`dlm-tui show` and `dlm-tui metrics`."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.cli.metrics import cutoff_text
from dlm_tui.document import load
from dlm_tui.errors import UsageError
from dlm_tui.store import MetricsWriter, Store
from tests.interop.peer_fixture import PEER_ADAPTERS, copy_peer, peer_root
from tests.tiny_models import write_tiny_base
from tests.training_samples import write_document


def call(command: str, *words: object) -> int:
    return main([command, *(str(word) for word in words)])


def peer_words(which: str) -> tuple[object, ...]:
    root = peer_root()
    return (root / f"{which}.dlm", "--home", root / "home", "--base", root / "base")


@pytest.mark.parametrize("which", ["routed", "uniform", "diverged"])
def test_show_prints_one_json_object(which: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", *peer_words(which), "--json") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    report = json.loads(out)
    assert report["gate_state"]["mode"] == {"routed": "trained"}.get(which, which)
    assert report["base_security"]["architecture"] == "LlamaForCausalLM"


def test_show_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    call("show", *peer_words("uniform"))
    out = capsys.readouterr().out
    for name in PEER_ADAPTERS:
        assert name in out
    assert "gate      uniform: Too few prompts to train a gate" in out
    assert "still needed: tone 1" in out
    assert "\x1b" not in out


def shown(capsys: pytest.CaptureFixture[str], document: Path, base: Path) -> tuple[str | None, list[str], str]:
    """What `show` says of the base that would be opened: in JSON, its problems, and the line for people."""
    words = ("show", document, "--home", document.parent / "home", "--base", base)
    assert call(*words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert call(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("problem: ")] == [f"problem: {p}" for p in report["problems"]]
    (line,) = [line for line in lines if line.startswith("base  ")]
    return report["opened_from"], report["problems"], line


def test_show_says_which_base_would_be_opened_and_what_is_wrong_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, base = write_document(tmp_path), write_tiny_base(tmp_path / "base")
    opened, problems, line = shown(capsys, document, base)
    assert (opened, problems) == (str(base), []) and line.endswith(f", opened from {base}")

    opened, problems, line = shown(capsys, document, tmp_path / "gone")
    assert opened is None and "opened from" not in line
    assert problems == [
        f"{tmp_path / 'gone'} does not exist, and --base names it as the base: bring it back, or name where it is now"
    ]
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    opened, (problem,), _ = shown(capsys, document, base)
    assert opened == str(base) and "num_hidden_layers 7, but the weights hold 3 layers" in problem

    two = tmp_path / "two"
    two.mkdir()
    for name, data in (("a.gguf", b""), ("b-00001-of-00002.gguf", b"GGUF"), ("c.gguf", b"GGUF" + bytes(99))):
        (two / name).write_bytes(data)
    assert "holds 3 GGUF files; name one of them" in shown(capsys, document, two)[1][0]
    for name, words in (
        ("a.gguf", "cannot be read as a GGUF file"),
        ("b-00001-of-00002.gguf", "is part 1 of 2; join them with"),
        ("c.gguf", "cannot be read as a GGUF file"),
    ):
        opened, (problem,), _ = shown(capsys, document, two / name)
        assert opened == str(two / name) and words in problem


def test_show_looks_at_the_base_without_torch(tmp_path: Path) -> None:
    document, base = write_document(tmp_path), write_tiny_base(tmp_path / "base")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(99))
    for path in (base, tmp_path / "a.gguf"):
        words = ["show", str(document), "--home", str(tmp_path / "home"), "--base", str(path)]
        code = f"import sys; from dlm_tui.cli.main import main; main({words!r}); sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_show_without_a_store_creates_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", peer_root() / "routed.dlm", "--home", tmp_path / "none", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["store_initialized"] is False
    assert report["gate_state"]["mode"] == "none"
    assert {"dlm_id", "base_model", "source_path", "training_cache_config"} <= set(report)
    assert call("show", peer_root() / "routed.dlm", "--home", tmp_path / "none") == 0
    assert call("metrics", peer_root() / "routed.dlm", "--home", tmp_path / "none") == 0
    assert list(tmp_path.iterdir()) == []


def test_control_characters_in_a_path_are_shown_not_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "red\x1b[31m.dlm"
    path.write_bytes((peer_root() / "routed.dlm").read_bytes())
    call("show", path, "--home", tmp_path)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[31m" in out


def test_metrics_json_and_csv_have_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("metrics", *peer_words("routed"), "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert [row["run_id"] for row in value["runs"]] == [3, 2, 1]
    assert set(value["runs"][0]) == {
        "run_id", "started_at", "ended_at", "adapter_version", "phase", "seed", "status"
    }  # fmt: skip
    (gate,) = value["gate_history"]
    assert gate["entropy"] == pytest.approx(1.0985400199771127, abs=1e-12)
    assert call("metrics", *peer_words("routed"), "--csv") == 0
    runs, events = capsys.readouterr().out.split("\n\n")
    assert runs.splitlines()[0] == "run_id,phase,seed,status,started_at,ended_at"
    rows = list(csv.DictReader(io.StringIO(events)))
    assert {row["adapter_name"]: float(row["mean_weight"]) for row in rows} == gate["weights"]
    assert {float(row["entropy_nats"]) for row in rows} == {gate["entropy"]}
    assert {float(row["normalised_entropy"]) for row in rows} == {gate["normalised_entropy"]}


def test_metrics_of_a_phase_name_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("metrics", *peer_words("routed"), "--phase", "dpo") == 0
    output = capsys.readouterr()
    assert output.err == "no run has the phase 'dpo'; there is sft\n"
    assert "knowledge" not in output.out and "no runs yet" not in output.out
    for phase, near in (("stf", ": did you mean sft?"), ("", "")):
        assert call("metrics", *peer_words("routed"), "--phase", phase) == 2
        output = capsys.readouterr()
        assert output.err == f"dlm-tui: no run has the phase {phase!r}; there is sft{near}\n"
        assert output.out == ""
    assert call("metrics", *peer_words("routed"), "--phase", "sft") == 0
    assert capsys.readouterr().err == ""
    call("metrics", *peer_words("routed"), "--json")
    (gate,) = json.loads(capsys.readouterr().out)["gate_history"]
    for limit, shown in (("1", gate["run_id"] == 3), ("3", True)):
        assert call("metrics", *peer_words("routed"), "--phase", "sft", "--limit", limit, "--json") == 0
        assert bool(json.loads(capsys.readouterr().out)["gate_history"]) == shown


def test_metrics_of_diverged_runs_have_no_entropy(capsys: pytest.CaptureFixture[str]) -> None:
    call("metrics", *peer_words("diverged"), "--json")
    assert json.loads(capsys.readouterr().out)["gate_history"][0]["entropy"] is None
    call("metrics", *peer_words("diverged"), "--csv")
    assert capsys.readouterr().out.splitlines()[-1].endswith(",diverged,tone,0.0,0,,,,")
    call("metrics", *peer_words("diverged"))
    assert "diverged" in capsys.readouterr().out


def test_metrics_list_what_eval_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_peer(tmp_path / "peer")
    document = load(root / "uniform.dlm")
    words = [root / "uniform.dlm", "--home", root / "home"]
    found = {"accuracy": 0.9125, "log_loss": 0.25, "ece": 0.0625, "prompts": 80}
    with MetricsWriter(Store(root / "home", document.dlm_id)) as writer:
        writer.record_gate_evaluation(None, {"accuracy": "\x1b[31m", "prompts": None})
        writer.record_gate_evaluation(2, found)
    assert call("metrics", *words, "--json") == 0
    newest, _ = json.loads(capsys.readouterr().out)["gate_evaluations"]
    assert (newest["run_id"], newest["report"]) == (2, found)
    assert call("metrics", *words) == 0
    *_, shown, odd = capsys.readouterr().out.splitlines()
    assert shown.split()[-4:] == ["0.912", "0.250", "0.062", "80"] and odd.split()[-4:] == ["-"] * 4
    assert call("metrics", *words, "--phase", "sft", "--json") == 0
    assert json.loads(capsys.readouterr().out)["gate_evaluations"] == []


def test_metrics_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_peer(tmp_path / "peer")
    document = load(root / "uniform.dlm")
    with MetricsWriter(Store(root / "home", document.dlm_id)) as writer:
        writer.record_gate_steps(3, [(1, 1.1, 1.05)])
    words = (root / "uniform.dlm", "--home", root / "home", "--run-id", 3)
    call("metrics", *words, "--json")
    value = json.loads(capsys.readouterr().out)
    assert set(value) >= {"run", "steps", "evals", "preference_mining"}
    assert [row["step"] for row in value["steps"]] == [10, 20]
    assert value["gate_steps"][0]["entropy"] == 1.05
    call("metrics", *words, "--csv")
    steps, gate = capsys.readouterr().out.split("\n\n")
    assert steps.splitlines()[0] == "step,loss,lr,grad_norm,val_loss"
    assert [line.split(",")[0] for line in steps.splitlines()[1:]] == ["10", "20", "28"]
    assert gate == "step,gate_loss,gate_entropy_nats\n1,1.1,1.05\n"
    call("metrics", *words)
    assert "run 3: sft" in capsys.readouterr().out
    assert call("metrics", *words[:-1], 9) == 1
    assert capsys.readouterr().err == "dlm-tui: There is no run 9.\n"


def test_options_of_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    call("metrics", *peer_words("routed"), "--json", "--limit", 1)
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 1
    call("metrics", *peer_words("routed"), "--json", "--phase", "gate")
    assert json.loads(capsys.readouterr().out)["runs"] == []
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert cutoff_text("36h", now) == "2025-12-31T12:00:00Z"
    assert cutoff_text("1d", now) == "2026-01-01T00:00:00Z"
    for bad in ("", "5", "d", "1.5h", "-1d", "1w", "999999999d"):
        with pytest.raises(UsageError):
            cutoff_text(bad, now)
    for words in (("--json", "--csv"), ("--limit", "0")):
        assert call("metrics", *peer_words("routed"), *words) == 2
        assert call("metrics", *peer_words("routed"), "--since", "soon") == 2


def test_neither_command_imports_torch() -> None:
    code = (
        "import sys, argparse\nfrom dlm_tui.cli import show, metrics\nimport dlm_tui.cli.show_report\n"
        "import dlm_tui.model.registry\nassert 'torch' not in sys.modules and 'textual' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
