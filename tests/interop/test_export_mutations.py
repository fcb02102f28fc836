"""Nothing broken passes for verified: a scale, norm, row order, type or setting left out, numbers that overflow."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from dlm_tui.export import (
    architectures,
    gguf_adapter,
    gguf_file,
    gguf_model,
    live,
    live_trial,
    merged_folder,
    metadata_check,
    pipeline,
    targets_gguf,
    targets_hf,
)
from dlm_tui.export.architectures import FAMILIES, Architecture
from dlm_tui.export.choices import EVEN_QUANTS, QUANTS
from dlm_tui.export.gguf_file import PlannedTensor
from dlm_tui.export.live import LiveTarget
from dlm_tui.export.parity import Answers, compare, judge
from dlm_tui.export.prompts import long_length
from dlm_tui.export.quantisation.blocks import quantise
from dlm_tui.export.reader_check import check_configuration
from dlm_tui.export.requests import ExportRefused
from dlm_tui.gate import fit_ood
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from tests import tiny_models
from tests.export_sessions import NAMES, export, open_tiny
from tests.tiny_models import ARCHITECTURES as TINY
from tests.tiny_models import random_adapter, target_names, write_tiny_base

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp (extra [llama]) is not installed"
)
WRONG = "does not (answer as|hold|add what) (the workbench|the weights as stored)"
UNSAID = "does not say what the base's configuration says"
Patch = Callable[[pytest.MonkeyPatch], None]


def _on_pieces(patch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Change what the writer takes for each tensor, and nothing of what reads it back."""
    planning = gguf_model._pieces

    def changed(*given: Any) -> dict[str, list[Any]]:
        return {name: [change(piece) for piece in parts] for name, parts in planning(*given).items()}

    patch.setattr(gguf_model, "_pieces", changed)


def no_shift(patch: pytest.MonkeyPatch) -> None:
    _on_pieces(patch, lambda piece: replace(piece, shift=0.0))


def no_permutation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gguf_model, "permute_rows", lambda rows, heads: rows)


def without(key: str) -> Patch:
    """Leave out one key of the family's metadata, in the file only."""

    def patch_it(patch: pytest.MonkeyPatch) -> None:
        reading = architectures.read_architecture

        def read(config: Any) -> Architecture:
            found = reading(config)
            metadata = {name: value for name, value in found.metadata.items() if name != key}
            assert len(metadata) < len(found.metadata)
            object.__setattr__(found, "metadata", metadata)
            return found

        patch.setattr("dlm_tui.export.targets_gguf.read_architecture", read)

    return patch_it


def blind(patch: pytest.MonkeyPatch) -> None:
    """Leave the figures alone to find what is wrong."""
    patch.setattr("dlm_tui.export.targets_gguf.check_metadata", lambda *given: None)


def saying(key: str, value: Any) -> Patch:
    """Another value under one key of the file, computed from the right one or None to leave it out."""

    def patch_it(patch: pytest.MonkeyPatch) -> None:
        plain = gguf.GGUFWriter.add_key_value

        def add(self: Any, name: str, said: Any, *rest: Any, **more: Any) -> None:
            if not name.endswith(key):
                plain(self, name, said, *rest, **more)
            elif value is not None:
                plain(self, name, value(said) if callable(value) else value, *rest, **more)

        patch.setattr(gguf.GGUFWriter, "add_key_value", add)

    return patch_it


def swapped_experts(patch: pytest.MonkeyPatch) -> None:
    def swapped(piece: Any) -> Any:
        gate, up = ".w1.", ".w3."
        weight = piece.weight.replace(gate, up) if gate in piece.weight else piece.weight.replace(up, gate)
        return replace(piece, weight=weight)

    _on_pieces(patch, swapped)


GGUF: dict[str, tuple[str, Patch]] = {
    "the 1 of Gemma's norms": ("gemma2", no_shift),
    "the order of rows": ("llama", no_permutation),
    "Granite's scale of residuals": ("granite", without("residual_scale")),
    "Granite's scale of logits": ("granite", without("embedding_scale")),
    "the sliding window": ("gemma3_text", without("attention.sliding_window_pattern")),
    "gate and up of experts": ("mixtral", swapped_experts),
}


@pytest.mark.parametrize(
    ("name", "quant"), [*((name, "q8_0") for name in GGUF), ("Granite's scale of residuals", "q4_0")]
)
def test_a_gguf_with_one_thing_left_out_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, quant: str
) -> None:
    architecture, mutate = GGUF[name]
    session = open_tiny(tmp_path, architecture)
    mutate(monkeypatch)
    blind(monkeypatch)
    with pytest.raises(ExportRefused, match=WRONG):
        export(session, target="ollama", quant=quant)
    assert not session.store.exports_dir.exists() or not any(session.store.exports_dir.iterdir())


IN_BLOCKS = [quant for quant in QUANTS if not quant.endswith(("16", "32"))]


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory: pytest.TempPathFactory) -> Session:
    sizes = {"hidden_size": 256, "intermediate_size": 4096, "num_hidden_layers": 1}
    return open_tiny(tmp_path_factory.mktemp("long"), "llama", **sizes)


