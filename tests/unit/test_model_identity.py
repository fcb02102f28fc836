"""A base is its tensors: the same ones in other files are the same base, in another type a near relative."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm_tui.document import SideFile, load, write_side_file
from dlm_tui.document.side_file import side_file_path
from dlm_tui.model import identity as identities
from dlm_tui.model import remembered as notes
from dlm_tui.model import tensor_facts as tensor_files
from dlm_tui.model.identity import BaseIdentity, files_hash
from dlm_tui.model.remembered import cache_folder, remembered
from dlm_tui.model.tensor_facts import Hashing, TensorFacts, tensor_facts
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from dlm_tui.store import Store, gate_status, read_gate_record
from dlm_tui.store.trained_on import OtherBase, base_record, other_base
from tests.export_sessions import open_tiny
from tests.tiny_models import tiny_base, write_tiny_base


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> BaseIdentity:
    """The identity of a tiny base after its weights went through `change`."""
    tiny_base(folder)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return tiny_identity(folder)


def tiny_identity(folder: Path) -> BaseIdentity:
    files = sorted(folder.glob("*.safetensors"))
    return identities.identify("x", None, folder, files)


def reshard(folder: Path) -> None:
    """Two files under other names instead of one."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    table = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(sorted(weights))}
    for part in set(table.values()):
        held = {name: weights[name].clone() for name, where in table.items() if where == part}
        save_file(held, folder / part, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_the_same_tensors_in_other_files_are_the_same_base(tmp_path: Path) -> None:
    session = open_tiny(tmp_path)
    assert session.gate is not None
    before = session.base.identity
    adopt_record(session)
    reshard(tmp_path / "base")
    again = run_to_end(Session.open(session.path, tmp_path / "home", tmp_path / "base"))
    assert again.base.identity.weights_sha256 == before.weights_sha256
    assert (again.gate is not None, again.gate_status.mode) == (True, session.gate_status.mode)


def adopt_record(session: Session, **changes: object) -> None:
    """Write into the gate's record what a training on this base writes, with `changes`."""
    from dlm_tui.gate.training import gate_record
    from dlm_tui.store.gate_files import write_gate_record

    record = {**(read_gate_record(session.store) or {}), **gate_record(session.document, session.model, 1, 0)}
    write_gate_record(session.store, {**record, **changes})


def _tokenizer(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "tokenizer.json") -> None:
    state = json.loads((folder / name).read_text())
    change(state)
    (folder / name).write_text(json.dumps(state, indent=7, sort_keys=True))


def _special(folder: Path, **tokens: object) -> None:
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))


