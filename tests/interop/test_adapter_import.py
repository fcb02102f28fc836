"""Adapters made by plain PEFT come in, answer as they do there, and a bad one changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dlm_tui.document import load
from dlm_tui.errors import DlmTuiError
from dlm_tui.model.adapters import load_peft_adapter
from dlm_tui.model.base import Base
from dlm_tui.model.mixed import MixedModel
from dlm_tui.progress import run_to_end
from dlm_tui.store import Store, current_version
from dlm_tui.store.adapter_history import version_history
from dlm_tui.training.import_adapter import Imported, import_adapter
from tests.tiny_models import tiny_base

DOCUMENT = """---
dlm_id: 01JEXPXRTTESTSEXPXRTTESTSE
dlm_version: 15
base_model: hf:test/{architecture}
training:
  adapters:
    tone: {{}}
---

::instruction#tone::
### Q
Say hello kindly.

### A
Hello, dear.
"""
ATTENTION = ["q_proj", "v_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION},
    "attention and MLP, patterns": {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": [*ATTENTION, "o_proj", "gate_proj", "up_proj", "down_proj"],
        "rank_pattern": {"q_proj": 5, r"layers\.1\.mlp\.down_proj": 2},
        "alpha_pattern": {"up_proj": 12},
    },
    "rslora": {"r": 4, "lora_alpha": 8, "target_modules": ["k_proj", "o_proj"], "use_rslora": True},
    "embeddings": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj", "embed_tokens"],
        "rank_pattern": {"embed_tokens": 3},
    },
}
# Gemma's embedding is scaled and tied, Qwen2's here is neither.
SHAPES = {"llama": True, "qwen2": False, "gemma3_text": True}


@pytest.fixture(scope="module", params=SHAPES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base") / request.param
    return tiny_base(folder, request.param, tie_word_embeddings=SHAPES[request.param])


def peft_folder(base: Base, folder: Path, **settings: Any) -> Path:
    """An adapter with random weights, saved by PEFT itself."""
    torch.manual_seed(3)
    plain = AutoModelForCausalLM.from_pretrained(base.source.path, dtype=torch.float32)
    model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    model.save_pretrained(str(folder))
    return folder


def plain_logits(base: Base, folder: Path, ids: list[int]) -> torch.Tensor:
    from peft import PeftModel

    plain = AutoModelForCausalLM.from_pretrained(base.source.path, dtype=torch.float32)
    with torch.no_grad():
        return PeftModel.from_pretrained(plain, str(folder)).eval()(torch.tensor([ids])).logits[0]


def document(folder: Path, base: Base) -> Path:
    path = folder / "doc.dlm"
    path.write_text(DOCUMENT.format(architecture=base.source.hf_id.removeprefix("test/")))
    return path


def take(source: Path | str, name: str, path: Path, base: Base, **more: Any) -> Imported:
    return run_to_end(import_adapter(str(source), name, path, path.parent / "home", base, **more))


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_peft(base: Base, kind: str, tmp_path: Path) -> None:
    source = peft_folder(base, tmp_path / "theirs", **KINDS[kind])
    path = document(tmp_path, base)
    done = take(source, "facts", path, base)
    store = Store(tmp_path / "home", load(path).dlm_id)
    version = current_version(store, "facts")
    assert version is not None and version.version == done.version == 1
    model = MixedModel(base, {"facts": load_peft_adapter(version.path, "facts", base)})
    ids = base.encode_raw("The harbour master counts the boats when the tide turns.")
    with torch.no_grad():
        mine = model.backbone.logits(model.backbone.forward(torch.tensor([ids]), None, torch.ones(1, 1)))[0]
    wanted = plain_logits(base, source, ids)
    assert (mine - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))
    assert load(path).adapter_names == ("tone", "facts")
    (facts,) = version_history(store, ["facts"])["facts"]
    assert facts.in_force and facts.origin == str(source) and facts.run_id is None


def test_another_prefix_before_the_names_is_matched_by_their_ends(base: Base, tmp_path: Path) -> None:
    source = peft_folder(base, tmp_path / "theirs", **KINDS["attention"])
    file = source / "adapter_model.safetensors"
    wrapped = {
        k.replace("base_model.model.model.", "base_model.model.wrapper.inner.model."): v
        for k, v in load_file(file).items()
    }
    save_file(wrapped, file, metadata={"format": "pt"})
    done = take(source, "facts", document(tmp_path, base), base)
    assert done.candidate.renamed == len(done.candidate.adapter.modules) and "another prefix" in done.notes[0]


def broken(change: Callable[[Path, dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        change(folder, config)
        (folder / "adapter_config.json").write_text(json.dumps(config))

    return apply


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, file, metadata={"format": "pt"})


def header_of_terabytes(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def pipe(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return apply


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "wrong shape": (
        lambda f: tensors(f, lambda t: {k: v[:, :-1] if "lora_A" in k else v for k, v in t.items()}),
        "in the base but",
    ),
    "NaN": (lambda f: tensors(f, lambda t: {k: v * float("nan") for k, v in t.items()}), "not finite"),
    "a rank of a billion": (broken(lambda f, c: c.update(r=10**9)), "declares rank 1000000000"),
    "a header of terabytes": (header_of_terabytes, "cannot be read"),
    "a pickle": (pickled, "pickled"),
    "no configuration": (lambda f: (f / "adapter_config.json").unlink(), "not a PEFT directory"),
    "DoRA": (broken(lambda f, c: c.update(use_dora=True)), "DoRA"),
    "whole modules": (broken(lambda f, c: c.update(modules_to_save=["lm_head"])), "modules_to_save"),
    "biases": (broken(lambda f, c: c.update(bias="all")), "bias"),
    "another task": (broken(lambda f, c: c.update(task_type="SEQ_CLS")), "task"),
    "weights that are a pipe": (pipe("adapter_model.safetensors"), "it is a pipe"),
    "a configuration that is a pipe": (pipe("adapter_config.json"), "it is a pipe"),
    "a vocabulary that is a pipe": (lambda f: os.mkfifo(f / "tokenizer.json"), "it is a pipe"),
    "a search without end": (broken(lambda f, c: c.update(target_modules="(.*.*.*.*.*)*=x")), "its own patterns"),
    "an exclusion": (broken(lambda f, c: c.update(exclude_modules=r".*\.q_proj")), "its own patterns leave out"),
    "a search that takes long": (
        broken(lambda f, c: c.update(target_modules=r"(.|[a-z.])*(\w|\w+)*[^p]j!|(a|a)*")),
        "patt",
    ),
    "another kind of target": (broken(lambda f, c: c.update(target_modules=5)), r"\$.target_modules"),
    "Arrow": (broken(lambda f, c: c.update(arrow_config={"top_k": 2})), "Arrow"),
    "weights beyond float32": (lambda f: tensors(f, lambda t: {k: v * 1e30 for k, v in t.items()}), "not finite on"),
    "another layer": (
        lambda f: tensors(f, lambda t: {k.replace("layers.0.", "layers.90."): v for k, v in t.items()}),
        "no module",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_adapter_is_one_sentence_and_changes_nothing(damage: str, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", "llama")
    source = peft_folder(base, tmp_path / "theirs", **KINDS["attention"])
    apply, says = DAMAGE[damage]
    apply(source)
    path = document(tmp_path, base)
    before = path.read_bytes()
    with pytest.raises(DlmTuiError, match=says) as error:
        take(source, "facts", path, base)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before and not (tmp_path / "home").exists()


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_names_nothing_and_would_search_without_end_does_nothing(field: str, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", "llama")
    source = peft_folder(base, tmp_path / "theirs", **KINDS["attention"])
    broken(lambda _, c: c.update({field: {"(.*.*.*.*.*.*)*=": 8}}))(source)
    done = take(source, "facts", document(tmp_path, base), base)
    assert {pair.rank for pair in done.candidate.adapter.modules.values()} == {4}


def test_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", "llama")
    source = peft_folder(base, tmp_path / "theirs", **KINDS["attention"])
    base.tokenizer.add_tokens(["<more>"])
    base.tokenizer.save_pretrained(source)
    with pytest.raises(DlmTuiError, match="resized embeddings"):
        take(source, "facts", document(tmp_path, base), base)


def test_a_taken_name_is_refused_and_replaced_on_request(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", "llama")
    source = peft_folder(base, tmp_path / "theirs", **KINDS["attention"])
    path = document(tmp_path, base)
    take(source, "tone", path, base)
    with pytest.raises(DlmTuiError, match="--replace"):
        take(source, "tone", path, base)
    assert take(source, "tone", path, base, replace=True).version == 2


@pytest.mark.parametrize("kind", ["lora", "pissa"])
def test_a_modulated_checkpoint_comes_in_and_goes_out(kind: str, tmp_path: Path) -> None:
    from dlm_tui.export.one_adapter import export_adapter

    base = tiny_base(tmp_path / "base", "llama")
    path = document(tmp_path, base)
    take(peft_folder(base, tmp_path / "theirs", **KINDS["attention"]), "tone", path, base)
    store = Store(tmp_path / "home", load(path).dlm_id)
    if kind == "pissa":
        version = current_version(store, "tone")
        assert version is not None
        config = json.loads((version.path / "adapter_config.json").read_text())
        (version.path / "adapter_config.json").write_text(json.dumps({**config, "dlm_parameterization": "pissa"}))
    out = export_adapter(store, "tone", None, base, "modulated", tmp_path / "tone.safetensors")
    done = take(out, "facts", path, base)
    assert done.candidate.form == "modulated" and done.candidate.difference < 1e-4
    assert done.candidate.adapter.parameterization == kind


def test_each_form_of_one_adapter_is_written_and_nothing_is_overwritten(tmp_path: Path) -> None:
    import gguf

    from dlm_tui.export.one_adapter import export_adapter

    base = tiny_base(tmp_path / "base", "llama")
    path = document(tmp_path, base)
    source = peft_folder(base, tmp_path / "theirs", **KINDS["attention"])
    take(source, "tone", path, base)
    store = Store(tmp_path / "home", load(path).dlm_id)
    folder = export_adapter(store, "tone", 1, base, "peft", tmp_path / "new" / "out")
    ids = base.encode_raw("the bell rings twice")
    torch.testing.assert_close(plain_logits(base, folder, ids), plain_logits(base, source, ids))
    file = export_adapter(store, "tone", None, base, "gguf", tmp_path / "tone.gguf")
    assert {t.name for t in gguf.GGUFReader(file).tensors} >= {"blk.0.attn_q.weight.lora_a"}
    with pytest.raises(DlmTuiError, match="exists already"):
        export_adapter(store, "tone", None, base, "peft", folder)
    assert sorted(p.name for p in tmp_path.rglob("*") if ".tmp." in p.name) == []
