"""What a base can be exported to, and which forward it will get, is known from its configuration and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from transformers import AutoConfig

from dlm_tui.cli.main import main
from dlm_tui.engine.handlers import Handlers
from dlm_tui.engine.protocol import Open, Opened
from dlm_tui.export.choices import GGUF_TARGETS, TARGETS
from dlm_tui.export.suitability import obstacles, suitability
from dlm_tui.model.foreseen import foreseen_forward
from dlm_tui.model.registry import BaseSource, resolve_base
from dlm_tui.progress import run_to_end
from tests.export_sessions import open_tiny, write_document
from tests.tiny_models import tiny_base, write_tiny_base

NO_GPT2 = "the architecture 'gpt2' cannot be written as GGUF here"


def local(folder: Path) -> BaseSource:
    return resolve_base("hf:test/tiny", folder)


def test_every_target_or_the_reason_why_not(tmp_path: Path) -> None:
    source = local(write_tiny_base(tmp_path / "gemma", "gemma2"))
    assert suitability(source) == (list(TARGETS), "every target")
    quantised = suitability(msgspec.structs.replace(source, quantize="nf4"))
    assert quantised == (["peft"], "peft; nothing else from a quantised base")
    targets, text = suitability(local(write_tiny_base(tmp_path / "gpt", "gpt2")))
    assert targets == ["peft", "vllm", "merged"]
    assert text.startswith(f"peft, vllm, merged; no GGUF: {NO_GPT2}")
    targets, text = suitability(local(write_tiny_base(tmp_path / "biased", "qwen3", attention_bias=True)))
    assert targets == ["peft", "vllm", "merged"]
    assert "a qwen3 base with attention_bias, which llama.cpp does not load in this family, cannot be" in text
    assert suitability(resolve_base("hf:test/absent")) == ([], "not known: the base is not on this machine yet")
    (tmp_path / "gpt" / "tokenizer.json").write_text("{")
    assert "no GGUF" in suitability(local(tmp_path / "gpt"))[1]


def test_a_base_that_cannot_be_opened_is_not_promised_to_any_target(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "base")
    AutoConfig.for_model("llava", text_config={"model_type": "llama"}).save_pretrained(folder)
    reason = "none: transformers opens llava as something else than a language model, so it cannot be used here"
    assert suitability(local(folder)) == ([], reason)
    assert foreseen_forward(local(folder)) == (None, reason)


def test_a_loaded_base_says_the_same_as_its_folder(tmp_path: Path) -> None:
    for architecture in ("llama", "gpt2"):
        base = tiny_base(tmp_path / architecture, architecture)
        cannot, works = obstacles(base), suitability(base.source)[0]
        assert [target for target in TARGETS if target not in cannot] == works
    assert set(cannot) == set(GGUF_TARGETS) and cannot["ollama"].startswith(NO_GPT2)
    wide = tiny_base(tmp_path / "llama")
    wide.tokenizer.add_tokens(["<more>"])
    assert obstacles(wide)["ollama"].startswith("the tokenizer has an id 384 and the base only 384 embeddings")


def test_a_window_that_llama_cpp_does_not_know_is_said_beforehand(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "m", "mistral", sliding_window=12)
    assert suitability(local(folder))[1].startswith("every target; a GGUF reads 12 tokens at most")
    full = write_tiny_base(tmp_path / "g", "gemma3_text", layer_types=["full_attention"] * 3)
    assert "without a sliding layer, which llama.cpp takes for granted" in suitability(local(full))[1]


def test_the_embedded_base_needs_no_look() -> None:
    source = resolve_base("pocket")
    assert source.path is not None
    assert suitability(source) == suitability(local(source.path)) == (list(TARGETS), "every target")


def test_a_gguf_file_that_is_not_unpacked_is_said(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    assert suitability(local(tmp_path / "tiny.gguf")) == (
        [],
        "not known yet: tiny.gguf is unpacked when it is first used",
    )


def test_doctor_says_it_of_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, base = write_document(tmp_path, "gpt2"), write_tiny_base(tmp_path / "base", "gpt2")
    words = ["doctor", str(path), "--home", str(tmp_path / "home")]
    main([*words, "--base", str(base)])
    told = capsys.readouterr().out
    assert "exports     peft, vllm, merged; no GGUF" in told
    assert "forward     transformers' own: no description of GPT2LMHeadModel is there yet\n" in told
    main([*words, "--base", str(base), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["exports"], report["forward"]) == (["peft", "vllm", "merged"], "transformers")
    main(words)
    told = capsys.readouterr().out
    assert "not known: the base is not on this machine yet" in told
    assert "forward     not known before the base is on this machine" in told
    main([*words, "--base", str(write_tiny_base(tmp_path / "llama"))])
    assert "forward     fused, where its numbers agree with transformers' when it is loaded" in capsys.readouterr().out


def test_new_says_it_in_the_same_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_tiny_base(tmp_path / "base", "gpt2")
    words = ["--base-model", "hf:test/gpt2", "--base", str(base), "--no-open"]
    assert main(["new", str(tmp_path / "g.dlm"), *words]) == 0
    said = capsys.readouterr().err.splitlines()
    assert f"exports: {suitability(local(base))[1]}" in said
    assert main(["new", str(tmp_path / "h.dlm"), *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exports"] == ["peft", "vllm", "merged"]


def test_the_screen_is_told_when_the_document_opens(tmp_path: Path) -> None:
    path = open_tiny(tmp_path, "stablelm").path
    opened = run_to_end(
        Handlers(threads=1)(Open(document=str(path), home=str(tmp_path / "home"), base=str(tmp_path / "base")))
    )
    assert isinstance(opened, Opened) and set(opened.no_exports) == set(GGUF_TARGETS)