@pytest.mark.parametrize(
    ("quant", "imatrix"),
    [*((quant, "auto") for quant in QUANTS if quant not in EVEN_QUANTS), *((quant, None) for quant in IN_BLOCKS)],
)
def test_a_gguf_with_blocks_of_zeros_is_refused(
    long_rows: Session, monkeypatch: pytest.MonkeyPatch, quant: str, imatrix: str | None
) -> None:
    """One block of each eighth row, which is less of a long row than its rounding."""

    def quantised(rows: Any, kind: Any, importance: Any = None) -> Any:
        data, (numbers, size) = quantise(rows, kind, importance), gguf.GGML_QUANT_SIZES[kind]
        if rows.shape[1] == 4096:
            blocks = data.reshape(len(rows), 4096 // numbers, size)
            for row in range(0, len(rows), 8):
                blocks[row, row // 8 % blocks.shape[1]] = 0
        return data

    monkeypatch.setattr(gguf_file, "quantise", quantised)
    with pytest.raises(ExportRefused, match=r"of blk\.0\.ffn_down\.weight is off by"):
        export(long_rows, target="ollama", quant=quant, imatrix=imatrix)


def double(value: float) -> float:
    return 2 * value


LONGROPE = {
    "max_position_embeddings": 512,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 256,
        "short_factor": [1.0, 1.1, 1.3, 1.9], "long_factor": [1.0, 2.0, 3.0, 5.0],
    },
    "original_max_position_embeddings": 256,
}  # fmt: skip
STRETCHED = {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}
SAID: dict[str, tuple[str, dict[str, Any], list[tuple[str, Any]]]] = {
    "a dense base": (
        "llama",
        STRETCHED,
        [
            ("general.architecture", "qwen3"),
            ("general.file_type", 1),
            ("llama.context_length", 32),
            ("llama.block_count", 2),
            ("llama.feed_forward_length", double),
            ("llama.attention.head_count_kv", 4),
            ("llama.attention.key_length", double),
            ("llama.rope.dimension_count", 4),
            ("llama.rope.freq_base", double),
            ("llama.rope.scaling.type", None),
            ("llama.rope.scaling.factor", double),
            ("llama.attention.layer_norm_rms_epsilon", 1e-3),
            ("llama.vocab_size", double),
            ("tokenizer.ggml.model", "llama"),
            ("tokenizer.ggml.tokens", lambda tokens: [*tokens[:-1], "other"]),
            ("tokenizer.ggml.merges", lambda merges: merges[::-1]),
            ("tokenizer.ggml.token_type", lambda types: [1, *types[1:]]),
            ("tokenizer.ggml.bos_token_id", None),
            ("tokenizer.ggml.eos_token_id", 5),
            ("tokenizer.ggml.padding_token_id", 5),
            ("tokenizer.ggml.add_bos_token", True),
            ("tokenizer.ggml.add_eos_token", True),
            ("tokenizer.chat_template", None),
            ("tokenizer.chat_template", "{{ messages }}"),
        ],
    ),
    "soft caps": (
        "gemma2",
        {},
        [
            ("gemma2.attn_logit_softcapping", 1e4),
            ("gemma2.final_logit_softcapping", 1e4),
            ("gemma2.attention.sliding_window", 64),
        ],
    ),
    "two rope bases and windows": (
        "gemma3_text",
        {},
        [
            ("gemma3.rope.freq_base", double),
            ("gemma3.rope.freq_base_swa", None),
            ("gemma3.attention.sliding_window", 64),
            ("gemma3.attention.sliding_window_pattern", None),
        ],
    ),
    "scales": (
        "granite",
        {},
        [(f"granite.{key}", None) for key in ("embedding_scale", "residual_scale", "attention.scale", "logit_scale")],
    ),
    "experts": ("mixtral", {}, [("llama.expert_used_count", 1), ("llama.expert_count", double)]),
    "long factors": (
        "phi3", LONGROPE, [("phi3.rope.scaling.original_context_length", 64), ("phi3.rope.scaling.attn_factor", 3.0)]
    ),
}  # fmt: skip
"""Keys of a base of each kind, and what they are made to say."""


@pytest.fixture(scope="module", params=SAID)
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, list[Any]]:
    architecture, changes, keys = SAID[request.param]
    return open_tiny(tmp_path_factory.mktemp("told"), architecture, **changes), keys


def test_a_key_that_says_something_else_is_refused_by_its_name(told: tuple[Session, list[Any]], tmp_path: Path) -> None:
    session, keys = told
    for key, value in keys:
        with pytest.MonkeyPatch.context() as patch:
            saying(key, value)(patch)
            with pytest.raises(ExportRefused, match=UNSAID) as caught:
                export(session, target="ollama", quant="q8_0", out=str(tmp_path / "out"))
            assert key in str(caught.value)
            assert ("is missing and should be" in str(caught.value)) == (value is None)


@pytest.mark.parametrize(
    ("key", "value"),
    [("general.architecture", "qwen3"), ("adapter.type", "alora"), ("adapter.lora.alpha", 8.0), ("some.scale", 0.5)],
)
def test_an_adapter_file_that_says_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any
) -> None:
    """Adapters at scale 0 are in no trial, and the server that loads them would not start."""
    writing = gguf_adapter.write_tensors

    def write(writer: gguf.GGUFWriter, *given: Any) -> Any:
        kind = gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.FLOAT32
        writer.add_key_value(key, value, kind)
        return writing(writer, *given)

    monkeypatch.setattr(gguf_adapter, "write_tensors", write)
    with pytest.raises(ExportRefused, match=rf"mix\.gguf {UNSAID}: {key} is"):
        export(open_tiny(tmp_path, "llama"), target="llama-server", quant="q8_0")


@pytest.mark.parametrize("kind", sorted(set(FAMILIES) & set(TINY)))
def test_what_keys_should_say_is_what_transformers_reads_in_them(kind: str) -> None:
    gguf_kind = {"gemma3_text": "gemma3", "mixtral": "llama"}.get(kind, kind)
    mapping = GGUF_CONFIG_MAPPING.get(gguf_kind)
    if mapping is None:
        pytest.skip(f"transformers reads no {kind} GGUF")
    config = AutoConfig.for_model(kind, **{**TINY[kind], "sliding_window": None})
    expected = {**metadata_check._shape(config, kind), **metadata_check._rope(config)}
    rope = dict(config.rope_parameters)
    read = {
        "rope_theta": (rope.get("full_attention") or rope)["rope_theta"],
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
    }
    for key, attribute in mapping.items():
        if attribute is not None:
            assert expected[key] == read.get(attribute, getattr(config, attribute, None)), key


def test_a_key_that_nothing_asked_for_is_refused(told: tuple[Session, list[Any]], tmp_path: Path) -> None:
    session, _ = told
    with pytest.MonkeyPatch.context() as patch:
        making = gguf_model.new_writer

        def make(*given: Any) -> Any:
            writer = making(*given)
            writer.add_float32(f"{given[1]}.some_scale", 0.5)
            return writer

        patch.setattr(gguf_model, "new_writer", make)
        with pytest.raises(ExportRefused, match=r"some_scale is 0\.5 and should not be there"):
            export(session, target="ollama", quant="q8_0", out=str(tmp_path / "out"))


def test_factors_of_frequencies_are_those_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Architecture.rope_factors
    cases = (("phi3", LONGROPE, "rope_factors_long"), ("llama-scaled", {}, "rope_freqs"))
    for architecture, changes, name in cases:
        session = open_tiny(tmp_path / architecture, architecture, **changes)
        for broken in (lambda factors: factors + 1, None):
            with monkeypatch.context() as patch:

                def factors(self: Architecture, broken: Any = broken, name: str = name) -> dict[str, torch.Tensor]:
                    right = made(self)
                    return {
                        key: broken(value) if name in key else value
                        for key, value in right.items()
                        if broken is not None or name not in key
                    }

                patch.setattr(Architecture, "rope_factors", factors)
                with pytest.raises(ExportRefused, match=f"{UNSAID}: {name}"):
                    export(session, target="ollama", quant="q8_0")


def test_short_factors_written_as_long_ones_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Architecture.rope_factors

    def short(self: Architecture) -> dict[str, torch.Tensor]:
        return dict.fromkeys(made(self), made(self)["rope_factors_short.weight"])

    session = open_tiny(tmp_path, "phi3", **LONGROPE)
    monkeypatch.setattr(Architecture, "rope_factors", short)
    with pytest.raises(ExportRefused, match=f"{UNSAID}: rope_factors_long.weight"):
        export(session, target="ollama", quant="q8_0")
    blind(monkeypatch)
    for quant in ("f32", "q8_0"):
        with pytest.raises(ExportRefused, match=WRONG) as caught:
            export(session, target="ollama", quant=quant)
        assert "over a prompt of 288 tokens" in str(caught.value)


