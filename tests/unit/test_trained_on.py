"""Adapters remember the base they were trained on, and say so where another one has taken its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, save_file

from dlm_tui.engine.handlers import Handlers
from dlm_tui.engine.protocol import Open, Opened
from dlm_tui.model import BaseIdentity, base_of, load_base, save_peft_adapter
from dlm_tui.model.identity import WeightSample
from dlm_tui.progress import WARNING, Progress, run_to_end
from dlm_tui.session import Session
from dlm_tui.store import Store
from dlm_tui.store.trained_on import FILE, OtherBase, base_record, other_base, trained_elsewhere, version_base
from dlm_tui.training import TrainRequest, train_document
from dlm_tui.training.import_adapter import import_adapter
from tests.interop.peer_fixture import peer_root
from tests.tiny_models import random_adapter
from tests.training_samples import sample


def identity(weights: str, tokenizer: str = "t", dtype: str = "F32") -> BaseIdentity:
    return BaseIdentity("org/base", None, weights, tokenizer, WeightSample("layout", [dtype], [0.5]))


def test_the_same_weights_in_another_type_are_the_same_base_but_for_what_must_know(tmp_path: Path) -> None:
    known = base_record(identity("a"))
    assert other_base(known, identity("a")) is None and other_base({}, identity("a")) is None
    assert other_base(known, identity("b", dtype="BF16")) == OtherBase("weights", ("F32", "BF16"))
    assert other_base(known, identity("b")) == OtherBase("weights")
    assert other_base(known, identity("a", "u")) == OtherBase("tokenizer")
    assert other_base(known, identity("b", "u", "BF16")) == OtherBase("tokenizer")
    for name, text in (("tone", msgspec.json.encode(known)), ("style", b"[1]"), ("facts", b"{"), ("none", b"")):
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE).write_bytes(text)
    folders = {name: tmp_path / name for name in ("tone", "style", "facts", "none", "absent")}
    assert trained_elsewhere(folders, identity("b", dtype="BF16")) == ""
    assert trained_elsewhere(folders, identity("b")).startswith("tone was trained on org/base with other weights than")
    assert version_base(folders["style"]) == {} == version_base(folders["absent"])


def quiet(_: Progress) -> None:
    """Nobody watches."""


def with_weights(folder: Path, place: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A copy of the base in `folder` with changed weights."""
    shutil.copytree(folder, place)
    weights = {name: change(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return place


def test_another_base_of_the_same_shape_is_said(tmp_path: Path) -> None:
    own, document = peer_root() / "base", sample(tmp_path)
    store, path = Store(tmp_path / "home", document.dlm_id), tmp_path / "sample.dlm"
    base = run_to_end(load_base(base_of(document, own)))
    train_document(TrainRequest(document=document, store=store, base=base), quiet)
    opening = Open(document=str(path), home=str(store.home), base=str(own))
    opened = run_to_end(Handlers(threads=1)(opening))
    assert isinstance(opened, Opened) and opened.warning == "" and opened.gate == "trained"
    narrow = with_weights(own, tmp_path / "narrow", lambda tensor: tensor.to(torch.bfloat16))
    opened = run_to_end(Handlers(threads=1)(msgspec.structs.replace(opening, base=str(narrow))))
    assert isinstance(opened, Opened) and opened.warning == ""

    other = with_weights(own, tmp_path / "other", lambda tensor: tensor + 0.01)
    opened = run_to_end(Handlers(threads=1)(msgspec.structs.replace(opening, base=str(other))))
    assert isinstance(opened, Opened) and opened.gate == "foreign"
    assert opened.warning.startswith("facts, manners were trained on") and "--base PATH" in opened.warning
    said: list[Progress] = []
    session = run_to_end(Session.open(path, store.home, other), said.append)
    assert [step.text for step in said if step.stage == WARNING] == [opened.warning]

    # what is trained on it, or imported for it, is its own
    train_document(TrainRequest(document=document, store=store, base=session.base, adapters=["facts"]), quiet)
    save_peft_adapter(random_adapter(session.base, "manners"), tmp_path / "given", "elsewhere/base")
    run_to_end(import_adapter(str(tmp_path / "given"), "manners", path, store.home, session.base, replace=True))
    said.clear()
    run_to_end(session.reload(), said.append)
    assert session.versions == {"facts": 2, "manners": 2}
    assert not [step for step in said if step.stage == WARNING]
