"""Loading a base: any architecture, exact identity, prompts as tokens, and refusals as one sentence."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, GemmaTokenizer, Qwen2Tokenizer, TokenizersBackend

from dlm_tui.errors import DlmTuiError
from dlm_tui.model.base import Base
from dlm_tui.model.base_loading import load_base
from dlm_tui.model.download import fetch
from dlm_tui.model.registry import BaseUnavailable, resolve_base
from dlm_tui.progress import run_to_end
from tests.tiny_models import tiny_base, tiny_tokenizer, write_tiny_base


def test_a_base_is_frozen_and_knows_itself(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "m")
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    assert (base.hidden_size, base.context_length) == (32, 256)
    again = tiny_base(tmp_path / "m")
    assert again.identity == base.identity
    other = tiny_base(tmp_path / "other", seed=1)
    assert other.identity.weights_sha256 != base.identity.weights_sha256
    assert other.identity.tokenizer_sha256 == base.identity.tokenizer_sha256


def test_chat_renders_the_template_and_raw_prompts_do_not(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "m")
    text = base.tokenizer.decode(base.chat("Hi", system="Be brief."))
    assert text == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert base.tokenizer.decode(base.encode_raw("Hi there")) == "Hi there"
    assert len(base.encode_raw("word " * 5000)) == 512
    assert base.tokenizer.convert_tokens_to_ids("<|im_end|>") in base.stop_ids


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([*"ab the\n\t🙂é東?1", "<|im_start|>", "<|im_end|>", "<|pad|>"]), max_size=60).map(
        "".join
    ),
    st.one_of(st.none(), st.integers(3, 40)),
    st.sampled_from(["right", "left"]),
)
def test_the_quick_way_to_token_ids_gives_the_tokenizers_own(text: str, limit: int | None, side: str) -> None:
    tokenizer = quick_base().tokenizer
    assert quick_base()._quick
    tokenizer.truncation_side = side
    cut = {} if limit is None else {"truncation": True, "max_length": limit}
    expected = list(tokenizer(text, **cut)["input_ids"])
    tokenizer(text, truncation=True, max_length=3)  # what another call left behind changes nothing
    assert quick_base().encode_raw(text, limit) == expected


@functools.cache
def quick_base() -> Base:
    with tempfile.TemporaryDirectory() as folder:
        base = tiny_base(Path(folder) / "m")
    # a beginning and an end of its own, which a cut has to leave room for
    base.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 0), ("<|im_end|>", 1)]
    )
    return Base(base.model, base.tokenizer, base.source, base.identity)


def test_a_tokenizer_without_the_quick_way_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(tmp_path / "m")

    class Shifted:
        def encode_batch_fast(self, texts: list[str]) -> list[SimpleNamespace]:
            return [SimpleNamespace(ids=[token + 1 for token in base.tokenizer(text)["input_ids"]]) for text in texts]

    expected = base.encode_raw("Where is the ladder?")
    for backend in (object(), Shifted()):
        monkeypatch.setattr(type(base.tokenizer), "backend_tokenizer", backend)
        other = Base(base.model, base.tokenizer, base.source, base.identity)
        assert not other._quick and other.encode_raw("Where is the ladder?") == expected


@pytest.mark.parametrize("kind", [GemmaTokenizer, Qwen2Tokenizer])
def test_what_a_tokenizer_was_made_of_is_dropped(tmp_path: Path, kind: type[TokenizersBackend]) -> None:
    folder = write_tiny_base(tmp_path / "m")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    kind(vocab=model["vocab"], merges=merges, unk_token=next(iter(model["vocab"]))).save_pretrained(folder)
    whole = AutoTokenizer.from_pretrained(folder)
    assert type(whole) is kind and whole._vocab and whole._merges
    base = run_to_end(load_base(resolve_base("hf:test/llama", folder)))
    assert type(base.tokenizer) is kind
    assert not {"_vocab", "_merges"} & set(vars(base.tokenizer))
    text = "Dear neighbour, the ladder stands behind the shed again."
    assert base.encode_raw(text) == whole(text).input_ids
    base.tokenizer.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.get_vocab() == whole.get_vocab() and again(text).input_ids == whole(text).input_ids


def test_load_reports_progress(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "m")
    steps = list(load_base(resolve_base("hf:test/llama", folder)))
    assert {step.stage for step in steps} == {"base"} and {step.total for step in steps} == {4}
    counts = [step.done for step in steps]
    # what is done is looked at now and then, so that a busy machine may miss one in between
    assert counts == sorted(counts) and {0, 4} <= set(counts) <= {0, 1, 2, 3, 4}
    assert len({step.text for step in steps}) == len(set(counts))


def test_a_base_that_cannot_be_fetched_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = resolve_base("hf:org/name")
    with pytest.raises(BaseUnavailable, match="hf download org/name"):
        run_to_end(load_base(source))
    with pytest.raises(BaseUnavailable, match="hf download org/name"):
        run_to_end(fetch(source))


def test_missing_weights_are_refused_instead_of_invented(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.down_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseUnavailable, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        run_to_end(load_base(resolve_base("hf:test/llama", folder)))


def test_code_from_a_model_folder_is_never_run(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "code.Strange"}}
    (folder / "config.json").write_text(json.dumps(config))
    trap = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(trap)!r}, 'w')")
    with pytest.raises(BaseUnavailable, match="never run"):
        run_to_end(load_base(resolve_base("hf:test/strange", folder)))
    assert not trap.exists()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_folder_without_a_tokenizer_says_which_file_is_missing(tmp_path: Path, architecture: str) -> None:
    folder = write_tiny_base(tmp_path / "m", architecture)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()  # without it the library makes an empty one for GPT-2
    said = (
        "cannot be loaded: its folder has no tokenizer.json (nor tokenizer.model, nor vocab.json and merges.txt); fetch"
    )
    with pytest.raises(BaseUnavailable) as caught:
        run_to_end(load_base(resolve_base(f"hf:test/{architecture}", folder)))
    assert said in str(caught.value)
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(BaseUnavailable, match=r"has vocab\.json and no merges\.txt; fetch"):
        run_to_end(load_base(resolve_base(f"hf:test/{architecture}", folder)))


@pytest.mark.parametrize("broken", ["model.safetensors", "tokenizer.json", "config.json"])
def test_broken_files_are_one_sentence(tmp_path: Path, broken: str) -> None:
    folder = write_tiny_base(tmp_path / "m")
    (folder / broken).write_bytes(b"{broken")
    with pytest.raises(BaseUnavailable) as caught:
        run_to_end(load_base(resolve_base("hf:test/llama", folder)))
    assert "\n" not in str(caught.value)


def test_an_unknown_dtype_is_a_usage_error(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "m")
    with pytest.raises(DlmTuiError, match="int4"):
        run_to_end(load_base(resolve_base("hf:test/llama", folder), dtype="int4"))


def test_the_test_tokenizer_writes_any_text() -> None:
    tokenizer = tiny_tokenizer()
    text = "plain, Grüße, 東京, 🙂 \x07 [bold]"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
