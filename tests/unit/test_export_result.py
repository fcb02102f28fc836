"""What an export leaves behind: manifest, store entry, metrics row, gate files, and the command's output."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Generator
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from dlm_tui.cli.main import main
from dlm_tui.export import create_model, destination, export_document, find_ollama, ollama
from dlm_tui.export.modelfile_reader import read_modelfile
from dlm_tui.export.parity import Answers, ParityJob
from dlm_tui.export.requests import ExportRefused, ExportRequest
from dlm_tui.export.script_trial import started
from dlm_tui.platform import process_lives
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.session import Session
from dlm_tui.store import MetricsReader, read_manifest
from tests.export_sessions import NAMES, export, open_tiny

SHARED_KEYS = {
    "target",
    "quant",
    "merged",
    "dequantized",
    "ollama_name",
    "created_at",
    "created_by",
    "llama_cpp_tag",
    "base_model_hf_id",
    "base_model_revision",
    "adapter_version",
    "artifacts",
}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return open_tiny(tmp_path_factory.mktemp("result"))


def test_the_manifest_has_the_keys_of_the_format_and_ours(session: Session) -> None:
    result = export(session, target="llama-server", verify=False, drift=True)
    text = (result.folder / "export_manifest.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    assert manifest == result.manifest
    assert text == json.dumps(manifest, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert set(manifest) >= SHARED_KEYS
    assert datetime.fromisoformat(manifest["created_at"]).tzinfo is None
    assert manifest["created_by"].startswith("dlm-tui-")
    assert (manifest["gate_mode"], manifest["quant"], manifest["merged"]) == ("static_mean", "q4_k_m", False)
    assert (manifest["adapter_version"], manifest["mix_rank"]) == (1, 14)
    assert {name: entry["rank"] for name, entry in manifest["adapters"].items()} == {"tone": 4, "facts": 7, "style": 3}
    assert manifest["document"]["sha256"] == session.document.sha256
    assert manifest["base"]["weights_sha256"] == session.base.identity.weights_sha256
    assert manifest["versions"]["gguf"]
    assert manifest["parity"] is None
    drift = manifest["drift"]
    assert 0 <= drift["kl"] <= drift["kl_max"]
    assert {"changed_answers", "uniform", "best_static", "verdict", "prompts"} <= set(drift)
    listed = {artifact["path"]: artifact for artifact in manifest["artifacts"]}
    on_disk = {path.name for path in result.folder.iterdir()} - {"export_manifest.json"}
    assert set(listed) == on_disk
    for name, artifact in listed.items():
        data = (result.folder / name).read_bytes()
        assert artifact["sha256"] == hashlib.sha256(data).hexdigest()
        assert artifact["size_bytes"] == len(data)
    assert not any("doc.dlm" in text or question in text for question in ("hello kindly", "harbour"))


def test_every_stage_of_an_export_counts_once_to_its_total(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runtimes are asked for a merged folder of another type, and the gate's mix is measured: no count twice."""

    def answers(job: ParityJob) -> Generator[Progress, None, Answers]:
        for done in range(1, job.steps + 1):
            yield Progress("runtime", done, job.steps)
        return Answers([], [], [])

    figures = {"max_abs_logprob_diff": 0.0, "mean_kl": 0.0, "greedy_agree": 1.0, "runtime": "here", "dtype": "f16",
               "max_kl": 0.0, "greedy_tokens": 1}  # fmt: skip
    monkeypatch.setattr("dlm_tui.export.verify.runtime_answers", answers)
    monkeypatch.setattr("dlm_tui.export.verify.compare", lambda ours, theirs, dtype: dict(figures))
    found: list[Progress] = []
    request = ExportRequest(target="merged", quant="f16", verify=True)
    run_to_end(export_document(request, session), found.append)
    pieces = [list(steps) for _, steps in groupby(found, lambda step: (step.stage, step.text))]
    names = [(steps[0].stage, steps[0].text) for steps in pieces]
    assert len(names) == len(set(names)) and {"runtime", "frozen", "search", "answers"} <= {name for name, _ in names}
    for steps in pieces:
        assert len({step.total for step in steps[1:]} | {steps[0].total} - {0}) <= 1, steps[0]  # 0: not known yet
        assert [step.done for step in steps] == sorted(step.done for step in steps), steps[0]


@pytest.mark.parametrize(
    ("request_", "folder"),
    [
        ({"target": "ollama", "quant": "q8_0"}, "q8_0"),
        ({"target": "llama-server", "quant": "f32"}, "llama-server-f32"),
        ({"target": "peft"}, "peft"),
        ({"target": "vllm"}, "vllm"),
        ({"target": "merged"}, "merged"),
    ],
)
def test_default_folders(session: Session, request_: dict[str, Any], folder: str) -> None:
    assert destination(ExportRequest(**request_), session) == session.store.exports_dir / folder


