"""The exported files in a real llama.cpp, against the workbench's own frozen mix, over the full vocabulary."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from dlm_tui.errors import UsageError
from dlm_tui.export import architectures, concatenate, gguf_adapter, gguf_model, targets_gguf
from dlm_tui.export.architectures import Architecture, read_architecture
from dlm_tui.export.choices import QUANTS
from dlm_tui.export.concatenate import LoraPair
from dlm_tui.export.modelfile import modelfile
from dlm_tui.export.parity import ParityJob, runtime_answers
from dlm_tui.export.requests import ExportRefused
from dlm_tui.session import Session
from tests.export_sessions import export, open_tiny
from tests.tiny_models import LLAMA3_ROPE, write_tiny_base

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp (extra [llama]) is not installed"
)

F32, F16 = 1e-4, 2e-2
PLAIN = {"tie_word_embeddings": False, "vocab_size": 387}
GEMMA: dict[str, Any] = {
    "model_type": "gemma2",
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "layer_types": ["sliding_attention", "full_attention"],
    "tie_word_embeddings": True,
}
WRONG = "does not (answer as|hold|add what) the workbench|adapter.lora.alpha is 1.0"
LONG = {"max_position_embeddings": 512}
GELU = 2e-2
"""What llama.cpp's table of GELU in float16 leaves of float32."""
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.9],
    "long_factor": [1.0, 2.0, 3.0, 5.0],
    "original_max_position_embeddings": 256,
}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, untied, vocabulary of 387, grouped queries": ("llama", PLAIN),
    "llama, tied": ("llama", {}),
    "llama, full heads": ("llama", {"num_key_value_heads": 4}),
    "llama, one key head, wide heads": ("llama", {"num_key_value_heads": 1, "head_dim": 16}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True, **PLAIN}),
    "llama, linear rope": ("llama", {"rope_parameters": LINEAR}),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "mistral, llama3 rope": ("mistral", {"sliding_window": None, "rope_parameters": LLAMA3_ROPE}),
    "mistral, short window": ("mistral", {"sliding_window": 64}),
    "qwen2": ("qwen2", {"vocab_size": 400}),
    "qwen2, linear rope": ("qwen2", {"vocab_size": 400, "rope_parameters": LINEAR}),
    "smollm3, every fourth layer without rotation": (
        "smollm3",
        {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1]},
    ),
    "qwen3": ("qwen3", {"vocab_size": 401, "tie_word_embeddings": False}),
    "qwen3, narrow heads, linear rope": ("qwen3", {"head_dim": 4, "rope_parameters": LINEAR}),
    "gemma2, window shorter than the prompts": ("gemma2", {"num_hidden_layers": 4}),
    "gemma2, linear rope": ("gemma2", {"num_hidden_layers": 4, "rope_parameters": LINEAR}),
    "gemma3, one full layer in six": ("gemma3_text", {}),
    "gemma3, one full layer in three, stretched rope": (
        "gemma3_text",
        {
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 7000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 90000.0, "factor": 4.0},
            },
        },
    ),
    "phi3": ("phi3", PLAIN),
    "phi3, short window": ("phi3", {"sliding_window": 64}),
    "phi3, half of each head rotates": ("phi3-partial", {"sliding_window": None}),
    "phi3, longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256, **LONG}),
    "phi3, longrope, a window within the context": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256, "sliding_window": 384, **LONG},
    ),
    "olmo2": ("olmo2", PLAIN),
    "olmo2, linear rope": ("olmo2", {"rope_parameters": LINEAR}),
    "granite": ("granite", {}),
    "granite, wide heads, llama3 rope": ("granite", {"head_dim": 16, "rope_parameters": LLAMA3_ROPE}),
    "granite, tied, biases": ("granite", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mixtral": ("mixtral", PLAIN),
    "mixtral, wide heads, llama3 rope": ("mixtral", {"head_dim": 16, "rope_parameters": LLAMA3_ROPE}),
    "qwen3 with experts": ("qwen3_moe", {}),
    "qwen3 with experts, linear rope": ("qwen3_moe", {"rope_parameters": LINEAR}),
}

# what an adapter file of its own has to get right beside the merged weights: permutation per family and head count
APART = (
    "llama, tied",
    "llama, one key head, wide heads",
    "qwen2",
    "gemma3, one full layer in six",
    "phi3",
    "granite",
    "mixtral",
)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Unequal ranks, q and v only, rsLoRA-like scales; llama3 rope, untied, 387 tokens, grouped queries."""
    folder = tmp_path_factory.mktemp("llama")
    return open_tiny(folder, "llama", rope_parameters=LLAMA3_ROPE, **PLAIN)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Rows of 256 and 512 columns, so that every type of block is used; weights of a size that trained ones have."""
    folder = tmp_path_factory.mktemp("wide")
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    path = write_tiny_base(folder / "base", "llama", **shape) / "model.safetensors"
    smaller = {name: tensor * (0.3 if tensor.dim() > 1 else 1.0) for name, tensor in load_file(path).items()}
    save_file(smaller, path, {"format": "pt"})
    return open_tiny(folder, "llama")


