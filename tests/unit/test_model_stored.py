"""Bases that are computed on the pages of their bfloat16 file: the numbers of a float32 copy, without the copy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from dlm_tui.model import backend_selection, base_loading, stacked_experts, stored, weights_plan
from dlm_tui.model import base as bases
from dlm_tui.model.backbone import ReferenceBackbone
from dlm_tui.model.base import Base
from dlm_tui.model.base_loading import load_base
from dlm_tui.model.fused.forward import FusedBackbone
from dlm_tui.model.memory import at_least, at_most
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.registry import BaseUnavailable, resolve_base
from dlm_tui.progress import WARNING, Progress, run_to_end
from tests.tiny_models import ARCHITECTURES, SMALL, random_adapter, target_names, tiny_tokenizer, write_tiny_base

COMPILED = set(ARCHITECTURES) - {"gpt2", "stablelm"}
IDS = torch.randint(3, 300, (2, 30), generator=torch.Generator().manual_seed(3))


def write_bf16(folder: Path, architecture: str = "llama") -> Path:
    write_tiny_base(folder, architecture)
    file = folder / "model.safetensors"
    save_file({name: w.bfloat16() for name, w in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


def load(folder: Path, *, as_stored: bool = True) -> Base:
    return run_to_end(load_base(resolve_base("hf:test/m", folder), device="cpu", as_stored=as_stored))


def mixed(base: Base) -> MixedModel:
    return MixedModel(base, {"x": random_adapter(base, "x", targets=target_names(base)[:5])})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_numbers_are_those_of_float32_weights(tmp_path: Path, architecture: str) -> None:
    folder = write_bf16(tmp_path / "m", architecture)
    wide, narrow = load(folder, as_stored=False), load(folder)
    assert narrow.is_as_stored == (architecture != "gpt2") and not wide.is_as_stored  # its layers are of another kind
    assert (narrow.dtype, narrow.identity) == (torch.float32, wide.identity)
    with torch.no_grad():
        wanted = wide.model(IDS).logits
        assert torch.equal(narrow.model(IDS).logits, wanted)
    plain, model = mixed(wide), mixed(narrow)
    assert narrow.is_as_stored == (architecture in COMPILED)
    mix = model.coefficients({"x": 0.7})[None].repeat(2, 1)
    expected = plain.reference.forward(IDS, None, mix)
    for backbone in (model.reference, model.backbone):
        near(backbone.forward(IDS, None, mix), expected)
        near(backbone.logits(backbone.forward(IDS)), wanted)
        cache = backbone.new_cache(2, 30)
        found = [backbone.forward(IDS[:, a:b], cache, mix) for a, b in ((0, 12), (12, 15), (15, 16), (16, 30))]
        near(torch.cat(found, dim=1), expected)
    if isinstance(model.backbone, FusedBackbone) and narrow.is_as_stored:
        assert model.backbone.weights.compiled and model.backbone.reads == torch.bfloat16


def near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=5e-5, rtol=5e-5)


def test_the_weights_stay_in_the_pages_of_the_file(tmp_path: Path) -> None:
    folder = write_bf16(tmp_path / "m")
    base = load(folder)
    model = mixed(base)
    model.backbone.logits(model.backbone.forward(IDS))
    assert isinstance(model.backbone, FusedBackbone)
    weights = model.backbone.weights
    read = [part for layer in weights.layers for group in layer.groups for part in group.weights]
    assert len(read) == 7 * len(weights.layers)
    for tensor in (*read, weights.head, weights.embedding):
        assert str(folder / "model.safetensors") in mapping_of(tensor)


def mapping_of(tensor: torch.Tensor) -> str:
    """The line of the process's memory map that holds a tensor."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in re.split("[- ]", line)[:2])
        if start <= tensor.data_ptr() < end:
            return line
    raise AssertionError("the tensor is in no mapping")


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_experts_stay_in_the_pages_of_the_file(tmp_path: Path, architecture: str, stacked: bool) -> None:
    folder = write_bf16(tmp_path / "m", architecture)
    if stacked:
        stack_in_file(folder)
    base = load(folder)
    model = mixed(base)
    modules = [module for module in base.model.modules() if "Experts" in type(module).__name__]
    experts = [part for module in modules for part in module.parameters()]
    per_layer = 2 if stacked else 3 * len(modules[0].down_proj)
    assert len(experts) == per_layer * base.config.num_hidden_layers
    assert {part.dtype for part in experts} == {torch.bfloat16}
    assert isinstance(model.backbone, FusedBackbone) and model.backbone.weights.compiled
    read = {part.data_ptr() for layer in model.backbone.weights.matrices for parts in layer for part in parts}
    assert {part.data_ptr() for part in experts} <= read
    for tensor in experts:
        assert str(folder / "model.safetensors") in mapping_of(tensor)
    wide = load(folder, as_stored=False)
    assert base.parameters == wide.parameters and base.identity == wide.identity
    near(base.model(IDS).logits, wide.model(IDS).logits)