@pytest.mark.parametrize("target", ["ollama", "llama-server", "live", "vllm"])
def test_what_reads_all_texts_alike_is_started_with_no_more_than_short_ones_have(tmp_path: Path, target: str) -> None:
    session = open_tiny(tmp_path, "phi3", sequence_len=512, **LONGROPE)
    assert (session.base.context_length, session.document.training.sequence_len) == (512, 512)
    request = {"target": "llama-server", "gate": "live"} if target == "live" else {"target": target}
    found = export(session, **request, quant=None if target == "vllm" else "q8_0", verify=target != "vllm")
    told = {
        "ollama": ("Modelfile", "num_ctx 256"),
        "llama-server": ("llama-server_launch.sh", "--ctx-size 256"),
        "live": ("live.json", '"context_length": 256'),
        "vllm": ("vllm_launch.sh", "--max-model-len 256"),
    }
    name, words = told[target]
    assert words in (found.folder / name).read_text()
    assert [note for note in found.notes if "started with 256 of 512 tokens" in note]


def test_a_runtime_is_tried_with_the_context_that_it_is_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_tiny(tmp_path, "phi3", sequence_len=512, **LONGROPE)
    monkeypatch.setattr(targets_gguf, "read_alike", lambda base: 512)
    with pytest.raises(ExportRefused, match=WRONG):
        export(session, target="ollama", quant="f32")


WINDOW = {"sliding_window": 256, "max_position_embeddings": 512}


