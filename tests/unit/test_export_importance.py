"""Collecting an importance matrix: the sums are those of the layers' inputs, under the mix that is exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dlm_tui.export.architectures import read_architecture
from dlm_tui.export.concatenate import concatenate
from dlm_tui.export.quantisation.importance import DOCUMENT, collect, document_sequences, text_sequences
from dlm_tui.export.requests import ExportRefused
from dlm_tui.model import MixedModel
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from tests.export_sessions import open_tiny

MIX = {"tone": 0.8, "facts": -0.4, "style": 0.3}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return open_tiny(tmp_path_factory.mktemp("importance"))


def names(session: Session) -> Callable[[str], str | None]:
    return read_architecture(session.base.config.to_dict()).gguf_name


def test_the_sums_are_the_squared_inputs(session: Session) -> None:
    sequences = document_sequences(session.document, session.base)
    matrix = run_to_end(collect(session.model, names(session), sequences, None, DOCUMENT))
    layer = session.base.model.model.layers[0]
    total, seen = torch.zeros(32, dtype=torch.float64), 0
    for ids in sequences:
        embedded = session.base.model.model.embed_tokens(torch.tensor(ids))
        inputs = layer.input_layernorm(embedded).double()
        total, seen = total + inputs.square().sum(dim=0), seen + len(ids)
    for name in ("attn_q", "attn_k", "attn_v"):
        found = torch.from_numpy(matrix.of(f"blk.0.{name}.weight", 1, 32)[0])
        assert torch.allclose(found.double(), total / seen, rtol=1e-5)
    # seven matrices in each of three layers; the output layer is left out, as llama.cpp does
    assert len(matrix.means) == 21
    assert matrix.datasets == (DOCUMENT,)
    assert matrix.chunks == -(-seen // 512)


def test_the_mix_counts_as_if_it_were_merged(session: Session, tmp_path: Path) -> None:
    sequences = document_sequences(session.document, session.base)
    mixed = run_to_end(collect(session.model, names(session), sequences, session.model.coefficients(MIX), DOCUMENT))
    plain = run_to_end(collect(session.model, names(session), sequences, None, DOCUMENT))
    merged = open_tiny(tmp_path)
    with torch.no_grad():
        for module, pair in concatenate(merged.model.adapters, list(MIX.items())).items():
            merged.base.target_module(module).weight += pair.lora_B @ pair.lora_A
    found = run_to_end(collect(MixedModel(merged.base, {}, fast=False), names(merged), sequences, None, DOCUMENT))
    moved = 0.0
    for name, values in found.means.items():
        assert torch.allclose(torch.from_numpy(values), torch.from_numpy(mixed.means[name]), rtol=1e-4, atol=1e-5)
        moved = max(moved, float(abs(values - plain.means[name]).max()))
    assert moved > 0.1


def test_no_hook_stays_behind_when_it_is_stopped(session: Session) -> None:
    work = collect(session.model, names(session), document_sequences(session.document, session.base), None, DOCUMENT)
    next(work)
    work.close()
    assert not any(module._forward_pre_hooks for module in session.base.model.modules())


def test_a_text_is_cut_into_pieces(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The harbour master counts the boats. " * 200, encoding="utf-8")
    pieces = text_sequences(path, session.base)
    assert len(pieces) > 1
    assert {len(piece) for piece in pieces[:-1]} == {512}
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ExportRefused, match="neither a text"):
        text_sequences(path, session.base)
    with pytest.raises(ExportRefused, match="cannot be read"):
        text_sequences(tmp_path / "none.txt", session.base)
    with pytest.raises(ExportRefused, match="too few"):
        run_to_end(collect(session.model, names(session), [[1, 2]], None, "x"))
