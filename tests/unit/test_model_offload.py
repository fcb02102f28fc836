"""A base without room in memory, read from the disk: the same numbers, slowly."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
import torch

from dlm_tui.gate.embedding import embed_here
from dlm_tui.gate.nexttoken import best_mix, live_logprobs, prompt_batches
from dlm_tui.model import BaseUnavailable, MixedModel, load_base, resolve_base, weights_plan
from dlm_tui.model.backend_selection import why_slower
from dlm_tui.model.config_check import largest_bytes, quantised_bytes
from dlm_tui.model.registry import weight_files
from dlm_tui.progress import run_to_end
from tests.fetched_weights import watched_fetches
from tests.tiny_models import offloaded_base, random_adapter, tiny_base, write_tiny_base


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_answers_and_embeddings_are_those_of_the_whole_base(share: float, tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "base", "llama", tie_word_embeddings=False)
    whole = tiny_base(folder)
    size = 4 * sum(parameter.numel() for parameter in whole.model.parameters())
    base = offloaded_base(folder, tmp_path / "disk", int(size * share))
    on_disk = sum(4 * parameter.numel() for parameter in base.model.parameters() if parameter.is_meta)
    assert base.is_offloaded and on_disk >= size * (1 - share)
    assert base.identity == whole.identity and base.device.type == "cpu"

    adapter = random_adapter(whole, "one")
    slow, plain = MixedModel(base, {"one": adapter}), MixedModel(whole, {"one": adapter}, fast=False)
    assert slow.backbone.tier == "reference" and why_slower(base) == "its weights are read from the disk"
    ids = torch.randint(0, whole.vocab_size, (2, 12), generator=torch.Generator().manual_seed(3))
    mixes = torch.tensor([[0.8], [0.0]])
    found, wanted = (one.logits(one.forward(ids, None, mixes)) for one in (slow.backbone, plain.backbone))
    assert torch.equal(found, wanted)
    prompts = ["When does the tide turn?", "Say hello."]
    assert torch.equal(run_to_end(embed_here(slow, prompts)), run_to_end(embed_here(plain, prompts)))


@pytest.mark.parametrize(
    ("quantize", "remedy"),
    [
        (None, "close other programs, leave it on the disk with --offload FOLDER"),
        ("int8", "close other programs, leave it as it is on the disk with --quantize none --offload"),
        ("nf4", "close other programs, leave it as it is on the disk with --quantize none --offload FOLDER"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(
    quantize: str | None, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_base(tmp_path / "base", "llama")
    monkeypatch.setattr(weights_plan, "available_memory", lambda: 1000)
    monkeypatch.setattr(
        weights_plan, "require_library", lambda kind: None
    )  # it is refused before anything is quantised
    offload = tmp_path / "disk" if quantize else None
    source = msgspec.structs.replace(resolve_base("hf:test/llama", folder), quantize=quantize, offload=offload)
    with pytest.raises(BaseUnavailable, match=rf"takes .* are free; .*{remedy}"):
        run_to_end(load_base(source, device="cpu"))


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_four_bits_are_named_where_they_fit(
    quantize: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_base(tmp_path / "base", "llama", hidden_size=256, intermediate_size=1024, num_hidden_layers=6)
    files = weight_files(folder)
    free = quantised_bytes(files, 4, 4) + largest_bytes(files, 4)
    monkeypatch.setattr(weights_plan, "available_memory", lambda: free)
    monkeypatch.setattr(weights_plan, "require_library", lambda kind: None)
    source = msgspec.structs.replace(resolve_base("hf:test/llama", folder), quantize=quantize)
    with pytest.raises(BaseUnavailable, match=r"close other programs, keep it in 4 bits with --quantize nf4, leave it"):
        run_to_end(load_base(source, device="cpu"))


def test_what_a_stored_quantised_base_was_made_from_may_lie_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_base(tmp_path / "base", "llama")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(weights_plan, "available_memory", lambda: 1000)
    monkeypatch.setattr(weights_plan, "require_library", lambda kind: None)
    with pytest.raises(BaseUnavailable, match="leave the base that this one was made from on the disk with --offload"):
        run_to_end(load_base(resolve_base("hf:test/llama", folder), device="cpu"))


def test_a_base_that_fits_stays_in_memory(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "base", "llama")
    assert not offloaded_base(folder, tmp_path / "disk", 1 << 40).is_offloaded


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_the_best_frozen_mix_is_found_a_layer_at_a_time(architecture: str, tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "base", architecture)
    whole, base = tiny_base(folder, architecture), offloaded_base(folder, tmp_path / "disk", architecture=architecture)
    adapters = {name: random_adapter(whole, name, seed=seed) for seed, name in enumerate(("one", "two"))}
    plain, slow = MixedModel(whole, adapters, fast=False), MixedModel(base, adapters)
    batches = prompt_batches([[5, 9, 40, 7], [33, 8, 200], [90, 12, 13, 150, 16]])
    weights = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    live = run_to_end(live_logprobs(plain.backbone, batches, weights))
    start = torch.tensor([0.85, 0.15])
    wanted = run_to_end(best_mix(plain.reference, batches, live, start))
    assert not torch.allclose(wanted, start, atol=0.005)
    sizes = {name: weight.nbytes for name, weight in base.model.named_parameters(remove_duplicate=False)}
    layer = sum(size for name, size in sizes.items() if ".0." in name)
    around = sum(size for name, size in sizes.items() if not re.search(r"\.\d+\.", name))
    with watched_fetches() as fetched:
        assert torch.equal(run_to_end(best_mix(slow.reference, batches, live, start)), wanted)
    assert 0.9 * layer < fetched.peak <= layer + around < sum(sizes.values())
    assert not fetched.alive
    ids = torch.tensor([[5, 9, 40]])
    assert torch.equal(slow.reference.forward(ids), plain.reference.forward(ids))