def stack_in_file(folder: Path) -> None:
    """Write the weights as the library names them: the experts of a layer as two tensors."""
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    assert any(name.endswith("experts.gate_up_proj") for name in weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_a_weight_that_one_expert_lacks_is_named(tmp_path: Path, architecture: str) -> None:
    folder = write_bf16(tmp_path / "m", architecture)
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if ".experts.3." in name)
    save_file({key: part for key, part in weights.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(BaseUnavailable, match=re.escape(f"there is no {name}, which other experts have; fetch")):
        load(folder)


def test_experts_of_a_base_that_also_takes_images_stay_in_the_pages(tmp_path: Path) -> None:
    """Its configuration holds the text's, by whose type the library opens it."""
    text = {**SMALL, "head_dim": 8, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    config = AutoConfig.for_model(
        "qwen3_5_moe", text_config={**text, "num_experts": 4, "num_experts_per_tok": 2, "vocab_size": 384}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] != model.config.model_type
    base = load(tmp_path)
    experts = [module for module in base.model.modules() if "Experts" in type(module).__name__]
    parts = [part for module in experts for part in module.parameters()]
    assert len(parts) == 3 * 4 * SMALL["num_hidden_layers"]
    for part in parts:
        assert str(tmp_path / "model.safetensors") in mapping_of(part)


def test_experts_of_unequal_shape_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_bf16(tmp_path / "m", "mixtral")
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if ".experts.1." in name)
    save_file({**weights, name: weights[name][:-1].contiguous()}, file, metadata={"format": "pt"})
    with pytest.raises(
        BaseUnavailable, match=r"experts\.1\.\w+\.weight is \d+ x \d+ in its files, and \d+ x \d+ for other"
    ):
        load(folder)


def test_other_experts_are_stacked_and_need_their_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bf16(tmp_path / "m", "mixtral")
    for module in (stacked_experts, stored):
        monkeypatch.setattr(module, "are_plain_experts", lambda module: False)
    assert not load(folder).is_as_stored
    needed = 4 * load(folder).parameters
    monkeypatch.setattr(weights_plan, "available_memory", lambda: needed - 1)
    with pytest.raises(BaseUnavailable, match="are free"):
        load(folder)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"gpt2"}))
def test_what_is_said_to_lie_beside_the_pages_does(tmp_path: Path, architecture: str) -> None:
    folder = write_bf16(tmp_path / "m", architecture)
    wide = [part for part in load(folder).model.parameters() if part.dtype == torch.float32 and part.ndim > 1]
    assert stored.bytes_beside(folder) == sum(part.nbytes for part in wide)


