"""The exported folders in PEFT and transformers, and the merge that PEFT offers by itself as the baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from dlm_tui.errors import UsageError
from dlm_tui.export.concatenate import LoraPair, concatenate
from dlm_tui.export.merged_folder import write_merged
from dlm_tui.export.parity import runtime_installed
from dlm_tui.export.peft_folder import vllm_rank
from dlm_tui.export.prompts import parity_prompts
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.weights import FolderWeights, MemoryWeights
from dlm_tui.session import Session
from dlm_tui.store import current_version
from tests.export_sessions import NAMES, export, open_tiny
from tests.tiny_models import write_tiny_base


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return open_tiny(tmp_path_factory.mktemp("peft"), "llama", tie_word_embeddings=False, vocab_size=387)


def plain_model(session: Session) -> Any:
    assert session.base.source.path is not None
    return AutoModelForCausalLM.from_pretrained(session.base.source.path, dtype=torch.float32).eval()


def logprobs(model: Any, prompts: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return torch.stack([model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1) for ids in prompts])


def workbench(session: Session, mix: dict[str, float], prompts: list[list[int]]) -> Tensor:
    backbone, row = session.model.backbone, session.model.coefficients(mix).reshape(1, -1)
    with torch.no_grad():
        hidden = [backbone.forward(torch.tensor([ids]), None, row)[0, -1] for ids in prompts]
        return backbone.logits(torch.stack(hidden)).double().log_softmax(-1)


@pytest.mark.parametrize("target", ["peft", "vllm"])
def test_peft_loads_the_folder_to_the_same_answers(session: Session, target: str) -> None:
    result = export(session, target=target, mix="tone:0.7,facts:0.3,style:-0.4", signed=True, verify=False)
    folder = result.folder / ("adapters/mixed" if target == "vllm" else "")
    prompts = parity_prompts(session.document, session.base, 96)
    loaded = PeftModel.from_pretrained(plain_model(session), folder).eval()
    mine = workbench(session, {"tone": 0.7, "facts": 0.3, "style": -0.4}, prompts)
    assert len(prompts) == 16
    assert (logprobs(loaded, prompts) - mine).abs().max() <= 1e-5
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4 + 7 + 3
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert (folder / "tokenizer.json").is_file()


def test_vllm_is_told_the_rank_it_needs(session: Session) -> None:
    result = export(session, target="vllm", verify=False)
    assert result.manifest["max_lora_rank"] == 16
    for text in (result.next_command, (result.folder / "vllm_launch.sh").read_text()):
        assert "--max-lora-rank 16" in text
        assert "--enable-lora" in text
    config = json.loads((result.folder / "vllm_config.json").read_text())
    assert config["max_lora_rank"] == 16
    assert f"--served-model-name {config['served_model_name']} " in result.next_command
    assert [vllm_rank(rank) for rank in (1, 2, 8, 9, 129, 257, 512)] == [1, 8, 8, 16, 256, 320, 512]
    with pytest.raises(ExportRefused, match="rank 513"):
        vllm_rank(513)


@pytest.mark.parametrize("quant", ["f32", "f16"])
def test_the_merged_folder_answers_like_the_mix(session: Session, quant: str) -> None:
    result = export(session, target="merged", quant=quant, verify=False)
    prompts = parity_prompts(session.document, session.base, 96)
    loaded = AutoModelForCausalLM.from_pretrained(result.folder, dtype=torch.float32).eval()
    worst = (logprobs(loaded, prompts) - workbench(session, dict(result.manifest["mix"]), prompts)).abs().max()
    assert worst <= {"f32": 1e-4, "f16": 2e-2}[quant]
    assert (
        json.loads((result.folder / "config.json").read_text())["dtype"] == {"f32": "float32", "f16": "float16"}[quant]
    )


@pytest.mark.slow
def test_verification_runs_peft_and_transformers_in_a_process_of_their_own(session: Session) -> None:
    assert runtime_installed("transformers")
    parity = export(session, target="peft").manifest["parity"]
    assert parity["max_abs_logprob_diff"] <= 1e-5
    assert parity["runtime"].startswith("peft ")
    assert (parity["prompts"], parity["greedy_agree"]) == (16, 1.0)


def test_the_stack_is_what_peft_reads_added_up(session: Session) -> None:
    """Unequal ranks, targets and scales, against the plain sum in float64 and against the changes PEFT reads itself."""
    mix = dict.fromkeys(NAMES, 1 / 3)
    model: Any = None
    for name in NAMES:
        version = current_version(session.store, name)
        assert version is not None
        if model is None:
            model = PeftModel.from_pretrained(plain_model(session), version.path, adapter_name=name)
        else:
            model.load_adapter(version.path, adapter_name=name)
    module = "model.layers.1.self_attn.q_proj"
    layer = model.get_submodule(f"base_model.model.{module}")
    exact = sum(
        weight * low.scale * low.lora_B.double() @ low.lora_A.double()
        for name, weight in mix.items()
        if (low := session.model.adapters[name].modules.get(module)) is not None
    )
    assert isinstance(exact, Tensor)
    peft_sum = sum(weight * layer.get_delta_weight(name) for name, weight in mix.items())
    pair = concatenate(session.model.adapters, list(mix.items()))[module]
    for found in (pair.lora_B @ pair.lora_A, peft_sum.detach()):
        assert (found.double() - exact).norm() / exact.norm() < 3e-7


def test_the_linear_merge_of_peft_is_another_matrix(session: Session) -> None:
    """The baseline: what the same mix of equal ranks becomes there, against the plain sum."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    model: Any = get_peft_model(plain_model(session), config, adapter_name="a")
    for name in ("b", "c"):
        model.add_adapter(name, config)
    model.add_weighted_adapter(["a", "b", "c"], [1 / 3] * 3, "mixed", combination_type="linear")
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    exact = sum(layer.get_delta_weight(name) for name in "abc") / 3
    adapters = {name: type("A", (), {"modules": {"q": _low(layer, name)}}) for name in "abc"}
    pair = concatenate(adapters, [(name, 1 / 3) for name in "abc"])["q"]
    linear = float((layer.get_delta_weight("mixed") - exact).norm() / exact.norm())
    ours = float((pair.lora_B @ pair.lora_A - exact).norm() / exact.norm())
    assert linear > 1.0
    assert ours < 1e-6


