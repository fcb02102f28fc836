"""Which mix an export takes, and what it refuses before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm_tui.document.named_mixes import NamedMixes
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.export import ExportRefused, ExportRequest, ResolvedMix, resolve_mix
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from dlm_tui.store import MetricsWriter
from tests.export_sessions import NAMES, QUESTIONS, add_gate, export, open_tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return open_tiny(tmp_path_factory.mktemp("mix"))


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Session]:
    yield open_tiny(tmp_path)


def resolve(session: Session, **request: Any) -> ResolvedMix:
    return run_to_end(resolve_mix(ExportRequest(**request).checked(), session))


def test_the_default_is_the_mean_gate_weight_over_the_training_prompts(trained: Session) -> None:
    mix = resolve(trained)
    prompts = [question for name in NAMES for question in QUESTIONS[name]]
    decoder: Any = trained.base.decoder
    with torch.no_grad():
        rows = [decoder(torch.tensor([trained.base.encode_raw(text)])).last_hidden_state[0].mean(0) for text in prompts]
    assert trained.gate is not None
    mean = trained.gate.weights(torch.stack(rows)).double().mean(dim=0)
    assert mix.gate_mode == "static_mean"
    assert [name for name, _ in mix.weights] == list(NAMES)
    assert torch.tensor([weight for _, weight in mix.weights]).sub(mean).abs().max() < 1e-6
    assert sum(weight for _, weight in mix.weights) == pytest.approx(1.0, abs=1e-6)


def test_other_mixes(trained: Session) -> None:
    assert resolve(trained, mix="uniform").weights == [(name, 1 / 3) for name in NAMES]
    assert resolve(trained, mix="uniform").gate_mode == "uniform"
    picked = resolve(trained, mix="style:0.25, tone:2")
    assert (picked.weights, picked.gate_mode) == ([("style", 0.25), ("tone", 2.0)], "hand_picked")
    assert resolve(trained, mix="tone:-0.5", signed=True).weights == [("tone", -0.5)]
    single = resolve(trained, adapter="facts")
    assert (single.weights, single.gate_mode) == ([("facts", 1.0)], "single")


def test_a_saved_mix_is_exported_under_its_name(fresh: Session) -> None:
    assert fresh.document.path is not None
    saved = NamedMixes(fresh.document.path)
    saved.save({"loud": {"tone": 1.5, "style": -0.5}, "old": {"tone@1": 1.0}})
    mix = resolve(fresh, mix="loud")
    assert (mix.weights, mix.gate_mode) == ([("tone", 1.5), ("style", -0.5)], "hand_picked")
    with pytest.raises(UsageError, match="tone@1, and exports take the versions in force"):
        resolve(fresh, mix="old")
    with pytest.raises(DlmTuiError, match="no mix is called 'quiet'"):
        resolve(fresh, mix="quiet")
    result = export(fresh, target="peft", mix="loud", verify=False, drift=False)
    assert result.folder == fresh.store.exports_dir / "peft-loud"
    assert (result.manifest["mix_name"], result.manifest["mix"]) == ("loud", [["tone", 1.5], ["style", -0.5]])
    assert ExportRequest(mix="uniform").mix_name is None and ExportRequest(mix="tone:1").mix_name is None


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"mix": "tone:-0.5"}, "negative"),
        ({"mix": "nobody:1"}, "nobody"),
        ({"mix": "tone:inf"}, "finite"),
        ({"mix": "tone:nan"}, "finite"),
        ({"mix": "tone:0,facts:0"}, "0"),
        ({"mix": "tone"}, "weight"),
        ({"adapter": "nobody"}, "nobody"),
        ({"adapter": "tone", "mix": "uniform"}, "--mix"),
        ({"signed": True}, "--signed"),
        ({"target": "docker"}, "docker"),
        ({"quant": "Q3_K_M", "target": "ollama"}, "Q3_K_M"),
        ({"quant": "q3"}, "q3"),
        ({"legacy_adapter": True}, "ollama"),
    ],
)
def test_requests_that_make_no_sense(trained: Session, request_: dict[str, Any], words: str) -> None:
    with pytest.raises(DlmTuiError, match=words) as caught:
        resolve(trained, **request_)
    assert "\n" not in str(caught.value)


def test_usage_errors_have_the_usage_exit_code(trained: Session) -> None:
    for request in ({"adapter": "nobody"}, {"target": "docker"}, {"mix": "tone:nan"}):
        with pytest.raises(UsageError):
            resolve(trained, **request)


def test_best_is_the_mix_that_the_drift_report_found(trained: Session) -> None:
    mix = resolve(trained, mix="best")
    assert mix.gate_mode == "best_static"
    assert mix.drift is not None
    assert dict(mix.weights) == pytest.approx(mix.drift["best_static"]["mix"])
    assert mix.drift["kl"] == mix.drift["best_static"]["kl"] <= mix.drift["uniform"]["kl"]
    # What is said of the export is said of this mix, not of the gate's mean.
    assert mix.drift["kept"] == pytest.approx(1 - mix.drift["kl"] / mix.drift["uniform"]["kl"])
    assert f"{mix.drift['kl']:.4f} nats frozen" in mix.drift["verdict"]


def nothing_written(session: Session) -> bool:
    return not session.store.exports_dir.exists()


def test_a_missing_gate_is_refused(tmp_path: Path) -> None:
    session = open_tiny(tmp_path, gate=False)
    with pytest.raises(ExportRefused, match="no trained gate"):
        export(session)
    with pytest.raises(ExportRefused, match="no trained gate"):
        export(session, mix="best")
    assert nothing_written(session)
    assert export(session, mix="uniform", verify=False).manifest["gate_mode"] == "uniform"


def test_a_diverged_gate_is_refused_even_with_an_older_one_in_force(fresh: Session) -> None:
    with MetricsWriter(fresh.store) as metrics:
        metrics.start_run(7, phase="gate", seed=1)
        metrics.record_gate_events(7, [(name, 0.0, 0) for name in NAMES], "diverged")
    with pytest.raises(ExportRefused, match="diverged"):
        export(fresh)
    assert nothing_written(fresh)


def test_a_gate_of_another_base_is_refused(fresh: Session) -> None:
    add_gate(fresh.store, fresh.base.hidden_size + 1)
    fresh.reload_gate()
    with pytest.raises(DlmTuiError, match="gate"):
        export(fresh)
    assert nothing_written(fresh)


def test_a_gate_with_weights_that_are_not_finite_is_refused(fresh: Session) -> None:
    path = fresh.store.gate_dir / "gate.safetensors"
    tensors = load_file(path)
    tensors["0.bias"][0] = float("nan")
    save_file(tensors, path)
    fresh.reload_gate()
    with pytest.raises(DlmTuiError, match="finite"):
        export(fresh)
    assert nothing_written(fresh)


def test_an_adapter_without_a_trained_version_is_refused(fresh: Session) -> None:
    fresh.model.swap("facts", None)
    for request in ({}, {"mix": "uniform"}, {"adapter": "facts"}, {"mix": "facts:1"}):
        with pytest.raises(ExportRefused, match="facts"):
            export(fresh, **request)
    assert nothing_written(fresh)
    assert export(fresh, mix="tone:1,facts:0", verify=False).manifest["mix"] == [["tone", 1.0], ["facts", 0.0]]


def test_an_adapter_with_weights_that_are_not_finite_is_refused(fresh: Session) -> None:
    adapter = fresh.model.adapters["tone"]
    next(iter(adapter.modules.values())).lora_B[0, 0] = float("inf")
    for target in ("peft", "vllm", "merged", "ollama", "llama-server"):
        with pytest.raises(ExportRefused, match=r"'tone'.*finite"):
            export(fresh, adapter="tone", target=target)
    assert nothing_written(fresh)


def test_a_cold_started_gate_exports_the_uniform_mix_and_says_so(fresh: Session) -> None:
    config = fresh.store.gate_dir / "gate_config.json"
    stored = json.loads(config.read_text())
    config.write_text(json.dumps({**stored, "mode": "uniform"}))
    fresh.reload_gate()
    result = export(fresh, verify=False)
    assert result.manifest["gate_mode"] == "uniform"
    assert [weight for _, weight in result.manifest["mix"]] == [1 / 3] * 3
    assert any("too few prompts" in note for note in result.notes)
