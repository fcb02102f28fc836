"""`--quantize`: remembered beside the document, read by whoever loads its base, and what an export says of it."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import AutoModelForCausalLM

from dlm_tui.cli.main import main
from dlm_tui.document import SideFile, SideFileError, load, read_side_file, set_side_value, side_file_path
from dlm_tui.document.side_file import Quantisation
from dlm_tui.engine.handlers import Handlers
from dlm_tui.engine.protocol import Open, Opened
from dlm_tui.export.requests import ExportRefused
from dlm_tui.model import base_of
from dlm_tui.model.quantised import quantisation_config
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from tests.export_sessions import export, open_tiny
from tests.training_samples import write_document


def test_the_flag_takes_what_the_side_file_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--help"]) == 0
    assert f"--quantize{{{','.join((*get_args(Quantisation), 'none'))}}}" in "".join(capsys.readouterr().out.split())


def test_the_flag_is_remembered_for_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = write_document(tmp_path)
    beside = side_file_path(document)
    beside.write_text('# mine\nbase = "elsewhere"  # here\n\n[training]\nrslora = true\n')
    common = ["show", str(document), "--home", str(tmp_path / "home")]
    assert main([*common, "--quantize", "nf4"]) == 0
    assert beside.read_text() == '# mine\nbase = "elsewhere"  # here\nquantize = "nf4"\n\n[training]\nrslora = true\n'
    assert main(common) == 0
    assert read_side_file(beside).quantize == "nf4"
    assert "\nquantize  nf4\n" in capsys.readouterr().out
    assert main([*common, "--quantize", "int8"]) == 0
    assert read_side_file(beside).quantize == "int8"
    assert main([*common, "--quantize", "none"]) == 0
    assert beside.read_text() == '# mine\nbase = "elsewhere"  # here\n\n[training]\nrslora = true\n'
    assert main([*common, "--offload", str(tmp_path / "disk")]) == 0
    assert read_side_file(beside).offload == str(tmp_path / "disk")
    told = capsys.readouterr().out
    assert f"\noffload   {tmp_path / 'disk'}\n" in told and "\nquantize" not in told.rpartition("\noffload")[2]
    assert main([*common, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["quantize"], report["offload"]) == (None, str(tmp_path / "disk"))
    assert main([*common, "--offload", "none"]) == 0
    assert read_side_file(beside).offload is None
    assert "\noffload" not in capsys.readouterr().out


def test_a_line_that_cannot_be_changed_alone_is_left(tmp_path: Path) -> None:
    beside = tmp_path / "doc.dlm.tui.toml"
    text = "base = '''\nquantize = 3\n'''\n"
    beside.write_text(text)
    with pytest.raises(SideFileError, match="quantize cannot be changed here"):
        set_side_value(beside, "quantize", "nf4")
    assert beside.read_text() == text


def test_whoever_asks_for_the_base_is_told(tmp_path: Path) -> None:
    session = open_tiny(tmp_path)
    set_side_value(side_file_path(session.path), "quantize", "int8")
    assert read_side_file(side_file_path(session.path)) == SideFile(quantize="int8")
    assert base_of(load(session.path), tmp_path / "base").quantize == "int8"


def test_what_cannot_be_opened_so_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = open_tiny(tmp_path)
    ask = ["prompt", str(session.path), "Hello", "--home", str(tmp_path / "home"), "--base", str(tmp_path / "base")]
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torchao" else find(name))
    assert main([*ask, "--quantize", "torchao-int8"]) == 1
    assert "pip install torchao" in capsys.readouterr().err
    assert not side_file_path(session.path).exists()
    assert main([*ask, "--max-tokens", "2"]) == 0


def test_a_number_format_that_the_base_is_not_read_in_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = open_tiny(tmp_path, "stablelm").path
    common = [str(path), "--home", str(tmp_path / "home"), "--base", str(tmp_path / "base"), "--json"]
    assert main(["prompt", *common, "hello", "--max-tokens", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []
    said = "answers are computed in float32, not in bfloat16, which only the fast path reads: no description of"
    narrow = [*common, "--dtype", "bfloat16", "--max-tokens", "2"]
    assert main(["prompt", *narrow, "hello"]) == 0
    told = capsys.readouterr()
    (warning,) = json.loads(told.out)["warnings"]
    assert warning.startswith(said) and f"warning: {warning}\n" in told.err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
    assert main(["repl", *narrow]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == [warning]
    opening = Open(document=str(path), home=str(tmp_path / "home"), base=str(tmp_path / "base"), dtype="bfloat16")
    opened = run_to_end(Handlers(threads=1)(opening))
    assert isinstance(opened, Opened) and (opened.warning, opened.dtype) == (warning, "float32")


@pytest.mark.slow
def test_a_stored_int8_checkpoint_exports_its_adapters(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    path = open_tiny(tmp_path, hidden_size=64, intermediate_size=96).path
    made = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.bfloat16, quantization_config=quantisation_config("int8"), device_map={"": "cpu"}
    )
    shutil.copytree(tmp_path / "base", tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors"))
    made.save_pretrained(tmp_path / "small")
    session = run_to_end(Session.open(path, tmp_path / "home", tmp_path / "small"))
    with pytest.raises(ExportRefused, match=r"that this one was made from \(--base PATH\)"):
        export(session, target="merged")
    result = export(session, target="peft", verify=True)
    assert result.manifest["parity"]["max_abs_logprob_diff"] < 1e-4
    assert "quantization_config" not in result.next_command


@pytest.mark.slow
def test_only_the_adapters_are_exported_from_a_quantised_base(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    path = open_tiny(tmp_path, hidden_size=64, intermediate_size=128).path
    set_side_value(side_file_path(path), "quantize", "nf4")
    session = run_to_end(Session.open(path, tmp_path / "home", tmp_path / "base"))
    assert session.base.quantisation == "nf4"
    opening = Open(document=str(path), home=str(tmp_path / "home"), base=str(tmp_path / "base"))
    opened = run_to_end(Handlers(threads=1)(opening))
    assert isinstance(opened, Opened) and opened.kept == "nf4"
    for target in ("merged", "vllm", "ollama", "llama-server"):
        with pytest.raises(ExportRefused, match=rf"quantised as nf4.*{target}.*--target peft.*--quantize none"):
            export(session, target=target)
    result = export(session, target="peft", verify=True)
    assert result.manifest["parity"]["max_abs_logprob_diff"] < 1e-4
    assert "load_in_4bit=True, bnb_4bit_quant_type=" in result.next_command
    done = subprocess.run(result.next_command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Hello" in done.stdout, done.stderr
    assert any("quantised as nf4" in note for note in result.notes)
