"""Whoever reads an export renders its chat template and does nothing else: that has to say what the workbench says."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from dlm_tui.export.modelfile_reader import read_modelfile
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.targets_gguf import by_embedded
from dlm_tui.model.chat import ChatRenderer, Message
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from tests.export_sessions import export, open_tiny

_TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
_ALL = f"{{% for m in messages %}}{_TURN}{{% endfor %}}"
_ANSWER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
_ALTERNATES = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
)
KINDS = {
    "refuse": "{{ bos_token }}" + _REFUSES + _ALTERNATES + _ALL + _ANSWER,
    "drop": f"{{% for m in messages if m['role'] != 'system' %}}{_TURN}{{% endfor %}}{_ANSWER}",
    "default": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Q.<|im_end|>\n{% endif %}"
    + _ALL
    + _ANSWER,
    "strip": _ALL.replace("m['content']", "m['content'] | trim") + _ANSWER,
    "none": None,
}
ZERO, ONE, TWO, THREE = (
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": " one\n"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
)
CONVERSATIONS: tuple[Sequence[Message], ...] = (
    [ONE],
    [ZERO, ONE],
    [ONE, TWO, THREE],
    [ZERO, ONE, TWO, THREE],
    [ZERO, ZERO, ONE, THREE],
)


def opened(folder: Path, kind: str, **options: Any) -> Session:
    """A session on a base whose chat template is of this kind."""
    session = open_tiny(folder, **options)
    file, template = folder / "base" / "chat_template.jinja", KINDS[kind]
    if template is None:
        file.unlink()
    else:
        file.write_text(template)
    return run_to_end(Session.open(session.path, folder / "home", folder / "base"))


@pytest.fixture(scope="module", params=KINDS)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    return opened(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("target", ["ollama", "llama-server", "peft", "vllm", "merged"])
def test_what_a_reader_renders_is_what_the_workbench_says(session: Session, tmp_path: Path, target: str) -> None:
    meant = [session.base.renderer.text(turns, generate=True) for turns in CONVERSATIONS]
    folder = export(session, target=target, verify=False, quant="f16", out=str(tmp_path / "out")).folder
    if target in ("ollama", "llama-server"):
        found = [by_embedded(next(folder.glob("*.f16.gguf")), turns) for turns in CONVERSATIONS]
    else:
        tokenizer: Any = AutoTokenizer.from_pretrained(next(folder.rglob("tokenizer.json")).parent)
        if target == "vllm":
            words = shlex.split((folder / "vllm_launch.sh").read_text(), comments=True)
            given = [folder / words[at + 1] for at, word in enumerate(words) if word == "--chat-template"]
            own = Path(str(session.base.source.path)) / "chat_template.jinja"
            tokenizer.chat_template = (given or [own])[0].read_text()
        found = [
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns in CONVERSATIONS
        ]
    assert found == meant


def test_a_template_is_changed_only_where_it_has_to_be(tmp_path: Path) -> None:
    for kind in KINDS:
        session = opened(tmp_path / kind, kind)
        before = session.base.tokenizer.chat_template
        session.base.renderer.fold_for_others()
        assert (session.base.tokenizer.chat_template != before) is (kind in ("refuse", "drop")), kind
        after = session.base.tokenizer.chat_template
        session.base.renderer.fold_for_others()
        assert session.base.tokenizer.chat_template == after, "once is enough"


def test_a_modelfile_is_asked_as_its_reader_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused, dropped = opened(tmp_path / "refuse", "refuse"), opened(tmp_path / "drop", "drop")
    written = dict(read_modelfile((export(refused, target="ollama", quant="f16").folder / "Modelfile").read_text()))
    assert "template" not in written and written["system"]
    refused, dropped = opened(tmp_path / "refuse", "refuse"), opened(tmp_path / "drop", "drop")
    monkeypatch.setattr(ChatRenderer, "fold_for_others", lambda self: None)
    with pytest.raises(ExportRefused, match=r"takes nothing that the Modelfile says: System role not supported"):
        export(refused, target="ollama", quant="f16")
    with pytest.raises(ExportRefused, match="does not ask as the workbench does"):
        export(dropped, target="ollama", quant="f16")


def test_ollama_gets_a_template_of_its_own_only_where_blanks_stay(tmp_path: Path) -> None:
    stripped = export(opened(tmp_path, "strip"), target="ollama", verify=False, quant="f16").folder
    assert "TEMPLATE" not in (stripped / "Modelfile").read_text()