@pytest.mark.parametrize("flag", ["rstrip", "lstrip", "single_word"])
def test_a_mark_of_a_turn_that_swallows_what_stands_beside_it_is_seen(
    tmp_path: Path, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp knows these of no token, so a chat is other tokens there though plain texts are the same."""
    plain = tiny_models.tiny_tokenizer()
    state = json.loads(plain.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token[flag] = True
    marks = {"bos_token": plain.bos_token, "eos_token": plain.eos_token, "pad_token": plain.pad_token}
    odd = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **marks)
    odd.chat_template = plain.chat_template
    monkeypatch.setattr(tiny_models, "tiny_tokenizer", lambda: odd)
    session = open_tiny(tmp_path, "llama")
    with pytest.raises(ExportRefused, match="the tokenizer written into the GGUF splits '<\\|im_start\\|>"):
        export(session, target="llama-server", quant="f32")


@pytest.mark.parametrize(("target", "quant"), [("ollama", "f32"), ("ollama", "bf16"), ("merged", "f32")])
def test_another_window_than_the_short_prompts_fill_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, quant: str
) -> None:
    session = open_tiny(tmp_path, "gemma3_text", **WINDOW)
    long = export(session, target=target, quant=quant).manifest["parity"]["long_prompt"]
    assert long["tokens"] == 288
    blind(monkeypatch)
    monkeypatch.setattr(targets_hf, "check_configuration", lambda *given: None)
    saying("attention.sliding_window", 128)(monkeypatch)
    configured(sliding_window=128)(monkeypatch)
    with pytest.raises(ExportRefused, match="over a prompt of 288 tokens"):
        export(session, target=target, quant=quant)


def through_float16(patch: pytest.MonkeyPatch) -> None:
    writing = merged_folder._block_bytes

    def rounded(source: Any, *rest: Any) -> memoryview:
        class Coarse:
            def rows(self, *where: Any) -> torch.Tensor:
                return source.rows(*where).to(torch.float8_e4m3fn).float()

        return writing(Coarse(), *rest)  # type: ignore[arg-type]

    patch.setattr(merged_folder, "_block_bytes", rounded)


def another_setting(patch: pytest.MonkeyPatch) -> None:
    writing = merged_folder.json_bytes
    patch.setattr(merged_folder, "json_bytes", lambda value: writing({**value, "rope_parameters": None}))


def forgotten_module(patch: pytest.MonkeyPatch) -> None:
    writing = targets_hf.write_merged

    def write(folder: Any, source: Any, pairs: Any, *rest: Any) -> Any:
        return writing(folder, source, dict(list(pairs.items())[1:]), *rest)

    patch.setattr(targets_hf, "write_merged", write)


@pytest.mark.parametrize("quant", ["bf16"])
@pytest.mark.parametrize("mutate", [through_float16, another_setting, forgotten_module])
def test_a_merged_folder_with_one_thing_left_out_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutate: Patch, quant: str
) -> None:
    session = open_tiny(tmp_path, "llama-scaled")
    mutate(monkeypatch)
    monkeypatch.setattr(targets_hf, "check_configuration", lambda *given: None)
    with pytest.raises(ExportRefused, match=WRONG):
        export(session, target="merged", quant=quant)


UNFIT = "would not do for its reader"


def no_tokenizer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(targets_hf, "save_tokenizer", lambda context, folder: None)


def other_eos(patch: pytest.MonkeyPatch) -> None:
    saving = targets_hf.save_tokenizer

    def save(context: Any, folder: Path) -> None:
        saving(context, folder)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|pad|>"}))

    patch.setattr(targets_hf, "save_tokenizer", save)


def other_splitting(patch: pytest.MonkeyPatch) -> None:
    saving = targets_hf.save_tokenizer

    def save(context: Any, folder: Path) -> None:
        saving(context, folder)
        path = folder / "tokenizer.json"
        state = json.loads(path.read_text())
        state["model"]["merges"] = state["model"]["merges"][:5]
        path.write_text(json.dumps(state))

    patch.setattr(targets_hf, "save_tokenizer", save)


def configured(**changes: Any) -> Patch:
    def patch_it(patch: pytest.MonkeyPatch) -> None:
        writing = merged_folder.json_bytes
        patch.setattr(merged_folder, "json_bytes", lambda value: writing({**value, **changes}))

    return patch_it


def generated(patch: pytest.MonkeyPatch) -> None:
    writing = targets_hf.json_bytes
    patch.setattr(targets_hf, "json_bytes", lambda value: writing({**value, "eos_token_id": 5}))


def other_base(patch: pytest.MonkeyPatch) -> None:
    writing = targets_hf.write_peft
    patch.setattr(targets_hf, "write_peft", lambda folder, pairs, linears, base, revision: writing(
        folder, pairs, linears, "another/base", revision
    ))  # fmt: skip


def scripted(module: Any, name: str, *edits: tuple[str, str]) -> Patch:
    """Edit what a writer of text returns."""

    def patch_it(patch: pytest.MonkeyPatch) -> None:
        writing = getattr(module, name)

        def write(*given: Any, **named: Any) -> str:
            text = writing(*given, **named)
            for old, new in edits:
                assert old in text
                text = text.replace(old, new)
            return str(text)

        patch.setattr(module, name, write)

    return patch_it


def edited(file: str, change: Callable[[dict[str, Any]], Any]) -> Patch:
    """Change a JSON file of the tokenizer after it was written."""

    def patch_it(patch: pytest.MonkeyPatch) -> None:
        saving = targets_hf.save_tokenizer

        def save(context: Any, folder: Path) -> None:
            saving(context, folder)
            state = json.loads((folder / file).read_text())
            change(state)
            (folder / file).write_text(json.dumps(state))

        patch.setattr(targets_hf, "save_tokenizer", save)

    return patch_it


def tokenizer(**changes: Any) -> Patch:
    return edited("tokenizer.json", lambda state: state.update(changes))


def added_tokens(**changes: Any) -> Patch:
    return edited("tokenizer.json", lambda state: [token.update(changes) for token in state["added_tokens"]])


def adapter(**changes: Any) -> Patch:
    def patch_it(patch: pytest.MonkeyPatch) -> None:
        writing = targets_hf.write_peft

        def write(folder: Path, *given: Any) -> None:
            writing(folder, *given)
            path = folder / "adapter_config.json"
            settings = {**json.loads(path.read_text()), **changes}
            path.write_text(json.dumps({key: value for key, value in settings.items() if value != "left out"}))

        patch.setattr(targets_hf, "write_peft", write)

    return patch_it


def vllm_settings(**changes: Any) -> Patch:
    """Change vllm_config.json as it is written."""

    def patch_it(patch: pytest.MonkeyPatch) -> None:
        writing = targets_hf.json_bytes

        def write(value: Any) -> bytes:
            if value.get("target") == "vllm":
                value = {key: said for key, said in {**value, **changes}.items() if said != "left out"}
            return writing(value)

        patch.setattr(targets_hf, "json_bytes", write)

    return patch_it


LIBRARY = {"LD_PRELOAD": "/x.so"}
VERSION_77 = [{"adapter_version": 77, "name": "mixed", "path": "adapters/mixed"}]
MODELFILE = (targets_gguf, "modelfile")
VLLM = (targets_hf, "vllm_script")
SCRIPT = (targets_gguf, "llama_server_script")
YARN = "--chat-template chatml --rope-scaling yarn --rope-scale 8"
CUT = {"direction": "Right", "max_length": 40, "strategy": "LongestFirst", "stride": 0}
FILES: dict[str, tuple[str, str, Patch]] = {
    "merged without a tokenizer": ("merged", "its tokenizer cannot be loaded", no_tokenizer),
    "peft without a tokenizer": ("peft", "its tokenizer cannot be loaded", no_tokenizer),
    "vllm without a tokenizer": ("vllm", "its tokenizer cannot be loaded", no_tokenizer),
    "another end of text": ("peft", "tokenizer_config.json says eos_token_id 2, and the base 1", other_eos),
    "another splitting": ("merged", "tokenizer.json splits", other_splitting),
    "another end in the configuration": ("merged", "config.json says eos_token_id 5", configured(eos_token_id=5)),
    "another window": ("merged", "config.json says max_position_embeddings 64", configured(max_position_embeddings=64)),
    "another end when generating": ("merged", "generation_config.json says eos_token_id 5", generated),
    "another base": ("peft", "adapter_config.json says base_model_name_or_path 'another/base'", other_base),
    "the mix at scale 0": ("llama-server", "sets the scale of mix.gguf to 0.0", scripted(*SCRIPT, (":1.0", ":0.0"))),
    "an adapter at full scale": ("llama-server", "sets the scale of adapter", scripted(*SCRIPT, (":0.0", ":1.0"))),
    "a base that is not there": ("llama-server", "no such file", scripted(*SCRIPT, ("base.q8_0", "nowhere"))),
    "the mix left out": ("llama-server", "under --lora-scaled instead of", scripted(*SCRIPT, ("mix.gguf:1.0,", ""))),
    "a context of one": ("llama-server", "sets --ctx-size to 1,", scripted(*SCRIPT, ("size 128", "size 1"))),
    "FROM a missing file": ("ollama", "no such file", scripted(targets_gguf, "modelfile", ("./model", "./other"))),
    "a Modelfile without a context": (
        "ollama", "sets num_ctx to None", scripted(targets_gguf, "modelfile", ("PARAMETER num_ctx 128", ""))
    ),
    "vllm with one token": (
        "vllm", "sets max-model-len to 1,", scripted(targets_hf, "vllm_script", ("len 256", "len 1"))
    ),
    "no decoder": ("merged", "tokenizer.json says the tokens of", tokenizer(decoder=None)),
    "a tokenizer that cuts": ("merged", "tokenizer.json has another truncation", tokenizer(truncation=CUT)),
    "a longest text": (
        "merged", "tokenizer_config.json says model_max_length 4",
        edited("tokenizer_config.json", lambda settings: settings.update(model_max_length=4)),
    ),
    "added tokens that swallow blanks": ("merged", "tokenizer.json splits", added_tokens(lstrip=True, rstrip=True)),
    "added tokens that are said": ("peft", "tokenizer.json has another added_tokens", added_tokens(special=False)),
    "marks of turns that are no tokens": (
        "peft", "tokenizer.json has another added_tokens",
        edited("tokenizer.json", lambda state: state["added_tokens"].pop()),
    ),
    "an adapter for no task": ("peft", "adapter_config.json says task_type None", adapter(task_type="left out")),
    "an adapter at another scale": ("peft", "adapter_config.json says lora_alpha 1,", adapter(lora_alpha=1)),
    "rank-stabilised": ("peft", "adapter_config.json says use_rslora True", adapter(use_rslora=True)),
    "with magnitudes": ("peft", "adapter_config.json says use_dora True", adapter(use_dora=True)),
    "on fewer layers": ("peft", "adapter_config.json says target_modules", adapter(target_modules=["q_proj"])),
    "with a setting more": ("vllm", "adapter_config.json says exclude_modules", adapter(exclude_modules=["v_proj"])),
    "another template and rope": (
        "llama-server", "has the option --chat-template", scripted(*SCRIPT, ("--jinja", YARN))
    ),
    "no template": ("llama-server", "lacks the option --jinja", scripted(*SCRIPT, (" --jinja", ""))),
    "a rope base": ("llama-server", "has the option --rope-scale", scripted(*SCRIPT, ("-m", "--rope-scale 7 -m"))),
    "a setting before the start": (
        "llama-server", "does more or less", scripted(*SCRIPT, ("exec", "export LLAMA_ARG_ROPE_SCALE=8\nexec"))
    ),
    "open to all": ("llama-server", "listens at 0.0.0.0", scripted(*SCRIPT, ("127.0.0.1", "0.0.0.0"))),
    "at another port": ("llama-server", "listens at port 1, and it is 8080", scripted(*SCRIPT, (":-8080", ":-1"))),
    "a Modelfile without ends": ("ollama", "sets stop to None", scripted(*MODELFILE, ("PARAMETER stop", "#"))),
    "a Modelfile that is warm": ("ollama", "sets temperature to 9", scripted(*MODELFILE, ("ture 0.3", "ture 9"))),
    "a Modelfile with more": ("ollama", "sets seed to 1", scripted(*MODELFILE, ("FROM", "PARAMETER seed 1\nFROM"))),
    "vllm without adapters": ("vllm", "lacks the option --enable-lora", scripted(*VLLM, (" --enable-lora", ""))),
    "vllm with another name": (
        "vllm", "names the adapter's name 'other'", scripted(*VLLM, ("mixed=adapters", "other=adapters"))
    ),
    "vllm with more": ("vllm", "has the option --seed", scripted(*VLLM, (" --dtype", " --seed 1 --dtype"))),
    "vllm with another name of the base": (
        "vllm", "names the base's name 'other'", scripted(*VLLM, ("dlm-01jexpxrttestsexpxrttestse", "other"))
    ),
    "vllm's settings open to all": ("vllm", "config.json says host '0.0.0.0'", vllm_settings(host="0.0.0.0")),
    "vllm's settings at another port": ("vllm", "config.json says port 1, and it is 8000", vllm_settings(port=1)),
    "vllm's settings with another name": (
        "vllm", "says served_model_name 'other'", vllm_settings(served_model_name="other")
    ),
    "vllm's settings with a library": ("vllm", "says environment {'LD_PRELOAD'", vllm_settings(environment=LIBRARY)),
    "vllm's settings with another version": ("vllm", "'adapter_version': 77", vllm_settings(lora_modules=VERSION_77)),
    "vllm's settings with more": ("vllm", "says seed, which is not written", vllm_settings(seed=1)),
    "vllm's settings without a base": ("vllm", "does not say model", vllm_settings(model="left out")),
    "vllm's settings with one token": ("vllm", "says max_model_len 1,", vllm_settings(max_model_len=1)),
    "vllm with another adapter": (
        "vllm", "no such file", scripted(targets_hf, "vllm_script", ("mixed=adapters/mixed", "mixed=adapters/other"))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_would_mislead_its_reader_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    target, words, mutate = FILES[name]
    session = open_tiny(tmp_path, "llama")
    mutate(monkeypatch)
    quant = "q8_0" if target in ("ollama", "llama-server") else None
    with pytest.raises(ExportRefused, match=UNFIT) as caught:
        export(session, target=target, quant=quant)
    assert words in str(caught.value)


def text(file: str, *edits: tuple[str, str], more: str = "") -> Callable[[Path], None]:
    """Edit a file, and put `more` at its end."""

    def change_it(folder: Path) -> None:
        path = folder / file
        found = path.read_text()
        for old, new in edits:
            assert old in found
            found = found.replace(old, new)
        path.write_text(found + more)

    return change_it


def mode(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).chmod(0o644)


def without_system(folder: Path) -> None:
    path = folder / "Modelfile"
    path.write_text(path.read_text().partition("SYSTEM")[0])


RUN: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "another system prompt": ("ollama", "and then 'Be unkind.'", text("Modelfile", more="\nSYSTEM Be unkind.\n")),
    "another in lower case": ("ollama", "Be unkind.", text("Modelfile", more="\nsystem 'Be unkind.'\n")),
    "another in double quotes": ("ollama", "under SYSTEM", text("Modelfile", more='\nSystem "Be unkind."\n')),
    "none at last": ("ollama", "under SYSTEM", text("Modelfile", more="\nSYSTEM \n")),
    "no system prompt": ("ollama", "says nothing under SYSTEM", without_system),
    "another template": ("ollama", "under TEMPLATE", text("Modelfile", more="\nTEMPLATE {{ .Prompt }}\n")),
    "one template alone": (
        "ollama", "says '{{ .Prompt }}' under TEMPLATE",
        text("Modelfile", ('TEMPLATE """', 'TEMPLATE "{{ .Prompt }}"\nLICENSE """')),
    ),
    "the same stop word again": ("ollama", "sets stop to", text("Modelfile", more='PARAMETER stop "<|pad|>"\n')),
    "the same temperature again": ("ollama", "sets temperature", text("Modelfile", more="parameter temperature 0.3\n")),
    "the same model again": ("ollama", "under FROM", text("Modelfile", more="FROM ./model.q8_0.gguf\n")),
    "an adapter": ("ollama", "under ADAPTER", text("Modelfile", more="adapter ./model.q8_0.gguf\n")),
    "a conversation": ("ollama", "command MESSAGE", text("Modelfile", more="MESSAGE user Hello\n")),
    "a licence": ("ollama", "the command LICENSE", text("Modelfile", more="LICENSE MIT\n")),
    "a draft": ("ollama", "the command DRAFT", text("Modelfile", more="DRAFT ./model.q8_0.gguf\n")),
    "an unknown role": ("ollama", "message role must be", text("Modelfile", more="MESSAGE nobody Hello\n")),
    "a program of that name": (
        "llama-server", "does not start llama-server",
        text("llama-server_launch.sh", ('"${LLAMA_SERVER:-llama-server}"', "true")),
    ),
    "a program in quotes": (
        "llama-server", "ends with code 127",
        text("llama-server_launch.sh", ('"${LLAMA_SERVER:-llama-server}"', "'${LLAMA_SERVER:-llama-server}'")),
    ),
    "a program that cannot be chosen": (
        "llama-server", "does not start $LLAMA_SERVER",
        text("llama-server_launch.sh", ('"${LLAMA_SERVER:-llama-server}"', "llama-server")),
    ),
    "a program that may have no blank": (
        "llama-server", "ends with code 127",
        text("llama-server_launch.sh", ('"${LLAMA_SERVER:-llama-server}"', "${LLAMA_SERVER:-llama-server}")),
    ),
    "a port in quotes": (
        "llama-server", "of PORT=12345", text("llama-server_launch.sh", ('"${PORT:-8080}"', "'${PORT:-8080}'"))
    ),
    "words that are dropped": ("vllm", "of PORT=12345", text("vllm_launch.sh", ('"$@"', "'$@'"))),
    "words that are split": ("vllm", "of PORT=12345", text("vllm_launch.sh", ('"$@"', "$@"))),
    "a script for nothing": (
        "vllm", "ends with code 1", text("vllm_launch.sh", ("#!/usr/bin/env bash", "#!/bin/false"))
    ),
    "a script for no program": (
        "vllm", "cannot be run: it does not exist", text("vllm_launch.sh", ("#!/usr/bin/env bash", "#!/nowhere/bash"))
    ),
    "a script that may not run": ("vllm", "cannot be run: this user may not", mode("vllm_launch.sh")),
    "another that may not": ("llama-server", "cannot be run: this user may not", mode("llama-server_launch.sh")),
    "what prepares no images": (
        "merged", "preprocessor_config.json is there", lambda folder: (folder / "preprocessor_config.json").touch()
    ),
    "a number in another form": (
        "llama-server", "sets --ctx-size to '128.0'", text("llama-server_launch.sh", ("size 128", "size 128.0"))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUN)
def test_a_file_that_does_something_else_than_it_seems_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    target, words, change = RUN[name]
    assert words in refused_with(open_tiny(tmp_path, "llama"), monkeypatch, change, target)


def refused_with(
    session: Session, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], target: str, **request: Any
) -> str:
    """What is said of an export that was changed between writing and verifying."""
    verifying = pipeline.verify

    def verify(made: Any, context: Any, folder: Path, notes: list[str]) -> Any:
        change(folder)
        return verifying(made, context, folder, notes)

    monkeypatch.setattr(pipeline, "verify", verify)
    quant = "q8_0" if target in ("ollama", "llama-server") else None
    with pytest.raises(ExportRefused) as caught:
        export(session, target=target, quant=quant, **request)
    return str(caught.value)


def test_a_modelfile_whose_template_nobody_can_be_asked_by_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_tiny(tmp_path, "llama")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    session = run_to_end(Session.open(session.path, tmp_path / "home", tmp_path / "base"))
    change = text("Modelfile", more="\nSYSTEM Be unkind.\n")
    assert "and then 'Be unkind.'" in refused_with(session, monkeypatch, change, "ollama")


@pytest.mark.parametrize("change", ["left out", "zero"])
def test_an_adapter_folder_with_one_matrix_less_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """However little it does: beside a base in bfloat16 the answers would not tell."""
    key, writing = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight", targets_hf.write_peft

    def write(folder: Path, *given: Any) -> None:
        writing(folder, *given)
        tensors = load_file(path := folder / "adapter_model.safetensors")
        matrix = tensors.pop(key)
        save_file(tensors if change == "left out" else {**tensors, key: torch.zeros_like(matrix)}, path)

    monkeypatch.setattr(targets_hf, "write_peft", write)
    with pytest.raises(ExportRefused, match=r"adapter_model.safetensors.*layers.1.self_attn.v_proj.lora_B"):
        export(open_tiny(tmp_path, "llama"), target="peft")


SAID_LIVE: dict[str, Any] = {
    "base_gguf": "nowhere.gguf", "adapters": [], "gate": "nowhere", "static_mix": {"tone": 1.0}, "base": "another/base",
    "gate_names": ["style", "facts", "tone"], "gate_mode": "uniform", "gate_reason": "old", "gate_enabled": False,
    "chat_template": "{{ messages[0].content }}", "system_prompt": "Be unkind.", "special_tokens": {},
    "context_length": 1, "base_context": 1, "hidden_size": 5, "temperature": 9.0, "top_p": 0.1, "ood": "nowhere",
    "probes": [], "versions": {}, "document_sha256": "0", "format": 2, "seed": 1,
}  # fmt: skip
"""Settings of a live export, and what they are made to say."""


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A document whose gate marks unlike prompts, too."""
    session = open_tiny(tmp_path_factory.mktemp("routed"), "llama")
    assert session.gate is not None
    marks = fit_ood(torch.randn(64, session.base.hidden_size), [0] * 64, 0)
    session.gate = replace(session.gate, ood_score=marks)
    return session


def refused(session: Session, folder: Path, gate: str = "live") -> str:
    with pytest.raises(ExportRefused, match=UNFIT) as caught:
        export(session, target="llama-server", quant="q8_0", gate=gate, out=str(folder / "out"))
    return str(caught.value)


@pytest.mark.parametrize("key", SAID_LIVE)
def test_settings_of_a_live_export_that_would_mislead_its_server_are_refused(
    routed: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    telling = LiveTarget._settings
    monkeypatch.setattr(LiveTarget, "_settings", lambda self: {**telling(self), key: SAID_LIVE[key]})
    assert f"live.json says {key}" in refused(routed, tmp_path)


def behind(module: Any, name: str, change: Callable[[Path], object]) -> Patch:
    """Change the folder after one of the writers has filled it."""

    def patch_it(patch: pytest.MonkeyPatch) -> None:
        writing = getattr(module, name)

        def write(folder: Path, *given: Any) -> None:
            writing(folder, *given)
            change(folder)

        patch.setattr(module, name, write)

    return patch_it


def tensors(file: str, **changes: Callable[[torch.Tensor], torch.Tensor] | None) -> Callable[[Path], None]:
    """Change tensors of a file, by their names with _ for a dot; None leaves one out."""

    def change_it(folder: Path) -> None:
        found = load_file(folder / file)
        for name, change in changes.items():
            tensor = found.pop(name.strip("n").replace("_", "."))
            if change is not None:
                found[name.strip("n").replace("_", ".")] = change(tensor)
        save_file(found, folder / file)

    return change_it


def described(**changes: Any) -> Callable[[Path], None]:
    def change_it(folder: Path) -> None:
        path = folder / "gate.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change_it


def zero(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 0


def spoiled_record(folder: Path) -> None:
    found = load_file(folder / "ood.safetensors")
    save_file({**found, "mean": found["mean"] + 1}, folder / "ood.safetensors")


def written(place: str, data: str) -> Callable[[Path], object]:
    return lambda folder: (folder / place).write_text(data)


GATE, PROGRAM = (targets_gguf, "write_gate"), (live, "write_program")
BACKEND = "runtime/dlm_tui/serving/llama/backend.py"
BESIDE: dict[str, tuple[str, Patch]] = {
    "no gate.json": ("gate.json is missing", behind(*GATE, lambda folder: (folder / "gate.json").unlink())),
    "no gate": ("gate.safetensors is missing", behind(*GATE, lambda folder: (folder / "gate.safetensors").unlink())),
    "a gate of zeros": ("gate.safetensors has other numbers in '2.weight'", behind(
        *GATE, tensors("gate.safetensors", n2_weight=zero)
    )),
    "a gate without a bias": ("gate.safetensors lacks the tensor '0.bias'", behind(
        *GATE, tensors("gate.safetensors", n0_bias=None)
    )),
    "a damaged gate": ("gate.safetensors cannot be read", behind(*GATE, written("gate.safetensors", "x"))),
    "names turned round": ("gate.json says adapter_names", behind(*GATE, described(adapter_names=[*NAMES[::-1]]))),
    "other numbers": ("gate.json says lora_ids", behind(*GATE, described(lora_ids={"tone": 3, "style": 1}))),
    "another mix": ("gate.json says static_mix", behind(*GATE, described(static_mix={"tone": 9}))),
    "another base": ("gate.json says base", behind(*GATE, described(base={"weights_sha256": "0"}))),
    "another size": ("gate.json says input_dim 7", behind(*GATE, described(input_dim=7))),
}  # fmt: skip
SERVED: dict[str, tuple[str, Patch]] = {
    "another record": ("ood.safetensors has other numbers in 'mean'", behind(*PROGRAM, spoiled_record)),
    "a broken start": ("serve.py is not", behind(*PROGRAM, written("serve.py", "raise SystemExit"))),
    "other packages": ("requirements.txt is not", behind(*PROGRAM, written("requirements.txt", "nothing==99"))),
    "no runtime": ("is missing", behind(*PROGRAM, lambda folder: shutil.rmtree(folder / "runtime"))),
    "an edited module": ("backend.py is not", behind(*PROGRAM, written(BACKEND, "raise SystemExit"))),
    "a module more": ("dlm_tui/more.py is not written", behind(*PROGRAM, written("runtime/dlm_tui/more.py", ""))),
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_gate_beside_the_files_that_is_another_is_refused(
    routed: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    words, mutate = BESIDE[name]
    mutate(monkeypatch)
    assert words in refused(routed, tmp_path, "static")


@pytest.mark.parametrize("name", SERVED)
def test_a_live_server_that_is_not_whole_is_refused(
    routed: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    words, mutate = SERVED[name]
    mutate(monkeypatch)
    assert words in refused(routed, tmp_path)


def settings(**changes: Any) -> Patch:
    def patch_it(patch: pytest.MonkeyPatch) -> None:
        telling = LiveTarget._settings
        patch.setattr(LiveTarget, "_settings", lambda self: {**telling(self), **changes})

    return patch_it


STARTED: dict[str, tuple[str, Patch]] = {
    "that ends": ("serve.py does not start: broken", behind(
        *PROGRAM, written("serve.py", "raise SystemExit('broken')")
    )),
    "with an edited module": ("does not start: ImportError: gone", behind(
        *PROGRAM, written(BACKEND, "raise ImportError('gone')")
    )),
    "that knows its files by the folder it is started in": ("serve.py does not start", behind(
        *PROGRAM, text("serve.py", ("Path(__file__).resolve().parent", "Path.cwd()"))
    )),
    "that tells no address": ("serve.py does not start", behind(*PROGRAM, written("serve.py", "print('ready')"))),
    "for another base": ("does not start: serve.py: the gate takes 32 numbers", settings(hidden_size=5)),
    "with a gate of zeros": ("gives 'Say hello kindly.' the weights", behind(
        *GATE, tensors("gate.safetensors", n2_weight=zero, n2_bias=zero)
    )),
    "with names turned round": ("gives 'Say hello kindly.' the weights", settings(gate_names=[*NAMES[::-1]])),
    "without an adapter": ("decides trained over facts, style", settings(adapters=[
        {"name": name, "file": f"adapter.{name}.gguf"} for name in NAMES[1:]
    ])),
    "in another mode": ("decides uniform over", settings(gate_mode="uniform")),
    "with another template": ("serve.py makes ", settings(chat_template="{{ messages[-1].content }}")),
    "with another system prompt": ("serve.py makes ", settings(system_prompt="Be unkind and very brief.")),
    "with a short context": ("server answers /v1/chat/completions with 400", settings(context_length=16)),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTED)
def test_a_live_server_is_started_and_asked(
    routed: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    words, mutate = STARTED[name]
    mutate(monkeypatch)
    for module, look in ((live, "check_program"), (live, "check_live_settings"), (targets_gguf, "check_gate_files")):
        monkeypatch.setattr(module, look, lambda *given: None)
    with pytest.raises(ExportRefused, match="the export's server") as caught:
        export(routed, target="llama-server", quant="q8_0", gate="live", out=str(tmp_path / "out"))
    assert words in str(caught.value)


def test_what_a_live_server_decides_is_told_and_it_leaves_nothing_behind(routed: Session, tmp_path: Path) -> None:
    found = export(routed, target="llama-server", quant="f32", gate="live", out=str(tmp_path / "out"))
    routing = found.manifest["routing"]
    assert routing["prompts"] >= 4
    assert routing["max_weight_diff"] < 1e-4 and routing["embedding_error"] < 1e-3
    assert {file["path"] for file in found.manifest["artifacts"]} | {"export_manifest.json"} == {
        path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()
    }
    assert not list(found.folder.rglob("*.pyc"))


def test_a_live_server_that_says_nothing_is_given_up(routed: Session, tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text("import threading\nthreading.Event().wait()\n")
    with pytest.raises(ExportRefused, match=r"serve\.py does not start: the runtime said nothing"):
        run_to_end(live_trial.try_server(tmp_path, "serve.py", routed, NAMES, ["Hello"], "f32", patience=0.2))


def test_a_gate_that_the_document_does_not_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_tiny(tmp_path, "llama", gate=False)
    writing = targets_gguf.write_adapter

    def write(path: Path, *given: Any, **named: Any) -> Any:
        path.with_name("gate.json").write_text("{}")
        return writing(path, *given, **named)

    monkeypatch.setattr(targets_gguf, "write_adapter", write)
    with pytest.raises(ExportRefused, match=r"gate\.json is there, and the document has no such gate"):
        export(session, target="llama-server", quant="q8_0", mix="tone:0.7")


@pytest.mark.parametrize(
    ("quant", "ids"), [("f16", [1]), ("bf16", [66, 67]), ("q8_0", [66, 67]), ("q4_k_m", list(range(300, 330)))]
)
def test_tokens_that_are_wiped_out_or_swapped_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: str, ids: list[int]
) -> None:
    session = open_tiny(tmp_path, "llama", vocab_size=8192)
    merging = gguf_model.merged_rows

    def merged(source: Any, name: str, start: int, stop: int, pair: Any) -> torch.Tensor:
        rows = merging(source, name, start, stop, pair).clone()
        if "embed_tokens" in name and len(ids) == 2:
            rows[[index - start for index in ids]] = rows[[index - start for index in reversed(ids)]]
        elif "embed_tokens" in name:
            rows[[index - start for index in ids]] = 0
        return rows

    monkeypatch.setattr(gguf_model, "merged_rows", merged)
    with pytest.raises(ExportRefused, match=WRONG):
        export(session, target="ollama", quant=quant)


def test_a_tensor_that_the_base_does_not_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp would take an output layer that is in the file for that of a tied base."""
    session = open_tiny(tmp_path, "llama")
    planning, one = gguf_model.plan_model, torch.ones(384, 32)
    extra = PlannedTensor("output.weight", (384, 32), gguf.GGMLQuantizationType.F32, lambda: iter((one,)))
    monkeypatch.setattr(gguf_model, "plan_model", lambda *given: [*planning(*given), extra])
    with pytest.raises(ExportRefused, match=r"not meant to be there: output\.weight"):
        export(session, target="ollama", quant="q8_0")
    monkeypatch.undo()
    adapting, other = gguf_adapter.plan_adapter, PlannedTensor("blk.0.x.lora_a", extra.shape, extra.kind, extra.blocks)
    monkeypatch.setattr(gguf_adapter, "plan_adapter", lambda *given: [*adapting(*given), other])
    with pytest.raises(ExportRefused, match=r"mix\.gguf holds .* not meant to be there: blk\.0\.x\.lora_a"):
        export(session, target="llama-server", quant="q8_0")


def test_the_order_of_keys_is_no_difference(tmp_path: Path) -> None:
    turned = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
    config = AutoConfig.for_model("llama", rope_parameters=turned, id2label={0: "a", 1: "b"})
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    check_configuration(tmp_path, config, None, {})
    with pytest.raises(ExportRefused, match=UNFIT):
        check_configuration(tmp_path, config, None, {"id2label": {"0": "a"}})


def stored_as(folder: Path, dtype: torch.dtype) -> None:
    """Store a tiny base in another type, as its configuration then says."""
    path = folder / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")}))


@pytest.fixture
def overflowing(tmp_path: Path) -> Session:
    """A Gemma in bfloat16 whose residual stream is larger than float16 can hold, as the real ones' is."""
    folder = write_tiny_base(tmp_path / "base", "gemma3_text")
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if "post_feedforward_layernorm" in name:
            tensor += 4e4
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    stored_as(folder, torch.bfloat16)
    return open_tiny(tmp_path, "gemma3_text")


@pytest.mark.parametrize("target", ["llama-server", "ollama"])
def test_a_base_that_overflows_in_the_cache_of_its_reader_is_refused(tmp_path: Path, target: str) -> None:
    """Nobody tells llama-server to keep another cache than its own, in float16."""
    folder = write_tiny_base(tmp_path / "base", "llama")
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        tensor *= 2.0**20 if "v_proj" in name else 2.0**-20 if "o_proj" in name else 1.0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    stored_as(folder, torch.bfloat16)
    session = open_tiny(
        tmp_path, "llama", adapters=lambda base: {
            name: random_adapter(base, name, targets=target_names(base, "q_proj")) for name in NAMES
        }
    )  # fmt: skip
    with pytest.raises(ExportRefused, match=r"its own settings.*the numbers overflow in a float16 cache"):
        export(session, target=target, quant="bf16")


def test_a_base_that_overflows_in_float16_keeps_its_own_type(overflowing: Session) -> None:
    result = export(overflowing, target="merged")
    assert {tensor.dtype for tensor in load_file(result.folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((result.folder / "config.json").read_text())["dtype"] == "bfloat16"
    parity, cost = result.manifest["parity"], result.manifest["cost"]
    assert (parity["dtype"], parity["against"]) == ("f32", "the weights as stored")
    assert parity["max_abs_logprob_diff"] < 1e-4
    # what the reader gets is another figure, and is not called parity
    assert cost["dtype"] == "bf16"
    assert cost["max_abs_logprob_diff"] > 10 * parity["max_abs_logprob_diff"]


def test_a_base_that_overflows_in_float16_is_not_verified_in_float16(overflowing: Session) -> None:
    with pytest.raises(ExportRefused, match="no finite probability for every token: the numbers overflow in f16"):
        export(overflowing, target="merged", quant="f16")


def test_a_peft_folder_tells_what_the_base_in_its_own_type_costs(overflowing: Session) -> None:
    for target in ("peft", "vllm"):
        manifest = export(overflowing, target=target).manifest
        assert manifest["parity"]["max_abs_logprob_diff"] < 1e-3
        assert manifest["cost"]["dtype"] == "bf16"


def answers(rows: list[list[float]], greedy: list[list[int]]) -> Answers:
    return Answers([np.array(row, dtype=np.float32) for row in rows], greedy, label="a runtime")


def test_answers_that_cannot_be_right_are_refused() -> None:
    plain = answers([[-0.7, -0.7]], [[0, 1, 1]])
    assert compare(plain, plain, "f32")["greedy_agree"] == 1.0
    for bad in (np.nan, -np.inf, np.inf):
        with pytest.raises(ExportRefused, match="no finite probability"):
            compare(plain, answers([[-0.7, bad]], [[0, 1, 1]]), "f16")
    with pytest.raises(ExportRefused, match="one token over and over"):
        compare(plain, answers([[-0.7, -0.7]], [[2, 2, 2]]), "f16")
    same = answers([[-0.7, -0.7]], [[2, 2, 2]])
    assert compare(same, same, "f16")["greedy_agree"] == 1.0


def test_the_divergence_over_a_large_vocabulary_is_that_of_float64() -> None:
    chance = np.random.default_rng(0)
    logits = chance.normal(0, 3, (2, 1 << 18)) * [[1.0], [1e-3]]
    ours, theirs = (row - np.log(np.exp(row).sum()) for row in (logits[0], logits.sum(axis=0)))
    wanted = float((np.exp(ours) * (ours - theirs)).sum())
    # what a sum of float32 numbers leaves is more than the divergence itself
    told = [Answers([row.astype(np.float32)], [[0]], label="a runtime") for row in (ours, theirs + 1e-5)]
    assert 1e-7 < wanted < 1e-5
    assert compare(*told, "bf16")["mean_kl"] == pytest.approx(wanted, rel=1e-3)


def test_what_a_runtime_would_say_itself_is_compared_step_by_step() -> None:
    plain = answers([[-0.7, -0.7]], [[0, 1, 1, 0]])
    strayed = answers([[-0.7, -0.7]], [[0, 0, 0, 1]])
    assert compare(plain, strayed, "q8_0")["greedy_agree"] == 0.25
    assert compare(plain, replace(strayed, followed=[[0, 1, 1, 1]]), "q8_0")["greedy_agree"] == 0.75


@pytest.mark.parametrize(
    ("figures", "dtype", "words"),
    [
        ({"greedy_agree": 0.53}, "q8_0", "53% of the likeliest tokens are the same, and q8_0 leaves at least 85%"),
        ({"mean_kl": 0.03}, "q4_0", "the mean divergence is 0.03 nats"),
        ({"mean_kl": 0.002}, "bf16", "the mean divergence is 0.002 nats"),
        ({"max_abs_logprob_diff": 0.1}, "f16", "log-probabilities differ by 0.1 nats"),
        ({"mean_kl": float("nan")}, "q8_0", "the mean divergence is nan nats"),
    ],
)
def test_figures_that_a_type_does_not_explain_are_refused(figures: dict[str, float], dtype: str, words: str) -> None:
    against = {"against": "the weights as stored", "runtime": "llama.cpp"}
    right = {**against, "max_abs_logprob_diff": 0.0, "mean_kl": 0.0, "greedy_agree": 1.0}
    judge(right, dtype)
    with pytest.raises(ExportRefused, match="does not answer as the weights as stored do") as caught:
        judge({**right, **figures}, dtype)
    assert words in str(caught.value)
    with pytest.raises(ExportRefused, match="as the workbench does over three prompts:"):
        judge({**right, **figures, "against": "the workbench"}, dtype, " over three prompts")


def test_a_long_prompt_begins_where_nothing_short_has_been() -> None:
    config = AutoConfig.for_model("gemma3_text", sliding_window=512)
    assert long_length(config, 100, 4096) == 544
    assert long_length(config, 100, 512) is None
    assert long_length(config, 600, 4096) is None
    assert long_length(AutoConfig.for_model("gemma3_text", sliding_window=4096), 100, 8192) is None
    assert long_length(AutoConfig.for_model("llama"), 100, 4096) is None


def test_vllm_gets_the_context_of_the_base_and_its_type(tmp_path: Path) -> None:
    session = open_tiny(tmp_path, "llama")
    assert session.document.training.sequence_len == 128
    folder = export(session, target="vllm", verify=False).folder
    config = json.loads((folder / "vllm_config.json").read_text())
    assert (config["max_model_len"], config["dtype"]) == (256, "float32")
    assert "--dtype float32 --max-model-len 256" in (folder / "vllm_launch.sh").read_text()