SAME_TOKENIZER: dict[str, Callable[[Path], object]] = {
    "other spacing and order": lambda folder: _tokenizer(folder, lambda state: None),
    "merges as texts": lambda folder: _tokenizer(
        folder, lambda state: state["model"].update(merges=[" ".join(pair) for pair in state["model"]["merges"]])
    ),
    "defaults written out": lambda folder: _tokenizer(
        folder, lambda state: state["model"].update(continuing_subword_prefix="", ignore_merges=False)
    ),
    "a cut that was left in it": lambda folder: _tokenizer(
        folder,
        lambda state: state.update(
            truncation={"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
        ),
    ),
    "a map of the same tokens": lambda folder: _special(
        folder, bos_token={"content": "<|im_start|>", "lstrip": False}, eos_token="<|im_end|>"
    ),
}
OTHER_TOKENIZER: dict[str, Callable[[Path], object]] = {
    "another order of merges": lambda folder: _tokenizer(folder, lambda state: state["model"]["merges"].reverse()),
    "an added token": lambda folder: _tokenizer(
        folder, lambda state: state["added_tokens"].append({**state["added_tokens"][0], "id": 383, "content": "<|x|>"})
    ),
    "another step in front": lambda folder: _tokenizer(
        folder, lambda state: state["pre_tokenizer"].update(add_prefix_space=True)
    ),
    "another end": lambda folder: _special(folder, eos_token="<|pad|>"),
}


@pytest.mark.parametrize("change", [*SAME_TOKENIZER, *OTHER_TOKENIZER])
def test_a_tokenizer_is_what_it_does(tmp_path: Path, change: str) -> None:
    one = tiny_base(tmp_path / "one").identity
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    {**SAME_TOKENIZER, **OTHER_TOKENIZER}[change](tmp_path / "other")
    other = tiny_base(tmp_path / "other").identity
    assert one.tokenizer_sha256 != other.tokenizer_sha256
    is_same = change in SAME_TOKENIZER
    for first, second in ((one, other), (other, one)):
        record = base_record(first)
        assert (other_base(record, second) is None) is is_same
        del record["tokenizer_form_sha256"]  # recorded before there was one
        assert other_base(record, first) is None and other_base(record, second) == OtherBase("tokenizer")


def test_only_other_files_cost_a_look_at_what_the_tokenizer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base(tmp_path / "one").identity
    record = base_record(base)
    monkeypatch.setattr(identities, "tokenizer_form_hash", lambda folder: pytest.fail("nothing differs"))
    assert other_base(record, tiny_base(tmp_path / "one").identity) is None


def test_a_tokenizer_in_another_form_is_known_by_its_files_alone(tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").rename(tmp_path / "m" / "tokenizer.model")
    one = tiny_identity(tmp_path / "m")
    assert (one.tokenizer_form_sha256, other_base(base_record(one), one)) == ("", None)
    (tmp_path / "m" / "tokenizer.model").write_bytes(b"other")
    assert other_base(base_record(one), tiny_identity(tmp_path / "m")) == OtherBase("tokenizer")


def test_a_gate_of_version_0_1_knows_its_base_by_its_files(tmp_path: Path) -> None:
    session = open_tiny(tmp_path)
    adopt_record(session, weights_sha256=files_hash([tmp_path / "base" / "model.safetensors"]))
    again = run_to_end(Session.open(session.path, tmp_path / "home", tmp_path / "base"))
    assert again.gate is not None
    adopt_record(session, weights_sha256="0" * 64, weights_sample=None)
    again = run_to_end(Session.open(session.path, tmp_path / "home", tmp_path / "base"))
    assert again.gate is None and "other weights" in str(again.gate_error)


Weights = dict[str, torch.Tensor]

SAME_BASE: dict[str, tuple[str, Callable[[Weights], Weights]]] = {
    "no prefix": ("llama", lambda w: {name.removeprefix("model."): v for name, v in w.items()}),
    "no prefix and experts": ("mixtral", lambda w: {name.removeprefix("model."): v for name, v in w.items()}),
    "a copy for the tied head": ("llama", lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"].clone()}),
    "the tied head alone": (
        "llama",
        lambda w: {name.replace("model.embed_tokens", "lm_head"): v for name, v in w.items()},
    ),
    "buffers of old": (
        "llama",
        lambda w: {**w, **{f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(3)}},
    ),
    "masks of old": (
        "gpt2",
        lambda w: {
            **{name.removeprefix("transformer."): v for name, v in w.items()},
            "h.0.attn.bias": torch.ones(1, 1, 8, 8),
            "h.0.attn.masked_bias": torch.tensor(-1e4),
        },
    ),
    "a tensor that nobody reads": ("llama", lambda w: {**w, "model.layers.0.spare.weight": torch.ones(3)}),
}


def swapped(weights: Weights, one: str, other: str) -> Weights:
    return {**weights, one: weights[other], other: weights[one]}


OTHER_BASE: dict[str, Callable[[Weights], Weights]] = {
    "layers change places": lambda w: swapped(
        w, "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    ),
    "projections change places": lambda w: swapped(
        w, "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"
    ),
    "a head of its own": lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"] + 0.5},
}


def loaded_identity(folder: Path, change: Callable[[Weights], Weights], architecture: str = "llama") -> BaseIdentity:
    """The identity of a tiny base as it is loaded from weights that went through `change`."""
    file = write_tiny_base(folder, architecture) / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return tiny_base(folder, architecture).identity


@pytest.mark.parametrize("form", SAME_BASE)
def test_the_same_weights_in_another_form_are_the_same_base(tmp_path: Path, form: str) -> None:
    architecture, change = SAME_BASE[form]
    one = loaded_identity(tmp_path / "a", dict, architecture)
    other = loaded_identity(tmp_path / "b", change, architecture)
    as_stored, _ = other.former_sha256
    assert set(one.former_sha256) == {one.weights_sha256} == {other.weights_sha256} != {as_stored}
    # what was recorded before is the same base, too, and another type of it a near relative
    before = {"weights_sha256": as_stored, "weights_sample": msgspec.to_builtins(other.stored_sample)}
    assert other_base(before, other) is None
    narrow = loaded_identity(
        tmp_path / "c", lambda w: {name: v.bfloat16() for name, v in change(w).items()}, architecture
    )
    assert other_base(base_record(one), narrow) == OtherBase("weights", ("F32", "BF16"))
    assert other_base(before, narrow) == OtherBase("weights", ("F32", "BF16"))
    quantised = identities.quantised_identity(other, "nf4")
    assert other_base(base_record(identities.quantised_identity(one, "nf4")), quantised) is None
    assert other_base(base_record(one), quantised) == OtherBase("weights", ("F32", "nf4"))


WIDER: dict[str, Callable[[str, torch.Tensor], torch.Tensor]] = {
    "float32": lambda name, v: v.float(),
    "float64": lambda name, v: v.double(),
    "float32 norms": lambda name, v: v.float() if "norm" in name else v,
}


@pytest.mark.parametrize("wider", WIDER)
def test_the_same_numbers_in_a_wider_type_are_the_same_base(tmp_path: Path, wider: str) -> None:
    one = loaded_identity(tmp_path / "a", lambda w: {name: v.bfloat16() for name, v in w.items()})
    other = loaded_identity(tmp_path / "b", lambda w: {name: WIDER[wider](name, v.bfloat16()) for name, v in w.items()})
    assert other_base(base_record(one), other) is None and other_base(base_record(other), one) is None
    assert one.key == other.key
    *_, as_stored = other.former_sha256  # recorded before
    assert as_stored not in (one.weights_sha256, *one.former_sha256)
    assert other_base({**base_record(other), "weights_sha256": as_stored}, other) is None

    def moved(w: Weights) -> Weights:
        wide = {name: WIDER[wider](name, v.bfloat16()) for name, v in w.items()}
        name = "model.norm.weight"
        return {**wide, name: wide[name] + 2.0**-20}

    third = loaded_identity(tmp_path / "c", moved)
    said = {"float32": "F32", "float64": "F64", "float32 norms": "BF16 and F32"}[wider]
    assert other_base(base_record(one), third) == OtherBase("weights", ("BF16", said))
    assert third.weights_sha256 not in (as_stored, one.weights_sha256)


@pytest.mark.parametrize("change", OTHER_BASE.values(), ids=OTHER_BASE)
def test_other_weights_under_the_same_names_are_another_base(
    tmp_path: Path, change: Callable[[Weights], Weights]
) -> None:
    one, other = loaded_identity(tmp_path / "a", dict), loaded_identity(tmp_path / "b", change)
    assert other_base(base_record(one), other) == OtherBase("weights")


def test_a_gate_is_used_with_another_form_of_its_base(tmp_path: Path) -> None:
    session = open_tiny(tmp_path)
    adopt_record(session)
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    again = run_to_end(Session.open(session.path, tmp_path / "home", tmp_path / "base"))
    assert again.gate is not None and again.gate_status.mode == session.gate_status.mode


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_type_of_the_same_weights_is_said_and_allowed_on_request(tmp_path: Path, dtype: torch.dtype) -> None:
    session = open_tiny(tmp_path)
    adopt_record(session)
    file = tmp_path / "base" / "model.safetensors"
    save_file({name: w.to(dtype) for name, w in load_file(file).items()}, file, metadata={"format": "pt"})

    def reopened() -> Session:
        return run_to_end(Session.open(session.path, tmp_path / "home", tmp_path / "base"))

    refused = reopened()
    assert refused.gate is None and refused.gate_status.mode == "foreign"
    name = {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    assert f"the same weights as F32, the base test/llama has them as {name}" in refused.gate_status.reason
    write_side_file(side_file_path(session.path), SideFile(allow_other_dtype=True))
    allowed = reopened()
    assert allowed.gate is not None and allowed.gate_status.in_force == "trained"
    document = load(session.path)
    status = gate_status(document, Store(tmp_path / "home", document.dlm_id), allowed.base.identity, 32)
    assert status.mode != "foreign"


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {name: (v * 1.01).to(torch.bfloat16) for name, v in w.items()},
        lambda w: {f"{name}x": v.to(torch.bfloat16) for name, v in w.items()},
        lambda w: {name: v + 1e-6 for name, v in w.items()},
        lambda w: {name: torch.full_like(v, torch.nan).to(torch.bfloat16) for name, v in w.items()},
    ],
    ids=["moved by a hundredth", "other names", "the same type", "not finite"],
)
def test_other_weights_are_no_relatives(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    tiny_base(tmp_path / "a")
    one, other = tiny_identity(tmp_path / "a"), rewritten(tmp_path / "b", change)
    assert one.weights_sha256 != other.weights_sha256
    assert one.sample is not None and other.sample is not None
    assert not one.sample.is_near(other.sample) and not other.sample.is_near(one.sample)
    assert one.other_dtype({"nonsense": 1}) is None


def test_values_are_read_as_the_file_has_them(tmp_path: Path) -> None:
    numbers = torch.randn(4, 16)
    for name, dtype in (("F32", torch.float32), ("BF16", torch.bfloat16), ("F16", torch.float16)):
        file = tmp_path / f"{name}.safetensors"
        save_file({"w": numbers.to(dtype), "i": torch.arange(3)}, file)
        facts = tensor_facts(file)
        assert facts["w"].values == numbers.to(dtype).double().flatten()[::8].tolist()
        assert (facts["w"].dtype, facts["w"].shape, facts["i"].values) == (name, [4, 16], [])


def reconfigured(folder: Path, **changes: object) -> BaseIdentity:
    """The identity of a tiny base whose config.json says `changes`, None for what it leaves out."""
    file = write_tiny_base(folder, "llama") / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return tiny_base(folder, "llama").identity


OTHER_CONFIG = {
    "rms_norm_eps": ({"rms_norm_eps": 0.5}, "rms_norm_eps"),
    "rope base": ({"rope_theta": 500.0, "rope_parameters": None}, "rope_parameters.rope_theta"),
    "rope scaling": (
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        "rope_parameters.factor, rope_parameters.rope_type",
    ),
}


@pytest.mark.parametrize("kind", OTHER_CONFIG)
def test_the_same_tensors_under_another_configuration_are_another_base(tmp_path: Path, kind: str) -> None:
    changes, names = OTHER_CONFIG[kind]
    one, other = reconfigured(tmp_path / "a"), reconfigured(tmp_path / "b", **changes)
    assert one.weights_sha256 == other.weights_sha256 and one.key != other.key
    assert other_base(base_record(one), other) == OtherBase(f"settings in config.json ({names})")
    assert other_base({**base_record(one), "base_settings": None}, other) is None, "recorded before there were any"
    quantised = identities.quantised_identity(other, "nf4")
    assert other_base(base_record(one), quantised) == OtherBase(f"settings in config.json ({names})")


def test_a_configuration_that_says_the_same_otherwise_is_the_same_base(tmp_path: Path) -> None:
    one = reconfigured(tmp_path / "a")
    other = reconfigured(
        tmp_path / "b",
        rope_parameters=None,
        rope_theta=10000,
        rms_norm_eps=struct.unpack("<f", struct.pack("<f", 1e-6))[0],  # as a GGUF file has it
        attention_bias=None,
        max_position_embeddings=128,
        use_cache=False,
        pad_token_id=3,
        attention_dropout=0.5,
        transformers_version="4.0",
        torch_dtype="float32",
        unsloth_version="2025.1",
    )
    assert json.loads((tmp_path / "a" / "config.json").read_text())["rms_norm_eps"] == 1e-6
    assert one.settings == other.settings and one.key == other.key
    # a release of the library that knows one setting more, or one less, changes nothing
    assert other_base({"base_settings": {**one.settings, "new.part": 7}}, other) is None
    assert other_base({"base_settings": {"rms_norm_eps": one.settings["rms_norm_eps"]}}, other) is None
    many = OtherBase("settings in config.json (head_dim, hidden_act, hidden_size and 3 more)")
    assert other_base({"base_settings": {**dict.fromkeys(sorted(one.settings)[1:7], "?")}}, other) == many


def test_a_gate_says_which_setting_of_its_base_changed(tmp_path: Path) -> None:
    session = open_tiny(tmp_path)
    adopt_record(session)
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.5}))
    again = run_to_end(Session.open(session.path, tmp_path / "home", tmp_path / "base"))
    assert again.gate is None
    assert "with other settings in config.json (rms_norm_eps) than the base" in again.gate_status.reason


def test_every_byte_of_a_large_tensor_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "WHOLE_TENSOR_LIMIT", 1000)
    file, weights = (
        tmp_path / "model.safetensors",
        {"w": torch.ones(20_000_000, dtype=torch.int8), "v": torch.full((9,), 0.1)},
    )
    save_file(weights, file)
    one = tiny_identity(tmp_path)
    weights["w"][:] = 1
    weights["w"][100_000:200_000] = 0  # between two of the 64 blocks that were hashed before
    save_file(weights, file)
    os.utime(file, ns=(0, 5))
    other = tiny_identity(tmp_path)
    assert one.former_sha256 == other.former_sha256 and one.weights_sha256 != other.weights_sha256
    # what was recorded so is known, and what is recorded now says more
    former = {**base_record(one), "weights_sha256": one.former_sha256[1]}
    assert other_base(former, one) is None
    assert other_base(base_record(one), one) is None
    assert other_base(base_record(one), other) == OtherBase("weights")
    assert base_record(one)["weights_sha256"] == one.weights_sha256 not in one.former_sha256


