"""Weights pass through in blocks of rows: any block size gives the same file, and memory stays near one layer."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dlm_tui.export import weights
from dlm_tui.export.architectures import permute_rows, read_architecture
from dlm_tui.export.concatenate import LoraPair
from dlm_tui.export.gguf_model import plan_model, write_model
from dlm_tui.export.gguf_tokenizer import GgufTokenizer
from dlm_tui.export.merged_folder import write_merged
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.weights import FolderWeights, MemoryWeights, blocks, open_weights
from dlm_tui.progress import run_to_end

TOKENIZER = GgufTokenizer("gpt2", "gpt-2", ["a", "b"], [1, 1], merges=["a b"])


def config(layers: int, hidden: int, feed_forward: int, vocab: int = 50) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
    }


def state(shape: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    tensors = {
        "model.embed_tokens.weight": torch.randn(shape["vocab_size"], hidden),
        "model.norm.weight": torch.ones(hidden),
    }
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", hidden // 2, hidden),
            ("self_attn.v_proj", hidden // 2, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            tensors[f"{prefix}.{name}.weight"] = torch.randn(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = torch.rand(hidden)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def pairs_for(shape: dict[str, Any], rank: int = 3) -> dict[str, LoraPair]:
    hidden = shape["hidden_size"]
    rows = {"q_proj": hidden, "k_proj": hidden // 2, "v_proj": hidden // 2}
    return {
        f"model.layers.{layer}.self_attn.{name}": LoraPair(torch.randn(rank, hidden), torch.randn(out, rank))
        for layer in range(shape["num_hidden_layers"])
        for name, out in rows.items()
    }


def read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def test_block_size_changes_nothing_but_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    shape = config(2, 64, 96)
    tensors, pairs = state(shape, torch.float32), pairs_for(shape)
    files = []
    for size in (64, 1_000, 1 << 22):
        monkeypatch.setattr(weights, "BLOCK_ELEMENTS", size)
        path = tmp_path / f"{size}.gguf"
        source, architecture = MemoryWeights(tensors), read_architecture(shape)
        run_to_end(write_model(path, source, architecture, TOKENIZER, "f32", name="x", mix=pairs))
        files.append(read(path))
    for name, values in files[0].items():
        for other in files[1:]:
            np.testing.assert_allclose(values, other[name], rtol=0, atol=1e-5)


def test_every_tensor_is_the_merged_and_permuted_one(tmp_path: Path) -> None:
    torch.manual_seed(2)
    shape = config(2, 64, 96)
    tensors, pairs = state(shape, torch.float32), pairs_for(shape)
    path = tmp_path / "x.gguf"
    run_to_end(
        write_model(path, MemoryWeights(tensors), read_architecture(shape), TOKENIZER, "f32", name="x", mix=pairs)
    )
    found = read(path)
    assert len(found) == len(tensors)
    for layer in range(2):
        for name, heads, target in (("q_proj", 4, "attn_q"), ("k_proj", 2, "attn_k"), ("v_proj", 0, "attn_v")):
            module = f"model.layers.{layer}.self_attn.{name}"
            merged = tensors[f"{module}.weight"] + pairs[module].lora_B @ pairs[module].lora_A
            expected = torch.empty_like(merged)
            for row in range(merged.shape[0]):  # the rule written out: halves of a head become neighbours
                head, inside = divmod(row, 16)
                half, place = divmod(inside, 8)
                expected[head * 16 + 2 * place + half if heads else row] = merged[row]
            np.testing.assert_allclose(found[f"blk.{layer}.{target}.weight"], expected.numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(
            found[f"blk.{layer}.ffn_down.weight"], tensors[f"model.layers.{layer}.mlp.down_proj.weight"].numpy()
        )


def test_permuting_is_undone_by_its_inverse() -> None:
    rows = torch.arange(48).reshape(48, 1)
    permuted = permute_rows(rows, 3)
    assert permuted[:4, 0].tolist() == [0, 8, 1, 9]
    assert permuted.reshape(3, 8, 2, 1).transpose(1, 2).reshape(48, 1).tolist() == rows.tolist()
    assert permute_rows(rows, 0) is rows


def test_what_has_no_place_or_is_missing_is_refused() -> None:
    shape = config(1, 64, 96)
    tensors, architecture = state(shape, torch.float32), read_architecture(shape)
    with pytest.raises(ExportRefused, match=r"'model\.vision\.weight'"):
        plan_model(MemoryWeights({**tensors, "model.vision.weight": torch.ones(2, 2)}), architecture, "f32")
    with pytest.raises(ExportRefused, match="incomplete"):
        plan_model(MemoryWeights({"model.norm.weight": torch.ones(64)}), architecture, "f32")
    with pytest.raises(ExportRefused, match="lm_head"):
        plan_model(
            MemoryWeights(tensors), architecture, "f32", {"lm_head": LoraPair(torch.ones(1, 64), torch.ones(50, 1))}
        )
    plan_model(
        MemoryWeights({**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}), architecture, "f32"
    )


def test_a_loaded_model_stays_as_it_was(tmp_path: Path) -> None:
    shape = config(1, 64, 96)
    tensors, pairs = state(shape, torch.float32), pairs_for(shape)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    source = MemoryWeights(tensors)
    run_to_end(write_model(tmp_path / "x", source, read_architecture(shape), TOKENIZER, "f32", name="x", mix=pairs))
    run_to_end(write_merged(tmp_path, source, pairs, shape, "f32"))
    assert all(torch.equal(tensors[name], before[name]) for name in before)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../../etc/passwd"}}'])
def test_a_hostile_index_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ExportRefused, match="cannot be read"):
        FolderWeights(tmp_path)


def test_damaged_and_absent_weights(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match="no safetensors"):
        FolderWeights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ExportRefused, match="cannot be read as safetensors"):
        FolderWeights(tmp_path)


def test_the_model_itself_is_read_where_the_files_name_things_differently(tmp_path: Path) -> None:
    save_file({"other": torch.ones(2)}, tmp_path / "model.safetensors")
    model = torch.nn.Linear(3, 2)
    source = open_weights(tmp_path, model, {"weight"})
    assert isinstance(source, MemoryWeights)
    assert torch.equal(source.rows("weight", 1, 2), model.weight[1:2])
    assert isinstance(open_weights(tmp_path, model, {"other"}), FolderWeights)
    assert isinstance(open_weights(None, model, {"weight"}), MemoryWeights)


def test_blocks_cover_all_rows_in_whole_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", 100)
    ranges = list(blocks(64, 10, 8))
    assert ranges[0] == (0, 8)
    assert [stop for _, stop in ranges[:-1]] == [start for start, _ in ranges[1:]]
    assert ranges[-1][1] == 64
    assert list(blocks(5, 1_000)) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert list(blocks(0, 3)) == []


class Peak:
    """The most anonymous memory above the start, sampled every few milliseconds: mapped files are not counted."""

    def __enter__(self) -> Peak:
        # what earlier tests freed but kept would hide the growth
        ctypes.CDLL(None).malloc_trim(0)
        self.start = self.now()
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, self.now() - self.start)

    @staticmethod
    def now() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs Linux to tell mapped from own memory")
@pytest.mark.parametrize("kind", ["gguf f16", "gguf q8_0", "merged"])
def test_memory_stays_under_one_layer(tmp_path: Path, kind: str) -> None:
    shape = config(3, 1024, 4096, vocab=2)
    folder = tmp_path / "base"
    folder.mkdir()
    layer_bytes = 4 * (3 * 1024 * 1024 + 3 * 1024 * 4096)
    saved = {
        name: torch.zeros(tensor.shape, dtype=torch.float16) for name, tensor in state(shape, torch.float16).items()
    }
    save_file(saved, folder / "model.safetensors")
    del saved
    source, pairs = FolderWeights(folder), pairs_for(shape)
    for attempt in range(8):
        with Peak() as peak:
            if kind == "merged":
                out = tmp_path / f"out{attempt}"
                out.mkdir()
                run_to_end(write_merged(out, source, pairs, shape, "f16"))
                size = (out / "model.safetensors").stat().st_size
            else:
                path = tmp_path / f"x{attempt}.gguf"
                architecture = read_architecture(shape)
                run_to_end(write_model(path, source, architecture, TOKENIZER, kind[5:], name="x", mix=pairs))
                size = path.stat().st_size
        assert size > layer_bytes * 0.7
        # on a busy machine the samples may all have missed it
        if peak.bytes > 3e6:
            break
    assert 3e6 < peak.bytes < layer_bytes, f"{peak.bytes / 1e6:.0f} MB for layers of {layer_bytes / 1e6:.0f} MB"


def test_the_child_that_asks_llama_cpp_does_without_torch() -> None:
    """It would take as much memory again as a small base, and a second and a half per trial."""
    code = "import sys, dlm_tui.export.parity_child; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
