"""Corpus embedding, the first 512 tokens, and the cache."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_tui.gate.cache import MAX_SHARDS, EmbeddingCache
from dlm_tui.gate.embedding import BATCH_TOKENS, embed_prompts, length_batches, prompt_tokens
from dlm_tui.model import MixedModel
from dlm_tui.progress import Progress, run_to_end
from tests.benchmarks.gate_reference import reference_embedding
from tests.gate_samples import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MixedModel:
    return tiny_model(tmp_path_factory.mktemp("base"))


def test_batches_equal_one_by_one(model: MixedModel) -> None:
    chance = random.Random(0)
    words = ["harbour", "bread", "東京", "🙂", "ladder", "the", "tide", "\n"]
    prompts = [" ".join(chance.choice(words) for _ in range(chance.choice([1, 2, 5, 40, 300]))) for _ in range(40)]
    prompts += ["", prompts[0]]
    steps: list[Progress] = []
    work = embed_prompts(model.backbone, model.base, prompts, hidden_size=model.base.hidden_size)
    rows = run_to_end(work, steps.append)
    assert rows.dtype == torch.float32 and steps[-1].done == len(prompts) == steps[-1].total
    for prompt, row in zip(prompts, rows, strict=True):
        expected = (
            reference_embedding(model.base.model, model.base.tokenizer, prompt) if prompt else torch.zeros_like(row)
        )
        assert torch.allclose(row, expected, atol=1e-5)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=60))
def test_batches_hold_similar_lengths_within_the_budget(lengths: list[int]) -> None:
    batches = list(length_batches(lengths))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= BATCH_TOKENS


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab the\n🙂é東?1", min_size=0, max_size=40), st.integers(1, 600))
def test_the_first_tokens_are_the_tokenizers_own(model: MixedModel, piece: str, times: int) -> None:
    prompt = piece * times
    tokens = prompt_tokens(model.base, prompt)
    whole = list(model.base.tokenizer(prompt)["input_ids"]) if prompt else []
    assert list(tokens.ids) == whole[:512]
    assert tokens.truncated == (len(whole) > 512)


def _cache(folder: Path, size: int = 6, **options: int) -> EmbeddingCache:
    return EmbeddingCache(folder, "base:tokenizer", size, **options)


def _rows(count: int, size: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_the_cache_gives_back_bit_for_bit(tmp_path: Path) -> None:
    prompts = ["a", "", "ü", "\ud800", "a\n"]
    rows = _rows(5)
    cache = _cache(tmp_path)
    assert cache.find(prompts) == [None] * 5
    cache.add(prompts, rows)
    for reader in (cache, _cache(tmp_path)):
        found = reader.find([*prompts, "new"])
        assert found[-1] is None
        assert all(row is not None and torch.equal(row, kept) for row, kept in zip(found, rows, strict=False))
    assert EmbeddingCache(tmp_path, "other:tokenizer", 6).find(["a"]) == [None]
    assert EmbeddingCache(tmp_path, "base:tokenizer", 7).find(["a"]) == [None]


@pytest.mark.parametrize("damage", ["flip", "cut", "garbage", "empty", "pickle"])
def test_a_damaged_shard_is_embedded_again(tmp_path: Path, damage: str) -> None:
    _cache(tmp_path).add(["kept"], _rows(1, seed=1))
    _cache(tmp_path).add([f"prompt {n}" for n in range(20)], _rows(20))
    shard = sorted(tmp_path.rglob("*.safetensors"))[1]
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        place = data.index(_rows(20)[7].numpy().tobytes()[:8])
        data[place] ^= 1
    broken = {
        "flip": bytes(data),
        "cut": bytes(data[:-50]),
        "garbage": os.urandom(300),
        "empty": b"",
        "pickle": b"\x80\x04.",
    }
    shard.write_bytes(broken[damage])
    cache = _cache(tmp_path)
    found = cache.find([f"prompt {n}" for n in range(20)])
    lost = [n for n, row in enumerate(found) if row is None]
    assert lost == ([7] if damage == "flip" else list(range(20)))
    kept = cache.find(["kept"])[0]
    assert kept is not None and torch.equal(kept, _rows(1, seed=1)[0])
    cache.add([f"prompt {n}" for n in lost], _rows(20)[lost])
    again = _cache(tmp_path).find([f"prompt {n}" for n in range(20)])
    assert all(row is not None and torch.equal(row, kept) for row, kept in zip(again, _rows(20), strict=True))


def test_many_additions_stay_few_files(tmp_path: Path) -> None:
    rows = _rows(40)
    for number in range(40):
        _cache(tmp_path).add([f"prompt {number}"], rows[number : number + 1])
    assert len(list(tmp_path.rglob("*.safetensors"))) <= MAX_SHARDS
    found = _cache(tmp_path).find([f"prompt {n}" for n in range(40)])
    assert all(row is not None and torch.equal(row, kept) for row, kept in zip(found, rows, strict=True))


def test_the_bound_drops_the_oldest(tmp_path: Path) -> None:
    bound = 40 * (6 * 4 + 24)
    for number in range(30):
        prompts = [f"prompt {number * 10 + n}" for n in range(10)]
        _cache(tmp_path, max_bytes=bound).add(prompts, _rows(10, seed=number))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert size < 3 * bound
    found = _cache(tmp_path).find([f"prompt {n}" for n in range(300)])
    assert found[0] is None and all(row is not None for row in found[-10:])


def test_no_write_access_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    cache = _cache(blocked)
    cache.add(["a"], _rows(1))
    found = cache.find(["a"])[0]
    assert found is not None and torch.equal(found, _rows(1)[0])
    assert blocked.read_text() == "not a folder"
