"""What a model's or an adapter's folder says is checked and bounded: sizes, types, patterns."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dlm_tui.export.suitability import suitability
from dlm_tui.model.adapters import AdapterError, load_peft_adapter, pattern_value, save_peft_adapter
from dlm_tui.model.base_loading import load_base
from dlm_tui.model.config_check import check_config
from dlm_tui.model.foreseen import foreseen_forward
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.modulated.targets import ModulationError, match_targets
from dlm_tui.model.registry import BaseUnavailable, resolve_base
from dlm_tui.patterns import BoundedPatterns, PatternError
from dlm_tui.progress import run_to_end
from tests.tiny_models import random_adapter, tiny_base, write_tiny_base

ENDLESS = "([a-z._0-9]+)+X", "(a|[a-z._0-9]|[a-z]+)*!", "(?:(?:[a-z._0-9]*)*)*#"
SLOW = "([a-z._0-9]|[a-z._0-9][a-z._0-9])+(?<=[^a-z._0-9])"
NAME = "model.layers.11.self_attn.q_proj" * 3


@pytest.mark.parametrize("pattern", ENDLESS)
def test_a_pattern_that_backtracks_without_end_stops(pattern: str) -> None:
    began = time.process_time()
    bounded = BoundedPatterns(0.3)
    try:
        assert not bounded.search(rf"^(.*\.)?({pattern})$", NAME)  # the library may see through it
    except PatternError as error:
        assert "takes longer than 0.3 seconds" in str(error)
    assert time.process_time() - began < 3


def test_the_time_is_shared_by_all_questions() -> None:
    bounded = BoundedPatterns(0.3)
    began = time.process_time()
    with pytest.raises(PatternError):
        for _ in range(10_000):
            bounded.search(r"^(a|aa)+$", "a" * 27 + "b")
    assert time.process_time() - began < 3


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "(" * 2000 + ")" * 2000, "a" * 5000])
def test_what_is_no_pattern_is_a_sentence(pattern: str) -> None:
    with pytest.raises(PatternError, match="the pattern"):
        pattern_value({pattern: 4}, NAME, 8)


def test_patterns_of_an_adapter_and_of_its_targets_are_bounded(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "m")
    save_peft_adapter(random_adapter(base, "a"), tmp_path / "a", "x")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    config["rank_pattern"] = {SLOW: 4}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    began = time.process_time()
    with pytest.raises(AdapterError, match="takes longer than"):
        load_peft_adapter(tmp_path / "a", "a", base)
    with pytest.raises(ModulationError, match="takes longer than"):
        match_targets(base.model, SLOW)
    assert time.process_time() - began < 5


VALUES: tuple[Any, ...] = ("x", [1], {"a": 1}, -1, 0, 1.5, True, None, [[[]]], 10**30)
FIELDS = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "peft_type", "bias", "init_lora_weights",
    "use_dora", "lora_bias", "modules_to_save", "layer_replication", "target_parameters", "trainable_token_indices",
    "alora_invocation_tokens", "use_qalora", "dlm_parameterization", "target_modules", "base_model_name_or_path",
)  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_any_type_in_any_field_loads_or_is_a_sentence(tmp_path: Path, field: str) -> None:
    base = tiny_base(tmp_path / "m")
    save_peft_adapter(random_adapter(base, "a"), tmp_path / "a", "x")
    file = tmp_path / "a" / "adapter_config.json"
    config = json.loads(file.read_text())
    for value in VALUES:
        file.write_text(json.dumps({**config, field: value}))
        try:
            load_peft_adapter(tmp_path / "a", "a", base)
        except AdapterError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("alpha", ["NaN", "Infinity", "1e308", "-1e200", "1e7"])
def test_a_scale_that_no_training_writes_is_refused(tmp_path: Path, alpha: str) -> None:
    base = tiny_base(tmp_path / "m")
    save_peft_adapter(random_adapter(base, "a", rank=1), tmp_path / "a", "x")
    file = tmp_path / "a" / "adapter_config.json"
    text = json.dumps({**json.loads(file.read_text()), "lora_alpha": 7e7})
    file.write_text(text.replace("70000000.0", alpha))
    with pytest.raises(AdapterError, match=r"damaged|not a readable"):
        load_peft_adapter(tmp_path / "a", "a", base)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers 10000000, but the weights hold 3 layers"),
        ({"num_hidden_layers": 4}, "but the weights hold 3 layers"),
        ({"num_hidden_layers": 2}, "but the weights hold 3 layers"),
        ({"num_hidden_layers": 0}, "but the weights hold 3 layers"),
        ({"num_hidden_layers": 2, "num_nextn_predict_layers": 1}, ""),
        ({"model_type": ["llama"]}, "its model_type is no text"),
        ({"hidden_size": 10**9}, "hidden_size 1000000000"),
        ({"intermediate_size": 10**8}, "intermediate_size"),
        ({"intermediate_size": 65}, "is 32 x 64 in its files, and 32 x 65 by its configuration"),
        ({"vocab_size": 10**9}, "vocab_size"),
        ({"head_dim": 10**10}, "head_dim"),
        ({"num_attention_heads": -4}, "num_attention_heads -4"),
        ({"num_attention_heads": 0}, "num_attention_heads 0, and no model has none"),
        ({"hidden_size": 10**400}, "m/config.json says hidden_size 1000000000000000000000000000000000000000…, which"),
        ({"max_position_embeddings": "many"}, "expected int, got str"),
        ({"architectures": {"a": 1}}, ""),
        ({"num_hidden_layers": "three"}, "num_hidden_layers 'three', which is no whole number"),
    ],
)
def test_a_configuration_is_held_against_the_weights(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    folder = write_tiny_base(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    began = time.process_time()
    try:
        run_to_end(load_base(resolve_base("hf:test/m", folder), device="cpu"))
    except BaseUnavailable as error:
        assert words and words in str(error) and "\n" not in str(error)
    else:
        assert not words
    assert time.process_time() - began < 5
    assert not words or capfd.readouterr() == ("", "")


@pytest.mark.parametrize("inner", [False, True])
def test_a_base_that_attends_both_ways_is_none(tmp_path: Path, inner: bool) -> None:
    folder = write_tiny_base(tmp_path / "m", "gemma3_text")
    file = folder / "config.json"
    config = json.loads(file.read_text())

    def opened(said: object) -> Any:
        told = {"use_bidirectional_attention": said}
        file.write_text(json.dumps({**config, "text_config": told} if inner else {**config, **told}))
        return resolve_base("hf:test/m", folder)

    words = "attends both ways (use_bidirectional_attention in config.json): it embeds text, and cannot write any"
    for said in (True, "all"):
        with pytest.raises(BaseUnavailable, match=re.escape(words)):
            run_to_end(load_base(opened(said), device="cpu"))
        assert foreseen_forward(opened(said)) == (None, f"none: it {words}")
        assert suitability(opened(said)) == ([], f"none: it {words}")
    for said in (False, None, "vision"):
        check_config(json.loads(opened(said).path.joinpath("config.json").read_text()), [folder / "model.safetensors"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [10**6, 10**9]}, "its header says [1000000, 1000000000] of 'model.embed_tokens.weight', which has"),
        ({"shape": [-1, 4]}, "its header gives no place of 'model.embed_tokens.weight'"),
        ({"data_offsets": [0]}, "its header gives no place of 'model.embed_tokens.weight'"),
        ({"data_offsets": None}, "its header gives no place of 'model.embed_tokens.weight'"),
        ({"dtype": "F64"}, "of 'model.embed_tokens.weight', which has"),
    ],
)
def test_a_header_is_held_against_the_bytes_of_its_file(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    file = write_tiny_base(tmp_path / "m") / "model.safetensors"
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["model.embed_tokens.weight"].update(change)
    said = json.dumps(header).encode()
    file.write_bytes(len(said).to_bytes(8, "little") + said + data[end:])
    with pytest.raises(BaseUnavailable) as caught:
        run_to_end(load_base(resolve_base("hf:test/m", tmp_path / "m"), device="cpu"))
    assert f"{file} is damaged: " in str(caught.value) and words in str(caught.value)
    assert str(caught.value).endswith("; fetch it again")


@pytest.mark.parametrize(
    "index",
    [
        "[" * 100_000,
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../../x.safetensors"}}',
    ],
)
def test_a_damaged_index_of_shards_is_a_sentence(tmp_path: Path, index: str) -> None:
    folder = write_tiny_base(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BaseUnavailable, match=r"index\.json"):
        run_to_end(load_base(resolve_base("hf:test/m", folder), device="cpu"))


def test_what_is_wrong_with_a_folder_is_said_of_that_folder(tmp_path: Path) -> None:
    """The document's own base has another name, and is not what was asked for."""
    folder = write_tiny_base(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BaseUnavailable) as refused:
        run_to_end(load_base(resolve_base("pocket", folder), device="cpu"))
    text = str(refused.value)
    assert text.startswith(f"the tokenizer of {folder} cannot be loaded: ")
    assert not text.endswith((":", ",")) and "\n" not in text, "what is announced follows"