def test_the_store_and_the_metrics_know_of_it(tmp_path: Path) -> None:
    session = open_tiny(tmp_path)
    mixed = export(session, target="ollama", mix="tone:0.75,facts:0.5", verify=False)
    single = export(session, target="peft", adapter="style", verify=False)
    stored = read_manifest(session.store)
    assert stored is not None
    first, second = stored.exports
    gguf = next(a for a in mixed.manifest["artifacts"] if a["path"].endswith(".gguf"))
    assert (first.target, first.quant, first.merged) == ("ollama", "q4_k_m", True)
    assert first.adapter_mix == [("tone", 0.75), ("facts", 0.5)]
    assert (first.base_gguf_sha256, first.adapter_name) == (gguf["sha256"], None)
    assert first.ollama_name == f"dlm-{session.document.dlm_id.lower()}:v0001"
    assert (second.target, second.quant, second.adapter_name, second.adapter_mix) == ("peft", "hf", "style", None)
    rows = MetricsReader(session.store).exports()
    assert len(rows) == 2
    assert str(single.folder) in str(rows)
    assert "hand_picked" in str(rows)


def test_the_gate_beside_the_files_gives_the_same_weights(session: Session) -> None:
    folder = export(session, target="llama-server", verify=False).folder
    description = json.loads((folder / "gate.json").read_text())
    tensors = load_file(folder / "gate.safetensors")
    x = np.random.default_rng(0).normal(size=description["input_dim"])
    inner = tensors["0.weight"].astype(float) @ x + tensors["0.bias"]
    gelu = inner * 0.5 * (1 + np.vectorize(__import__("math").erf)(inner / np.sqrt(2)))
    logits = tensors["2.weight"] @ gelu + tensors["2.bias"]
    weights = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    import torch

    assert session.gate is not None
    np.testing.assert_allclose(weights, session.gate.weights(torch.tensor(x).float()).numpy(), atol=1e-6)
    assert description["adapter_names"] == list(NAMES)
    assert description["mix_lora_id"] == 0
    assert description["lora_ids"] == {"tone": 1, "facts": 2, "style": 3}
    script = (folder / "llama-server_launch.sh").read_text()
    assert "mix.gguf:1.0,adapter.tone.gguf:0.0,adapter.facts.gguf:0.0,adapter.style.gguf:0.0" in script


@pytest.mark.parametrize("target", ["ollama", "llama-server", "peft", "vllm", "merged"])
def test_the_next_command_names_the_folder(session: Session, tmp_path: Path, target: str) -> None:
    out = tmp_path / "a folder with 'quotes' and $HOME"
    result = export(session, target=target, out=str(out), verify=False)
    words = shlex.split(result.next_command)
    assert words[0] in ("ollama", "bash", sys.executable, "vllm")
    assert any(word.startswith(str(out)) or f"={out}" in word for word in words)


@pytest.mark.parametrize(
    ("target", "program", "before"),
    [("ollama", "ollama", ["run"]), ("llama-server", "llama-server", ["-m"]), ("vllm", "vllm", ["serve"])],
)
def test_the_next_command_starts_what_it_names(
    session: Session, tmp_path: Path, target: str, program: str, before: list[str]
) -> None:
    out = tmp_path / "a folder with 'quotes' and $(touch hurt)"
    result = export(session, target=target, out=str(out), verify=False)
    start = started(["sh", "-c", result.next_command], program)
    assert start.words[:1] == before
    assert target != "ollama" or start.words == ["run", result.manifest["ollama_name"]]
    assert target != "vllm" or f"mixed={out}/adapters/mixed" in start.words
    assert target != "llama-server" or start.folder.samefile(out)


def test_what_a_modelfile_cannot_hold_is_said(tmp_path: Path) -> None:
    session = open_tiny(tmp_path, system='"Be\\u00a0kind\\u200b."')
    assert session.document.system_prompt == "Be\u00a0kind\u200b."
    result = export(session, target="ollama", quant="q8_0", verify=True)
    assert [note for note in result.notes if "cannot hold characters that cannot be seen" in note]
    assert 'SYSTEM """Be kind."""' in (result.folder / "Modelfile").read_text(encoding="utf-8")


def test_the_modelfile_carries_the_document(session: Session) -> None:
    result = export(session, target="ollama", verify=False)
    text = (result.folder / "Modelfile").read_text(encoding="utf-8")
    assert "\nFROM ./model.q4_k_m.gguf\n" in text
    assert "ADAPTER" not in text
    assert "PARAMETER temperature 0.3\nPARAMETER top_p 0.9\nPARAMETER num_ctx 128\n" in text
    assert ("system", 'You are "brief", and\n"" "kind"" "') in read_modelfile(text)
    assert any("three quotes in a row" in note for note in result.notes)
    assert 'TEMPLATE """' in text
    legacy = export(session, target="ollama", legacy_adapter=True, verify=False)
    text = (legacy.folder / "Modelfile").read_text(encoding="utf-8")
    assert "FROM ./base.q4_k_m.gguf\nADAPTER ./adapter.gguf\n" in text
    assert any("ADAPTER" in note for note in legacy.notes)


