"""A base is its tensors: the same ones in other files are the same base, in another type a near relative."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm_tui.document import SideFile, load, write_side_file
from dlm_tui.document.side_file import side_file_path
from dlm_tui.model import identity as identities
from dlm_tui.model import remembered as notes
from dlm_tui.model.identity import BaseIdentity, TensorFacts, files_hash
from dlm_tui.model.remembered import cache_folder, remembered
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from dlm_tui.store import Store, gate_status, read_gate_record
from tests.export_sessions import open_tiny
from tests.tiny_models import tiny_base


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


def test_a_gate_of_version_0_1_knows_its_base_by_its_files(tmp_path: Path) -> None:
    session = open_tiny(tmp_path)
    adopt_record(session, weights_sha256=files_hash([tmp_path / "base" / "model.safetensors"]))
    again = run_to_end(Session.open(session.path, tmp_path / "home", tmp_path / "base"))
    assert again.gate is not None
    adopt_record(session, weights_sha256="0" * 64, weights_sample=None)
    again = run_to_end(Session.open(session.path, tmp_path / "home", tmp_path / "base"))
    assert again.gate is None and "other weights" in str(again.gate_error)


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
        facts = identities._tensor_facts(file)
        assert facts["w"].values == numbers.to(dtype).double().flatten()[::8].tolist()
        assert (facts["w"].dtype, facts["w"].shape, facts["i"].values) == (name, [4, 16], [])


def test_a_hash_is_computed_once_per_state_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "f"
    asked = []

    def compute(path: Path) -> dict[str, TensorFacts]:
        asked.append(path)
        return {"w": TensorFacts("F32", [1], path.read_text(), [0.5])}

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
