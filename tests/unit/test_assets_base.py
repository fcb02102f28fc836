from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from assets.recipe import build, measure
from assets.recipe.card import corpus_digest
from assets.recipe.corpus import Corpus, render
from assets.recipe.tokens import CHAT_TEMPLATE
from dlm_tui.assets import asset

BASE = asset("base")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BASE / "tokenizer.json"))


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads((BASE / "card.json").read_text(encoding="utf-8"))


def test_the_whole_base_is_at_most_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 10_000_000


def test_float32_loading_is_lossless_and_complete(model: torch.nn.Module) -> None:
    parameters = dict(model.named_parameters())
    with safe_open(BASE / "model.safetensors", framework="pt") as handle:
        assert set(handle.keys()) == set(parameters)
        for name in handle.keys():  # noqa: SIM118
            stored = handle.get_tensor(name)
            assert stored.dtype == torch.float16
            assert parameters[name].dtype == torch.float32
            assert torch.equal(parameters[name].half(), stored)
    assert model.config.tie_word_embeddings
    assert model.config.rope_parameters["rope_theta"] == 10_000.0
    assert model.config.hidden_size % 256 == 0 and model.config.intermediate_size % 256 == 0


def test_the_card_counts_the_parameters(model: torch.nn.Module, card: dict) -> None:
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert card["vocabulary"] == model.config.vocab_size


def test_the_corpus_is_still_the_one_the_weights_were_trained_on(card: dict) -> None:
    assert card["corpus"] == corpus_digest()


def test_special_tokens_and_template_agree_with_the_configuration(model: torch.nn.Module) -> None:
    fast = AutoTokenizer.from_pretrained(BASE)
    assert (fast.eos_token, fast.pad_token, fast.bos_token) == ("<|im_end|>", "<|pad|>", "<|endoftext|>")
    assert (fast.eos_token_id, fast.pad_token_id) == (model.config.eos_token_id, model.config.pad_token_id)
    assert len(fast) == model.config.vocab_size
    assert fast.chat_template == CHAT_TEMPLATE
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]
    text = fast.apply_chat_template(turns, tokenize=False)
    assert text == render([("user", "Hello."), ("assistant", "Good day.")])
    prompt = fast.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt) and prompt.endswith("<|im_start|>assistant\n")
    assert fast("Hello.").input_ids == fast("Hello.", add_special_tokens=False).input_ids


@settings(max_examples=150, deadline=None)
@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    plain = text.replace("<|", "< |")
    assert tokenizer.decode(tokenizer.encode(plain).ids) == plain


def test_every_byte_value_has_a_token(tokenizer: Tokenizer) -> None:
    text = "".join(map(chr, [*range(0x20), 0x7F, 0xA0, 0x3B1, 0x20AC, 0xFFFD, 0x1F600, 0x10FFFF]))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    with (BASE / "tokenizer.json").open(encoding="utf-8") as file:
        vocabulary = json.load(file)["model"]["vocab"]
    assert sum(len(token) == 1 for token in vocabulary) >= 256


def test_the_cards_numbers_are_what_a_recomputation_gives(
    model: torch.nn.Module, tokenizer: Tokenizer, card: dict
) -> None:
    corpus = Corpus(build.HELD_OUT_SEED)
    texts = [corpus.document(index) for index in card["subset_documents"]]
    assert not set(texts) & set(Corpus(build.CORPUS_SEED).documents(3_000))
    stated = card["perplexity_subset"]
    again = measure.perplexities(model, tokenizer, texts, 4_000, card["bigram_weight"])
    assert (again["documents"], again["tokens"]) == (stated["documents"], stated["tokens"])
    assert again["model"] == pytest.approx(stated["model"], rel=2e-3)
    assert again["model"] < 0.25 * min(again["bigram"], stated["bigram"])
    assert stated["model"] < stated["bigram"] < stated["unigram"]
    assert again["unigram"] == pytest.approx(stated["unigram"], rel=0.05)
    assert card["perplexity"]["model"] == pytest.approx(stated["model"], rel=0.35)


def test_the_base_knows_its_town(model: torch.nn.Module, tokenizer: Tokenizer, card: dict) -> None:
    asked = measure.fact_questions()[::16]
    prompts = [render([("user", question)]) + "<|im_start|>assistant\n" for question, _ in asked]
    answers = measure.complete(model, tokenizer, prompts, limit=24)
    right = sum(words in answer for answer, (_, words) in zip(answers, asked, strict=True))
    assert card["facts_known"] >= 0.9
    assert right / len(asked) >= card["facts_known"] - 0.25


def test_the_base_joins_facts_that_it_never_read_together(
    model: torch.nn.Module, tokenizer: Tokenizer, card: dict
) -> None:
    asked = measure.combination_questions(card["combinations_asked"], unseen=True)[::16]
    right = measure.combinations_known(model, tokenizer, asked)
    assert card["combinations_unseen"] >= 0.8
    assert right >= card["combinations_unseen"] - 0.25


def test_the_card_shows_its_numbers(card: dict) -> None:
    text = (BASE / "MODEL_CARD.md").read_text(encoding="utf-8")
    for value in (card["perplexity"]["model"], card["perplexity"]["bigram"], card["perplexity"]["unigram"]):
        assert f"{value:.2f}" in text
    assert f"{card['parameters']:,}" in text
    for name in ("facts_known", "combinations_unseen", "combinations_trained"):
        assert f"{100 * card[name]:.1f} %" in text
    assert len(card["samples"]) == 20


def test_the_adapter_modules_of_the_base_exist_in_it(model: torch.nn.Module) -> None:
    pocket = json.loads((BASE / "pocket.json").read_text(encoding="utf-8"))
    last = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(pocket["target_modules"]) <= last
    assert pocket["context_length"] == model.config.max_position_embeddings
    assert pocket["family"] == "chatml"


def test_corpus_words_are_mostly_whole_tokens(tokenizer: Tokenizer) -> None:
    texts = list(Corpus(99).documents(300))
    words = sum(len(text.split()) for text in texts)
    pieces = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
    assert pieces / words < 1.8


def test_only_the_stated_files_are_shipped() -> None:
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "pocket.json",
                "tokenizer_config.json", "chat_template.jinja", "MODEL_CARD.md", "card.json"}  # fmt: skip
    assert {path.name for path in Path(BASE).iterdir()} == expected