def test_who_waits_for_a_hash_hears_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(3_000_000), "v": torch.zeros(9)}, file)
    hashing = Hashing([file])
    facts = tensor_facts(file, hashing)
    assert hashing.text == "hashing the base"
    monkeypatch.setattr(tensor_files, "_PATIENCE", -1)
    assert hashing.text == "hashing the base, 12 MB of 12 MB"
    assert facts["w"].sha256 == hashlib.sha256(torch.ones(3_000_000).numpy().tobytes()).hexdigest()


def test_a_hash_is_computed_once_per_state_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "f"
    asked = []

    def compute(path: Path) -> dict[str, TensorFacts]:
        asked.append(path)
        return {"w": TensorFacts("F32", [1], path.read_text(), [0.5], "", None)}

    def ask() -> str:
        return remembered("test", file, compute, dict[str, TensorFacts])["w"].sha256

    file.write_text("one")
    assert (ask(), ask(), len(asked)) == ("one", "one", 1)
    file.write_text("two")
    os.utime(file, ns=(0, 5))
    assert (ask(), len(asked)) == ("two", 2)
    for note in (cache_folder() / "test").iterdir():
        note.write_text("{")
    assert (ask(), ask(), len(asked)) == ("two", "two", 3)


def test_notes_of_files_that_are_gone_go_when_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "_MANY", 3)
    asked = []

    def ask(name: str) -> str:
        return remembered("test", tmp_path / name, lambda path: asked.append(path.name) or path.name, str)

    for name in "abc":
        (tmp_path / name).touch()
        ask(name)
    (tmp_path / "a").unlink()
    (tmp_path / "d").touch()
    ask("d")
    assert len(list((cache_folder() / "test").iterdir())) == 3
    assert ([ask(name) for name in "bcd"], asked) == (["b", "c", "d"], ["a", "b", "c", "d"])


@pytest.fixture(scope="module")
def shared_cache() -> Path:
    return cache_folder()


def test_what_tests_share_is_not_set_up_in_the_persons_folders(
    shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert shared_cache.is_relative_to(tmp_path_factory.getbasetemp())