@pytest.mark.parametrize("rest", [4, 100, -1000, -1])
def test_weights_that_were_cut_short_are_named_and_fetched_again(tmp_path: Path, rest: int) -> None:
    folder = write_tiny_base(tmp_path / "m")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:rest])
    with pytest.raises(BaseUnavailable, match=rf"^{re.escape(str(file))} is .*; fetch it again$"):
        run_to_end(load_base(resolve_base("pocket", folder), device="cpu"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("tensor", ["ln", "embed"])
def test_a_base_that_gives_no_numbers_says_so_instead_of_nothing(
    tmp_path: Path, architecture: str, tensor: str
) -> None:
    """With a fused forward and without one: the answer was an empty line."""
    folder = write_tiny_base(tmp_path / "base", architecture)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    wanted = {"ln": ("model.norm.weight", "transformer.ln_f.weight")}.get(
        tensor, ("model.embed_tokens.weight", "transformer.wte.weight")
    )
    (name,) = set(wanted) & set(tensors)
    tensors[name].view(-1)[-1] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    base = tiny_base(folder, architecture)
    for _ in range(2):
        with pytest.raises(BaseUnavailable) as refused:
            MixedModel(base, {})
        assert str(refused.value) == (
            f"the base {folder} gives numbers that are not finite; its files are damaged: fetch them again"
        )
