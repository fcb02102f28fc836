"""Tokenizers written into a GGUF split text as the original does, asked of llama.cpp itself."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dlm_tui.export.architectures import read_architecture
from dlm_tui.export.gguf_model import write_model
from dlm_tui.export.gguf_tokenizer import _SPLITS, read_tokenizer, tokenizer_kind
from dlm_tui.export.metadata_check import check_metadata
from dlm_tui.export.parity import ODD_TEXTS, ParityJob, check_tokenizer, runtime_answers
from dlm_tui.export.prompts import SENTENCES
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.weights import MemoryWeights
from dlm_tui.model.chat import ChatRenderer
from dlm_tui.model.gguf_tensors import TensorReader
from dlm_tui.progress import run_to_end
from tests.tiny_models import CORPUS, SMALL

TEXTS = (
    *ODD_TEXTS,
    *SENTENCES,
    "I'LL we'Re 12345 678  \n\n  tail   ",
    "a\r\nb\n\n\nc \t d",
    "x=1;y=22;z=333;# ok?!…",
    "naïve façade Ωμέγα 東京都 🙂🙂",
)
LLAMA3, QWEN2 = _SPLITS
BYTES = pre_tokenizers.ByteLevel


def byte_level(pre: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, initial_alphabet=BYTES.alphabet())
    return tokenizer


def train(tokenizer: Tokenizer, **options: Any) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>", "<unk>"], show_progress=False, **options
    )
    tokenizer.train_from_iterator([*CORPUS, *TEXTS], trainer)


def split_by(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, BYTES(add_prefix_space=False, use_regex=False)])


def sentencepiece() -> Tokenizer:
    """As converted from Llama 2: blanks marked, bytes as a fallback, no splitting before the merges."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
        max_token_length=8,
    )
    tokenizer.train_from_iterator([*CORPUS, *TEXTS], trainer)
    state = tokenizer.to_str()
    return Tokenizer.from_str(state)


KINDS = {
    "gpt-2": lambda: byte_level(BYTES(add_prefix_space=False)),
    "smollm": lambda: byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES(add_prefix_space=False)])
    ),
    "llama-bpe": lambda: byte_level(split_by(LLAMA3)),
    "qwen2": lambda: byte_level(split_by(QWEN2)),
    "default": sentencepiece,
}


