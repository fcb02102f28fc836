"""Exports of a base that also takes images: its text model as GGUF, all of it as a folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from safetensors import safe_open

from dlm_tui.export.suitability import obstacles, suitability
from dlm_tui.session import Session
from tests.export_sessions import export, open_tiny
from tests.tiny_models import ARCHITECTURES, SMALL

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp (extra [llama]) is not installed"
)
GEMMA3: dict[str, Any] = {
    "text_config": {**ARCHITECTURES["gemma3_text"], "vocab_size": 384},
    "vision_config": {
        **{key: SMALL[key] for key in ("hidden_size", "intermediate_size")},
        "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
}  # fmt: skip
PROCESSOR = {"image_processor_type": "Gemma3ImageProcessor"}


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """As in the checkpoints from 4B on, with adapters on the layers of both parts."""
    monkeypatch.setitem(ARCHITECTURES, "gemma3", GEMMA3)
    session = open_tiny(tmp_path, "gemma3")
    assert any("vision_tower" in module for module in session.model.adapters["tone"].modules)
    return session


@pytest.mark.parametrize(("target", "quant"), [("ollama", "q8_0"), ("llama-server", "bf16")])
def test_the_text_model_becomes_gguf_and_the_rest_is_left_out(session: Session, target: str, quant: str) -> None:
    result = export(session, target=target, quant=quant, verify=True)
    assert "a GGUF holds the base's text model alone: it takes no images" in result.notes
    for path in result.folder.glob("*.gguf"):
        names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
        assert all(name.startswith(("blk.", "token_embd.", "output_norm.")) for name in names)


def test_a_merged_folder_holds_every_part(session: Session) -> None:
    origin = session.base.source.path
    assert origin is not None
    (origin / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    folder = export(session, target="merged", verify=True).folder
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gemma3"
    assert json.loads((folder / "preprocessor_config.json").read_text()) == PROCESSOR
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert {"model.vision_tower", "model.language_model"} <= {".".join(key.split(".")[:2]) for key in file.keys()}  # noqa: SIM118


def test_what_is_left_out_is_said_beforehand(session: Session) -> None:
    assert obstacles(session.base) == {}
    assert suitability(session.base.source)[1] == "every target, a GGUF without what takes images"
