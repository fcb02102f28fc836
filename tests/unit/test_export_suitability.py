"""What a base can be exported to is known from its configuration and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.export.choices import TARGETS
from dlm_tui.export.suitability import suitability
from tests.export_sessions import write_document
from tests.tiny_models import write_tiny_base


def test_every_target_or_the_reason_why_not(tmp_path: Path) -> None:
    targets, text = suitability(write_tiny_base(tmp_path / "gemma", "gemma2"))
    assert (targets, text) == (list(TARGETS), "every target")
    targets, text = suitability(write_tiny_base(tmp_path / "gpt", "gpt2"))
    assert targets == ["peft", "vllm", "merged"]
    assert text.startswith("peft, vllm, merged; no GGUF: the architecture 'gpt2' cannot be written as GGUF here")
    targets, text = suitability(write_tiny_base(tmp_path / "biased", "qwen3", attention_bias=True))
    assert targets == ["peft", "vllm", "merged"]
    assert "a qwen3 base with attention_bias, which llama.cpp does not load in this family, cannot be" in text
    assert suitability(None) == ([], "not known: the base is not on this machine yet")
    (tmp_path / "empty").mkdir()
    assert "no GGUF" in suitability(tmp_path / "empty")[1]


def test_doctor_says_it_of_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, base = write_document(tmp_path, "gpt2"), write_tiny_base(tmp_path / "base", "gpt2")
    words = ["doctor", str(path), "--home", str(tmp_path / "home")]
    main([*words, "--base", str(base)])
    assert "exports     peft, vllm, merged; no GGUF" in capsys.readouterr().out
    main([*words, "--base", str(base), "--json"])
    assert json.loads(capsys.readouterr().out)["exports"] == ["peft", "vllm", "merged"]
    main(words)
    assert "not known: the base is not on this machine yet" in capsys.readouterr().out