def test_what_lies_beside_the_pages_counts_and_has_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table or experts that are widened are memory that does not come and go."""
    folder = write_bf16(tmp_path / "m")
    size = 4 * load(folder).parameters
    monkeypatch.setattr(weights_plan, "bytes_beside", lambda folder: size // 4)
    monkeypatch.setattr(weights_plan, "available_memory", lambda: size // 4)
    said: list[Progress] = []
    assert run_to_end(load_base(resolve_base("hf:test/m", folder), device="cpu"), said.append).is_as_stored
    (warning,) = [step.text for step in said if step.stage == WARNING]
    assert f"takes {at_least((size + size // 4) // 2)} of memory, and {at_most(size // 4)} are free: " in str(warning)
    monkeypatch.setattr(weights_plan, "available_memory", lambda: size // 4 - 1)
    with pytest.raises(BaseUnavailable, match=f"takes {at_least(size)} of memory"):
        load(folder)
    source = msgspec.structs.replace(resolve_base("hf:test/m", folder), offload=tmp_path / "disk")
    assert run_to_end(load_base(source, device="cpu")).is_offloaded
    monkeypatch.undo()
    monkeypatch.setattr(weights_plan, "bytes_beside", lambda folder: size // 2 + 1)
    assert not load(folder).is_as_stored  # nothing would be won


def test_experts_compute_under_autocast(tmp_path: Path) -> None:
    base = load(write_bf16(tmp_path / "m", "qwen3_moe"))
    with torch.no_grad():
        wanted = base.model(IDS).logits
        with torch.autocast("cpu", torch.bfloat16):
            found = base.model(IDS).logits
    torch.testing.assert_close(found.float(), wanted, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_without_the_compiled_step_the_weights_are_widened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    folder = write_bf16(tmp_path / "m", architecture)
    monkeypatch.setattr(backend_selection, "compiles", lambda: False)
    base = load(folder)
    model = mixed(base)
    assert not base.is_as_stored and isinstance(model.backbone, FusedBackbone)
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float32}
    assert not [module for module in base.model.modules() if type(module).__name__.startswith("Stored")]
    near(model.backbone.forward(IDS), ReferenceBackbone(load(folder, as_stored=False)).forward(IDS))


def test_large_weights_go_through_in_blocks_and_gradients_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(2, 3, 24, dtype=torch.float64).float(), torch.randn(50, 24).bfloat16()
    bias = torch.randn(50)
    monkeypatch.setattr(stored, "_BLOCK_ELEMENTS", 7 * 24)
    wanted = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(stored.widened_product(x, weight, bias).double(), wanted, atol=1e-5, rtol=1e-5)
    layer = stored.StoredLinear(24, 50).requires_grad_(False)
    layer.weight.data, layer.bias.data = weight, bias
    x.requires_grad_(True)
    y = layer(x)
    assert y.grad_fn is not None
    change = torch.randn_like(y)
    y.backward(change)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), change.double() @ weight.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_other_checkpoints_are_loaded_as_before(tmp_path: Path, architecture: str) -> None:
    folder = write_bf16(tmp_path / "m", architecture)
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file({**weights, name: weights[name].float()}, file, metadata={"format": "pt"})
    base = load(folder)
    assert not base.is_as_stored and {p.dtype for p in base.model.parameters()} == {torch.float32}


def test_memory_is_looked_at_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = write_tiny_base(tmp_path / "wide")
    narrow = write_bf16(tmp_path / "narrow")
    size = 4 * sum(parameter.numel() for parameter in load(wide).model.parameters())
    monkeypatch.setattr(weights_plan, "available_memory", lambda: size - 1)
    monkeypatch.setattr(base_loading, "_load_model", None)
    with pytest.raises(BaseUnavailable) as caught:
        load(wide, as_stored=False)
    assert f"takes {at_least(size)} of memory, and {at_most(size - 1)} are free" in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setattr(weights_plan, "available_memory", lambda: size - 1)
    assert load(narrow, as_stored=False).is_as_stored
    for module in (weights_plan, bases):
        monkeypatch.setattr(module, "available_memory", lambda: 1000)
    said: list[Progress] = []
    base = run_to_end(load_base(resolve_base("hf:test/m", narrow), device="cpu"), said.append)
    (warning,) = [step.text for step in said if step.stage == WARNING]
    assert "1.0 kB are free: its weights are read from the disk again and again" in str(warning)
    monkeypatch.setattr(backend_selection, "compiles", lambda: False)
    model = mixed(base)
    assert base.is_as_stored and model.backbone.tier == "onednn"
    near(model.backbone.forward(IDS), ReferenceBackbone(base).forward(IDS))


@pytest.mark.parametrize(
    ("architecture", "targets"), [("llama", ["q_proj", "down_proj"]), ("qwen3_moe", ["q_proj", "o_proj"])]
)
def test_an_adapter_trains_on_weights_in_the_pages_of_their_file(
    tmp_path: Path, architecture: str, targets: list[str]
) -> None:
    folder = write_bf16(tmp_path / "m", architecture)
    found = []
    for as_stored in (False, True):
        base = load(folder, as_stored=as_stored)
        assert base.is_as_stored == as_stored
        torch.manual_seed(0)
        model = get_peft_model(base.model, LoraConfig(r=4, target_modules=targets))
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for _ in range(5):
            loss = model(input_ids=IDS, labels=IDS).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(float(loss))
        assert losses[-1] < losses[0]
        found.append(losses)
    # experts add in another order, and AdamW's first steps are as large for small gradients as for large ones
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert found[0] == pytest.approx(found[1], rel=1e-5 if architecture == "llama" else 1e-4)
