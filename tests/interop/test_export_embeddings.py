"""Exports of a mix that changes the token embedding: the output layer, tied to it in the base, stays the base's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from dlm_tui.export.one_adapter import export_adapter
from dlm_tui.export.parity import runtime_installed
from dlm_tui.export.prompts import parity_prompts
from dlm_tui.export.requests import ExportRefused
from dlm_tui.model import Adapter
from dlm_tui.model.modulated.targets import ModulationError
from dlm_tui.session import Session
from tests.export_sessions import export, mixed_adapters, open_tiny
from tests.tiny_models import token_adapter

MIX = {"tone": 0.7, "facts": 0.5, "style": -0.4}
SPEC = "tone:0.7,facts:0.5,style:-0.4"
needs_llama = pytest.mark.skipif(not runtime_installed("llama.cpp"), reason="the extra [llama] is not installed")


def adapters(base: Any) -> dict[str, Adapter]:
    """`facts` and `style` change the embedding, with unequal ranks; `tone` does not."""
    facts, style = token_adapter(base, "facts", 3, 2, 0.15), token_adapter(base, "style", 5, 3, 0.15)
    return {**mixed_adapters(base), "facts": facts, "style": style}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("tokens")
    return open_tiny(folder, "llama", adapters=adapters, tie_word_embeddings=request.param)


def tied(session: Session) -> bool:
    return bool(session.base.config.tie_word_embeddings)


def difference(session: Session, model: Any) -> float:
    """Largest difference of any log-probability between a loaded model and the workbench under MIX."""
    prompts = parity_prompts(session.document, session.base, 96)
    backbone, row = session.model.backbone, session.model.coefficients(MIX).reshape(1, -1)
    largest = 0.0
    with torch.no_grad():
        for ids in prompts:
            hidden = backbone.forward(torch.tensor([ids]), None, row)[0, -1]
            mine = backbone.logits(hidden).double().log_softmax(-1)
            theirs = model.eval()(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
            largest = max(largest, float((mine - theirs).abs().max()))
    return largest


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_peft_loads_the_mix(session: Session) -> None:
    result = export(session, target="peft", mix=SPEC, signed=True)
    assert session.base.source.path is not None
    assert difference(session, PeftModel.from_pretrained(loaded(session.base.source.path), result.folder)) <= 1e-5


def test_the_merged_folder_keeps_the_output_layer(session: Session) -> None:
    result = export(session, target="merged", mix=SPEC, signed=True, quant="f32")
    model = loaded(result.folder)
    assert difference(session, model) <= 1e-5
    assert model.config.tie_word_embeddings is False
    assert torch.equal(model.lm_head.weight, session.base.model.get_output_embeddings().weight)  # type: ignore[operator]
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert any("stored apart" in note for note in result.notes) == tied(session)
    export(session, target="merged", mix=SPEC, signed=True, quant="bf16", verify=True)


@needs_llama
@pytest.mark.parametrize("quant", ["f32", "q8_0"])
def test_llama_cpp_answers_as_the_workbench_does(session: Session, quant: str) -> None:
    merged = export(session, target="ollama", mix=SPEC, signed=True, quant=quant, verify=True)
    names = {tensor.name for tensor in gguf.GGUFReader(next(merged.folder.glob("model.*.gguf"))).tensors}
    assert "output.weight" in names
    apart = export(session, target="llama-server", mix=SPEC, signed=True, quant=quant, verify=True)
    # 8 bits round activations, too; what that explains was judged by the export itself
    if quant == "f32":
        assert apart.manifest["parity"]["separate_adapters"]["max_abs_logprob_diff"] < 1e-3
    lora = {tensor.name: tensor for tensor in gguf.GGUFReader(apart.folder / "adapter.facts.gguf").tensors}
    assert list(lora["token_embd.weight.lora_a"].shape) == [3, session.base.vocab_size]
    assert "token_embd.weight.lora_a" not in {
        tensor.name for tensor in gguf.GGUFReader(apart.folder / "adapter.tone.gguf").tensors
    }
    legacy = export(session, target="ollama", mix=SPEC, signed=True, quant=quant, legacy_adapter=True, verify=True)
    assert "ADAPTER" in (legacy.folder / "Modelfile").read_text()


def test_one_adapter_in_each_form(session: Session, tmp_path: Path) -> None:
    folder = export_adapter(session.store, "facts", None, session.base, "peft", tmp_path / "facts")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert "model.embed_tokens" in config["target_modules"]
    if tied(session):
        with pytest.raises(ExportRefused, match=r"llama\.cpp takes 'model.embed_tokens' and the output layer"):
            export_adapter(session.store, "facts", None, session.base, "gguf", tmp_path / "facts.gguf")
    else:
        export_adapter(session.store, "facts", None, session.base, "gguf", tmp_path / "facts.gguf")
    with pytest.raises(ModulationError, match="linear layers only"):
        export_adapter(session.store, "facts", None, session.base, "modulated", tmp_path / "facts.safetensors")


def test_what_was_not_tried_is_refused(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match="never tried in vLLM"):
        export(session, target="vllm", mix=SPEC, signed=True)


def test_a_family_whose_output_layer_llama_cpp_always_ties_is_refused(tmp_path: Path) -> None:
    gemma = open_tiny(tmp_path, "gemma3_text", adapters=adapters, tie_word_embeddings=True)
    with pytest.raises(ExportRefused, match="output layer of its own"):
        export(gemma, target="ollama", mix=SPEC, signed=True)
    assert difference(gemma, loaded(export(gemma, target="merged", mix=SPEC, signed=True, quant="f32").folder)) <= 1e-5