def _low(layer: Any, name: str) -> Any:
    lora_A, lora_B = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    return type("L", (), {"lora_A": lora_A, "lora_B": lora_B, "scale": layer.scaling[name], "tokens": False})


def test_gpt2_with_its_transposed_weights(tmp_path: Path) -> None:
    session = open_tiny(tmp_path, "gpt2")
    prompts = parity_prompts(session.document, session.base, 64)
    mine = None
    for target in ("peft", "merged"):
        result = export(session, target=target, quant="f32", verify=False)
        mine = workbench(session, dict(result.manifest["mix"]), prompts)
        loaded = (
            PeftModel.from_pretrained(plain_model(session), result.folder)
            if target == "peft"
            else AutoModelForCausalLM.from_pretrained(result.folder)
        )
        assert (logprobs(loaded.eval(), prompts) - mine).abs().max() <= 1e-5


def test_many_shards_are_one_model(session: Session, tmp_path: Path) -> None:
    assert session.base.source.path is not None
    source = FolderWeights(session.base.source.path)
    pairs = concatenate(session.model.adapters, [("tone", 1.0)])
    for _ in write_merged(tmp_path, source, pairs, session.base.model.config.to_dict(), "f32", shard_bytes=20_000):
        pass
    shards = list(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    reopened = FolderWeights(tmp_path)
    assert sorted(reopened.names()) == sorted(source.names())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    for name in source.names():
        expected = source.rows(name, 0, 10**9)
        module = name.removesuffix(".weight")
        if module in pairs:
            expected = expected + pairs[module].lora_B @ pairs[module].lora_A
        torch.testing.assert_close(loaded[name], expected)


@pytest.mark.parametrize(("stored", "said"), [(torch.float16, "float32"), (torch.float32, "bfloat16")])
@pytest.mark.parametrize("target", ["peft", "vllm"])
def test_the_cost_is_of_the_type_that_the_reader_loads(
    tmp_path: Path, target: str, stored: torch.dtype, said: str
) -> None:
    folder = write_tiny_base(tmp_path / "base", "llama")
    weights = load_file(path := folder / "model.safetensors")
    save_file({name: weight.to(stored) for name, weight in weights.items()}, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": said}))
    found = export(open_tiny(tmp_path, "llama"), target=target, verify=True)
    assert found.manifest["cost"]["dtype"] == {"float32": "f32", "bfloat16": "bf16"}[said]
    loaded: Any = AutoPeftModelForCausalLM.from_pretrained(next(found.folder.rglob("adapter_config.json")).parent)
    assert str(loaded.get_base_model().dtype) == f"torch.{said}"
    if target == "vllm":
        assert f"--dtype {said} " in (found.folder / "vllm_launch.sh").read_text()


def test_a_number_of_its_own_in_the_checkpoint_is_taken_along(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "base", "llama")
    weights = load_file(path := folder / "model.safetensors")
    name = "model.layers.0.self_attn.k_scale"
    save_file({**weights, name: torch.tensor(1.5)}, path, {"format": "pt"})
    found = export(open_tiny(tmp_path, "llama"), target="merged", verify=True)
    assert load_file(found.folder / "model.safetensors")[name] == torch.tensor(1.5)
    sources = MemoryWeights({name: torch.tensor(1.5)}), FolderWeights(folder)
    assert [float(one.rows(name, 0, 1)) for one in sources] == [1.5, 1.5]


def test_numbers_too_large_for_the_type_are_refused(session: Session, tmp_path: Path) -> None:
    assert session.base.source.path is not None
    source = FolderWeights(session.base.source.path)
    module = "model.layers.0.self_attn.q_proj"
    huge = {module: LoraPair(torch.ones(1, 32) * 1e3, torch.ones(32, 1) * 1e3)}
    with pytest.raises(ExportRefused, match=r"q_proj.*too large for float16"):
        for _ in write_merged(tmp_path, source, huge, session.base.model.config.to_dict(), "f16"):
            pass


def test_merged_takes_only_types_that_safetensors_models_have(session: Session) -> None:
    with pytest.raises(UsageError, match="not q8_0"):
        export(session, target="merged", quant="q8_0")
