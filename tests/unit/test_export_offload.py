"""Exports from a base that lies on the disk are those of the base in memory, but for the trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm_tui.document import set_side_value, side_file_path
from dlm_tui.export import ExportResult
from dlm_tui.export.requests import ExportRefused
from dlm_tui.model import weights_plan
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from tests.export_sessions import export, open_tiny
from tests.fetched_weights import watched_fetches


def reopened(session: Session, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """The same document where its base has no room."""
    set_side_value(side_file_path(session.path), "offload", str(folder / "disk"))
    with monkeypatch.context() as patch:
        patch.setattr(weights_plan, "available_memory", lambda: 1000)
        found = run_to_end(Session.open(session.path, folder / "home", folder / "base"))
    assert found.base.is_offloaded
    return found


def both(one: Session, other: Session, folder: Path, **request: Any) -> tuple[ExportResult, ExportResult]:
    return export(one, out=str(folder / "whole"), **request), export(other, out=str(folder / "disk-less"), **request)


def files(result: ExportResult) -> dict[str, bytes]:
    """All of an export but its manifest, which tells of the trial."""
    paths = (path for path in sorted(result.folder.rglob("*")) if path.is_file())
    return {path.name: path.read_bytes() for path in paths if path.name != "export_manifest.json"}


@pytest.mark.parametrize("target", ["peft", "merged", "vllm"])
def test_the_files_are_the_same(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_tiny(tmp_path)
    whole.base.encode_raw("cut after " * 20, limit=7)  # which no exported tokenizer remembers
    wanted, found = both(whole, reopened(whole, tmp_path, monkeypatch), tmp_path, target=target, mix="uniform")
    assert files(found) == files(wanted) and len(files(wanted)) >= 3
    assert found.manifest["parity"] is None
    assert any("not verified: the base has no room in memory" in note for note in found.notes)


def test_a_trial_that_was_asked_for_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = reopened(open_tiny(tmp_path), tmp_path, monkeypatch)
    with pytest.raises(ExportRefused, match="cannot be verified: the base has no room in memory"):
        export(session, target="peft", mix="uniform", verify=True)
    assert not list(session.store.exports_dir.glob("*")), "nothing was written"


def test_the_best_frozen_mix_and_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_tiny(tmp_path, num_hidden_layers=6)
    session = reopened(whole, tmp_path, monkeypatch)
    with watched_fetches() as fetched:
        found = export(session, out=str(tmp_path / "found"), target="peft", mix="best", drift=True)
    wanted = export(whole, out=str(tmp_path / "wanted"), target="peft", mix="best", drift=True, verify=False)
    for key in ("kl", "kl_max", "changed_answers"):
        assert found.manifest["drift"][key] == pytest.approx(wanted.manifest["drift"][key], abs=1e-5)
    for name, tensor in load_file(wanted.folder / "adapter_model.safetensors").items():
        same = load_file(found.folder / "adapter_model.safetensors")[name]
        assert torch.allclose(same, tensor, atol=1e-4)
    assert 0 < fetched.peak < sum(weight.nbytes for weight in whole.base.model.parameters()) / 2
    assert not fetched.alive


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_with_other_names_is_read_from_the_disk_too(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = open_tiny(tmp_path, "gpt2", tie_word_embeddings=tied)
    path = tmp_path / "base" / "model.safetensors"
    renamed = {name.removeprefix("transformer."): tensor.clone() for name, tensor in load_file(path).items()}
    save_file(renamed, path, metadata={"format": "pt"})
    whole = run_to_end(Session.open(made.path, tmp_path / "home", tmp_path / "base"))
    wanted, found = both(whole, reopened(whole, tmp_path, monkeypatch), tmp_path, target="merged", mix="uniform")
    assert files(found) == files(wanted)
    tensors = load_file(found.folder / "model.safetensors")
    assert ("lm_head.weight" in tensors) != tied and "transformer.h.0.attn.c_attn.weight" in tensors