def assert_exact(parity: dict[str, Any], bound: float) -> None:
    assert parity["prompts"] >= 16
    assert parity["max_abs_logprob_diff"] <= bound
    assert parity["runtime"].startswith("llama.cpp (xllamacpp")


def test_f32_base_and_mix_and_the_adapters_apart(session: Session) -> None:
    parity = export(session, target="llama-server", quant="f32").manifest["parity"]
    assert_exact(parity, F32)
    assert parity["vocabulary"] == 387
    assert parity["dtype"] == "f32"
    assert (parity["greedy_agree"], parity["greedy_tokens"]) == (1.0, 2 * 32)
    apart = parity["separate_adapters"]
    assert apart["max_abs_logprob_diff"] <= F32
    assert apart["greedy_agree"] == 1.0


def test_f32_merged_and_the_legacy_variant(session: Session) -> None:
    for legacy in (False, True):
        parity = export(session, target="ollama", quant="f32", legacy_adapter=legacy).manifest["parity"]
        assert_exact(parity, F32)
        assert parity["greedy_agree"] == 1.0


@pytest.mark.parametrize("left_out", ["system", "template"])
def test_a_modelfile_that_asks_otherwise_is_refused(
    session: Session, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    def without(*arguments: Any, **named: Any) -> str:
        changed = {"system": None, "template": f"{named['template']} "}
        return modelfile(*arguments, **named | {left_out: changed[left_out]})

    monkeypatch.setattr(targets_gguf, "modelfile", without)
    with pytest.raises(ExportRefused, match=left_out.upper()):
        export(session, target="ollama", quant="f16", verify=True)


@pytest.mark.parametrize("target", ["ollama", "llama-server"])
def test_f16(session: Session, target: str) -> None:
    parity = export(session, target=target, quant="f16").manifest["parity"]
    assert_exact(parity, F16)
    assert parity["dtype"] == "f16"


@pytest.mark.parametrize("quant", [name for name in QUANTS if name not in ("f32", "f16")])
def test_every_quantisation_loads_and_stays_near(wide: Session, quant: str) -> None:
    manifest = export(wide, target="ollama", quant=quant.upper()).manifest
    assert manifest["quant"] == quant
    assert 0 < manifest["parity"]["mean_kl"] < 1.0
    assert [a["path"] for a in manifest["artifacts"]] == ["Modelfile", f"model.{quant}.gguf"]


@pytest.mark.parametrize("mix", ["tone:1.5,facts:-0.5,style:0.1", "facts:1"])
def test_other_mixes(session: Session, mix: str) -> None:
    parity = export(session, target="llama-server", quant="f32", mix=mix, signed=True).manifest["parity"]
    assert_exact(parity, F32)
    assert parity["separate_adapters"]["max_abs_logprob_diff"] <= F32


@pytest.mark.parametrize("name", BASES)
def test_every_checked_kind_of_base(tmp_path: Path, name: str) -> None:
    architecture, changes = BASES[name]
    session = open_tiny(tmp_path, architecture, seed=3, **changes)
    parity = export(session, target="ollama", quant="f32").manifest["parity"]
    bound = GELU if architecture.startswith("gemma") else F32
    assert_exact(parity, bound)
    assert parity["greedy_agree"] == 1.0
    if name in APART:
        assert_exact(export(session, target="llama-server", quant="f32").manifest["parity"], bound)


@pytest.mark.parametrize("target", ["ollama", "llama-server"])
def test_a_forgotten_permutation_is_seen(session: Session, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setattr(gguf_model, "permute_rows", lambda rows, heads: rows)
    with pytest.raises(ExportRefused, match=WRONG):
        export(session, target=target, quant="f32")


def test_a_permutation_forgotten_only_in_the_adapter_is_seen(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_adapter, "permute_rows", lambda rows, heads: rows)
    with pytest.raises(ExportRefused, match=WRONG):
        export(session, target="llama-server", quant="f32")


def test_a_forgotten_alpha_is_seen(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def unscaled(adapter: Any, weight: float = 1.0) -> dict[str, LoraPair]:
        return {module: LoraPair(low.lora_A, low.lora_B * weight) for module, low in adapter.modules.items()}

    monkeypatch.setattr(concatenate, "folded", unscaled)
    for target, quant in (("ollama", "f16"), ("llama-server", "f32")):
        with pytest.raises(ExportRefused, match=WRONG):
            export(session, target=target, quant=quant)


def test_forgotten_rope_factors_are_seen(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Architecture, "rope_factors", lambda self: {})
    with pytest.raises(ExportRefused, match=r"rope_freqs\.weight is missing"):
        export(session, target="ollama", quant="f32")
    monkeypatch.setattr(targets_gguf, "check_metadata", lambda *given: None)
    with pytest.raises(ExportRefused, match=WRONG):
        export(session, target="ollama", quant="f32")


def test_an_adapter_whose_own_scale_is_used_twice_is_seen(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that says alpha = 1 would be scaled by 1/rank once more."""
    writer = gguf_adapter.new_writer

    def with_alpha(*arguments: Any) -> Any:
        made = writer(*arguments)
        plain = made.add_float32
        made.add_float32 = lambda key, value: plain(key, 1.0 if key == "adapter.lora.alpha" else value)
        return made

    monkeypatch.setattr(gguf_adapter, "new_writer", with_alpha)
    with pytest.raises(ExportRefused, match=WRONG):
        export(session, target="llama-server", quant="f32")


def test_rope_factors_are_those_of_transformers() -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=64, num_attention_heads=2, max_position_embeddings=2048, rope_parameters=LLAMA3_ROPE
    )
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    factors = read_architecture(config.to_dict()).rope_factors()["rope_freqs.weight"]
    plain = 1.0 / (10000.0 ** (torch.arange(0, 32, 2, dtype=torch.float64) / 32))
    torch.testing.assert_close(plain / factors.double(), scaled.double(), rtol=1e-6, atol=0)
    assert factors.min() == 1.0
    assert factors.max() == 8.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "cohere"}, "cohere"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rotates only a part"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0, 1]}, "every fourth"),
        ({**GEMMA, "query_pre_attn_scalar": 7}, "queries are scaled"),
        ({**GEMMA, "layer_types": ["sliding_attention", "sliding_attention"]}, "do not alternate"),
        ({**GEMMA, "final_logit_softcapping": None}, "without soft caps"),
        ({**GEMMA, "tie_word_embeddings": False}, "output layer of its own"),
        ({**GEMMA, "hidden_activation": "gelu"}, "activation 'gelu'"),
        ({"model_type": "qwen3_moe", "norm_topk_prob": False}, "not normed"),
        *(
            ({**changes, "attention_bias": True}, "with attention_bias, which llama.cpp does not load")
            for changes in ({"model_type": "qwen3"}, {"model_type": "smollm3"}, {"model_type": "olmo2"}, GEMMA)
        ),
        ({"model_type": "smollm3", "mlp_bias": True}, "with mlp_bias, which llama.cpp does not load"),
        ({"model_type": "olmo2", "tie_word_embeddings": True}, "an olmo2 base with a tied output"),
        *(
            ({**changes, "rope_parameters": LLAMA3_ROPE}, "rope scaling of the type 'llama3'")
            for changes in (
                {"model_type": "qwen2"},
                {"model_type": "qwen3"},
                {"model_type": "smollm3"},
                {"model_type": "olmo2"},
                {"model_type": "qwen3_moe", "norm_topk_prob": True},
                GEMMA,
            )
        ),
        *(
            ({"model_type": kind, "head_dim": 64, "tie_word_embeddings": False}, "not as wide as the hidden size")
            for kind in ("qwen2", "olmo2", "phi3")
        ),
    ],
)
def test_what_was_not_checked_is_refused_with_what_works(change: dict[str, Any], words: str) -> None:
    config = {**AutoConfig.for_model("llama").to_dict(), **change}
    with pytest.raises(ExportRefused, match=words) as caught:
        read_architecture(config)
    assert "peft, vllm and merged" in str(caught.value)
    assert architectures.FAMILIES["llama"].gguf == "llama"


def test_only_biases_that_llama_cpp_loads_have_a_name() -> None:
    config = AutoConfig.for_model("llama").to_dict()
    for kind, layer, loads in (("llama", "o_proj", True), ("qwen2", "q_proj", True), ("qwen2", "o_proj", False)):
        name = read_architecture({**config, "model_type": kind}).gguf_name(f"model.layers.0.self_attn.{layer}.bias")
        assert (name is not None) == loads


def test_adapters_that_the_runtime_would_ignore_or_confuse_are_refused() -> None:
    config = {**AutoConfig.for_model("llama", hidden_size=32, num_attention_heads=4).to_dict()}
    pair = LoraPair(torch.ones(1, 32), torch.ones(32, 1))
    for module in ("model.norm", "model.layers.0.input_layernorm", "model.embed_tokens", "visual.proj"):
        with pytest.raises(ExportRefused, match=r"ignored by llama\.cpp"):
            gguf_adapter.plan_adapter({module: pair}, read_architecture(config))
    with pytest.raises(ExportRefused, match="tied embedding"):
        gguf_adapter.plan_adapter({"lm_head": pair}, read_architecture({**config, "tie_word_embeddings": True}))
    names = [t.name for t in gguf_adapter.plan_adapter({"lm_head": pair}, read_architecture(config))]
    assert names == ["output.weight.lora_a", "output.weight.lora_b"]


def test_other_architectures_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    session = open_tiny(tmp_path, "gpt2")
    for target in ("ollama", "llama-server"):
        with pytest.raises(ExportRefused, match="'gpt2' cannot be written as GGUF"):
            export(session, target=target)
    assert not session.store.exports_dir.exists()


def job(model: Path) -> ParityJob:
    return ParityJob(runtime="llama.cpp", model=model, prompts=[[1, 2, 3]], dtype="f32", vocab=387)


def finish(work: Any) -> None:
    for _ in work:
        pass


def test_files_that_the_runtime_refuses(tmp_path: Path, session: Session) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 200)
    for path, reason in ((broken, "bad GGUF version: 0"), (tmp_path / "absent.gguf", r"failed to open .*absent\.gguf")):
        with pytest.raises(ExportRefused, match=rf"does not load the export: .*{reason}.*; the targets peft, vllm and"):
            finish(runtime_answers(job(path)))


def test_what_llama_cpp_does_not_load_is_said_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taking = replace(architectures.FAMILIES["qwen3"], rope_types=("llama3",))
    monkeypatch.setitem(architectures.FAMILIES, "qwen3", taking)
    session = open_tiny(tmp_path, "qwen3", rope_parameters=LLAMA3_ROPE)
    with pytest.raises(ExportRefused, match=r"does not load the export: .*wrong number of tensors; expected"):
        export(session, target="ollama", quant="f32")


def test_a_runtime_that_hangs_is_left(tmp_path: Path) -> None:
    import os

    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)  # reading it waits for a writer that never comes
    with pytest.raises(ExportRefused, match="said nothing for 2 s"):
        finish(runtime_answers(job(pipe), patience=2.0))


def test_the_document_names_the_quantisation_of_a_gguf(wide: Session) -> None:
    result = export(wide, target="ollama", verify=False)
    assert result.manifest["quant"] == "q4_k_m"
    assert result.folder == wide.store.exports_dir / "q4_k_m"


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def test_an_importance_matrix_of_the_document_lies_beside_the_file(wide: Session, tmp_path: Path) -> None:
    plain = export(wide, target="llama-server", quant="q4_k_s", out=str(tmp_path / "plain"), verify=False)
    weighed = export(wide, target="llama-server", quant="q4_k_s", out=str(tmp_path / "weighed"), imatrix="auto")
    again = export(
        wide, target="llama-server", quant="q4_k_s", out=str(tmp_path / "again"), verify=False,
        imatrix=str(weighed.folder / "imatrix.gguf"),
    )  # fmt: skip
    name = "base.q4_k_s.gguf"
    assert (weighed.folder / name).read_bytes() != (plain.folder / name).read_bytes()
    assert (weighed.folder / name).read_bytes() == (again.folder / name).read_bytes()
    assert types(weighed.folder / name) == types(plain.folder / name)
    assert weighed.manifest["imatrix"]["source"] == "the document's own prompts and answers"
    assert weighed.manifest["imatrix"]["tensors"] == 28
    listed = {artifact["path"] for artifact in weighed.manifest["artifacts"]}
    assert "imatrix.gguf" in listed
    assert weighed.manifest["parity"]["mean_kl"] < 1.0


def test_an_importance_matrix_that_does_not_fit_is_refused_before_anything_is_written(
    wide: Session, session: Session, tmp_path: Path
) -> None:
    other = export(session, target="ollama", quant="q4_0", out=str(tmp_path / "other"), imatrix="auto", verify=False)
    out = tmp_path / "never"
    with pytest.raises(ExportRefused, match="another base"):
        export(wide, target="ollama", quant="q4_0", out=str(out), imatrix=str(other.folder / "imatrix.gguf"))
    with pytest.raises(UsageError, match="changes nothing"):
        export(wide, target="ollama", quant="q8_0", imatrix="auto")
    with pytest.raises(UsageError, match="belongs to"):
        export(wide, target="merged", imatrix="auto")
    assert not out.exists()