def fast(tokenizer: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp (extra [llama]) is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_splits_text_the_same_way(tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = fast(KINDS[kind]())
    config = AutoConfig.for_model("llama", **{**SMALL, "num_hidden_layers": 1, "vocab_size": len(tokenizer) + 3})
    model: Any = AutoModelForCausalLM.from_config(config)
    written = read_tokenizer(tokenizer, config.vocab_size)
    assert written.pre == kind
    path = tmp_path / "model.gguf"
    architecture = read_architecture(config.to_dict())
    run_to_end(write_model(path, MemoryWeights(model.state_dict()), architecture, written, "f32", name="x"))
    check_metadata(path, config, tokenizer, "f32")
    job = ParityJob("llama.cpp", path, [[1, 2]], "f32", config.vocab_size, texts=TEXTS, greedy=0)
    answers = run_to_end(runtime_answers(job))
    check_tokenizer(TEXTS, [tokenizer(text)["input_ids"] for text in TEXTS], answers.tokenized)


def test_a_token_that_no_merge_makes_may_not_be_joined_before_one_that_a_merge_makes(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = fast(sentencepiece())
    config = AutoConfig.for_model("llama", **{**SMALL, "num_hidden_layers": 1, "vocab_size": len(tokenizer)})
    model: Any = AutoModelForCausalLM.from_config(config)
    written = read_tokenizer(tokenizer, config.vocab_size)
    number, path = written.tokens.index("a"), tmp_path / "model.gguf"
    scores = [0.0 if at == number else score for at, score in enumerate(written.scores)]
    spoiled, source = replace(written, scores=scores), MemoryWeights(model.state_dict())
    run_to_end(write_model(path, source, read_architecture(config.to_dict()), spoiled, "f32", name="x"))
    with pytest.raises(ExportRefused, match=rf"tokenizer\.ggml\.scores\[{number}\] is 0\.0 and should be 'less than"):
        check_metadata(path, config, tokenizer, "f32")


@pytest.mark.parametrize("kind", KINDS)
def test_another_rule_for_splitting_is_refused(tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = fast(KINDS[kind]())
    config = AutoConfig.for_model("llama", **{**SMALL, "num_hidden_layers": 1, "vocab_size": len(tokenizer)})
    source = MemoryWeights(AutoModelForCausalLM.from_config(config).state_dict())
    written, path = read_tokenizer(tokenizer, config.vocab_size), tmp_path / "model.gguf"
    for pre in {"default", "gpt-2", "smollm", "qwen2", "llama-bpe", "tekken", "gpt-4o"} - {kind}:
        spoiled = replace(written, pre=pre)
        run_to_end(write_model(path, source, read_architecture(config.to_dict()), spoiled, "f32", name="x"))
        with pytest.raises(ExportRefused, match=rf"tokenizer\.ggml\.pre is '{pre}' and should be '{kind}'"):
            check_metadata(path, config, tokenizer, "f32")


def test_every_end_of_an_answer_is_told(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = fast(KINDS["gpt-2"]())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|fin|>", "<|fin2|>", "<|fin3|>"]})
    named, fin, fin2, fin3 = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|fin|>", "<|fin2|>", "<|fin3|>"])
    stops = {tokenizer.eos_token_id, named, fin, fin2}
    config = AutoConfig.for_model("llama", **{**SMALL, "num_hidden_layers": 1, "vocab_size": len(tokenizer)})
    source = MemoryWeights(AutoModelForCausalLM.from_config(config).state_dict())
    written, path = read_tokenizer(tokenizer, config.vocab_size, stops), tmp_path / "model.gguf"
    run_to_end(write_model(path, source, read_architecture(config.to_dict()), written, "f32", name="x"))
    assert {key: TensorReader(path).values()[f"tokenizer.ggml.{key}_token_id"] for key in ("eot", "eom")} == {
        "eot": fin,
        "eom": fin2,
    }
    check_metadata(path, config, tokenizer, "f32", stops)
    for other in ({fin2}, {fin}, set()):
        with pytest.raises(ExportRefused, match=r"tokenizer\.ggml\.eo[tm]_token_id"):
            check_metadata(path, config, tokenizer, "f32", {tokenizer.eos_token_id} | other)
    with pytest.raises(ExportRefused, match=r"ends its answers with <\|fin\|>, <\|fin2\|>, <\|fin3\|> beside"):
        read_tokenizer(tokenizer, config.vocab_size, stops | {fin3})


def test_of_several_chat_templates_the_one_of_the_workbench_is_written() -> None:
    tokenizer = fast(KINDS["gpt-2"]())
    tokenizer.chat_template = {"tools": "t", "rag": "r"}
    assert read_tokenizer(tokenizer, len(tokenizer)).chat_template == ChatRenderer(tokenizer, "x").template == "r"


@pytest.mark.parametrize(("scheme", "refused"), [("first", True), ("always", True), ("never", False)])
def test_blanks_that_are_put_only_where_there_are_none_are_refused(scheme: str, refused: bool) -> None:
    tokenizer = sentencepiece()
    tokenizer.normalizer = None  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)  # type: ignore[assignment]
    if refused:
        with pytest.raises(ExportRefused, match="puts a blank before a text only where there is none"):
            tokenizer_kind(fast(tokenizer))
    else:
        assert tokenizer_kind(fast(tokenizer)).is_sentencepiece


def test_a_difference_is_named() -> None:
    check_tokenizer(["a", "b"], [[1], [2]], [[1], None])
    with pytest.raises(ExportRefused, match="'b'"):
        check_tokenizer(["a", "b"], [[1], [2]], [[1], [3]])


def test_kinds_that_llama_cpp_is_not_known_to_reproduce_are_refused() -> None:
    unknown = byte_level(split_by(r"\w+|\s+"))
    with pytest.raises(ExportRefused, match="splits text"):
        read_tokenizer(fast(unknown), 600)
    whole_words = byte_level(pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), BYTES(add_prefix_space=False)]))
    with pytest.raises(ExportRefused, match="splits text"):
        read_tokenizer(fast(whole_words), 600)
    pieces = Tokenizer(models.WordPiece({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    with pytest.raises(ExportRefused, match="WordPiece"):
        read_tokenizer(fast(pieces), 600)
    with pytest.raises(ExportRefused, match="no fast tokenizer"):
        read_tokenizer(object(), 10)


def test_a_tokenizer_larger_than_the_base_is_refused() -> None:
    tokenizer = fast(KINDS["gpt-2"]())
    with pytest.raises(ExportRefused, match="embeddings"):
        read_tokenizer(tokenizer, len(tokenizer) - 1)
    padded = read_tokenizer(tokenizer, len(tokenizer) + 2)
    assert (padded.tokens[-1], padded.types[-1]) == (f"[PAD{len(tokenizer) + 1}]", 5)
    assert padded.types[:3] == [3, 3, 3]