SENT = "the document's system prompt is not in this export: send it as the first message (system)"


@pytest.mark.parametrize(
    ("asked", "script"),
    [
        ({"target": "peft"}, None),
        ({"target": "merged"}, None),
        ({"target": "vllm"}, "vllm_launch.sh"),
        ({"target": "llama-server"}, "llama-server_launch.sh"),
        ({"target": "ollama"}, None),
        ({"target": "llama-server", "gate": "live"}, None),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_an_export_without_the_system_prompt_says_so(
    session: Session, tmp_path: Path, asked: dict[str, Any], script: str | None
) -> None:
    carried = asked["target"] == "ollama" or "gate" in asked
    result = export(session, **asked, verify=False, out=str(tmp_path / "out"))
    assert (SENT in result.notes) is not carried
    assert result.manifest["says_system_prompt"] is carried
    if script is not None:
        assert "send it as the first message (system)" in (result.folder / script).read_text()


def test_a_document_without_a_system_prompt_has_none_to_send(tmp_path: Path) -> None:
    session = open_tiny(tmp_path, system='"  "')
    for target, script in (("vllm", "vllm_launch.sh"), ("llama-server", "llama-server_launch.sh")):
        result = export(session, target=target, verify=False)
        assert result.manifest["says_system_prompt"] is None and SENT not in result.notes
        assert "system" not in (result.folder / script).read_text()


def test_asking_says_the_system_prompt_as_the_exports_do(tmp_path: Path) -> None:
    session = open_tiny(tmp_path, system="|\n  Be brief.\n\n  Be kind.\n")  # a block ends in a line feed
    said = session.document.system_prompt
    assert said == "Be brief.\n\nBe kind."
    written = dict(read_modelfile((export(session, target="ollama", verify=False).folder / "Modelfile").read_text()))
    assert "<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n" in written["template"]
    turns = f"<|im_start|>system\n{written['system']}<|im_end|>\n<|im_start|>user\nHow deep?<|im_end|>\n"
    asked = session.base.encode_rendered(f"{turns}<|im_start|>assistant\n")
    assert session.base.chat("How deep?", said) == asked
    live = export(session, target="llama-server", gate="live", verify=False, out=str(tmp_path / "live")).folder
    assert json.loads((live / "live.json").read_text())["system_prompt"] == written["system"]


def test_a_link_to_a_folder_is_followed(session: Session, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        result = export(session, out=str(tmp_path / "link"), adapter="tone", verify=False)
        assert result.folder == tmp_path / "real"
        assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def run(session: Session, *words: str) -> int:
    assert session.base_override is not None
    home = session.store.home
    return main(["export", str(session.path), "--home", str(home), "--base", str(session.base_override), *words])


def test_the_command_prints_the_manifest(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(session, "--json", "--no-verify", "--no-drift", "--mix", "tone:1") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    manifest = json.loads(out)
    assert (manifest["target"], manifest["gate_mode"], manifest["drift"]) == ("peft", "hand_picked", None)
    assert "hand_picked: tone 1.0000" in err


def test_the_command_without_json_says_where_and_what_next(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(session, "--target", "ollama", "--no-verify", "--no-drift", "--mix", "uniform") == 0
    folder, command = capsys.readouterr().out.splitlines()
    assert Path(folder).is_dir()
    assert command.startswith("ollama create dlm-")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--target", "docker"], 2, "docker"),
        (["--quant", "Q3_K_M", "--target", "ollama"], 2, "Q3_K_M"),
        (["--mix", "tone:-1"], 2, "negative"),
        (["--adapter", "nobody"], 2, "nobody"),
        (["--ollama-create"], 2, "ollama"),
    ],
)
def test_the_command_refuses_with_one_line(
    session: Session, capsys: pytest.CaptureFixture[str], words: list[str], code: int, text: str
) -> None:
    assert run(session, "--no-verify", *words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err.splitlines()[-1]


def test_ollama_is_run_in_the_folder_and_heard(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_ollama() is None
    with pytest.raises(ExportRefused, match="not on the PATH"):
        list(create_model(tmp_path, "x"))
    program = tmp_path / "ollama"
    program.write_text('#!/bin/sh\necho "$PWD"\necho "$@" >&2\ntest "$2" != bad\n')
    program.chmod(0o755)
    folder = tmp_path / "out"
    folder.mkdir()
    assert list(create_model(folder, "dlm-x:v0001")) == [str(folder), "create dlm-x:v0001 -f Modelfile"]
    with pytest.raises(ExportRefused, match="ended with code 1"):
        list(create_model(folder, "bad"))


def test_an_ollama_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ollama"
    program.write_text(f"#!{sys.executable} -u\n{_DEAF}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ollama, "_GRACE_SECONDS", 0.1)
    talk = create_model(tmp_path, "x")
    pid = int(next(talk))
    talk.close()
    assert not process_lives(pid)


_DEAF = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid())
signal.pause()
"""
