"""A base without room in memory, read from the disk: the same numbers, slowly."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from dlm_tui.errors import DlmTuiError
from dlm_tui.gate.embedding import embed_here
from dlm_tui.model import Base, BaseUnavailable, MixedModel, load_base, resolve_base
from dlm_tui.model import base as bases
from dlm_tui.model.backend_selection import why_slower
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.store import Store
from dlm_tui.training import TrainRequest, train_document
from tests.tiny_models import random_adapter, tiny_base, write_tiny_base
from tests.training_samples import sample


def offloaded(folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> Base:
    monkeypatch.setattr(bases, "available_memory", lambda: room)
    source = msgspec.structs.replace(resolve_base("hf:test/llama", folder), offload=place)
    base = run_to_end(load_base(source, device="cpu"))
    monkeypatch.undo()
    return base


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_answers_and_embeddings_are_those_of_the_whole_base(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_base(tmp_path / "base", "llama", tie_word_embeddings=False)
    whole = tiny_base(folder)
    size = 4 * sum(parameter.numel() for parameter in whole.model.parameters())
    base = offloaded(folder, tmp_path / "disk", monkeypatch, int(size * share))
    on_disk = sum(4 * parameter.numel() for parameter in base.model.parameters() if parameter.is_meta)
    assert base.is_offloaded and on_disk >= size * (1 - share)
    assert base.identity == whole.identity and base.device.type == "cpu"

    adapter = random_adapter(whole, "one")
    slow, plain = MixedModel(base, {"one": adapter}), MixedModel(whole, {"one": adapter}, fast=False)
    assert slow.backbone.tier == "reference" and why_slower(base) == "its weights are read from the disk"
    ids = torch.randint(0, whole.vocab_size, (2, 12), generator=torch.Generator().manual_seed(3))
    mixes = torch.tensor([[0.8], [0.0]])
    found, wanted = (one.logits(one.forward(ids, None, mixes)) for one in (slow.backbone, plain.backbone))
    assert torch.equal(found, wanted)
    prompts = ["When does the tide turn?", "Say hello."]
    assert torch.equal(run_to_end(embed_here(slow, prompts)), run_to_end(embed_here(plain, prompts)))


def quiet(_: Progress) -> None:
    """Nobody watches."""


def test_what_does_not_go_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_base(tmp_path / "base", "llama")
    monkeypatch.setattr(bases, "available_memory", lambda: 1000)
    with pytest.raises(BaseUnavailable, match=r"takes .* are free; .*--offload FOLDER"):
        run_to_end(load_base(resolve_base("hf:test/llama", folder), device="cpu"))
    base = offloaded(folder, tmp_path / "disk", monkeypatch, 1000)
    document = sample(tmp_path)
    store = Store(tmp_path / "home", document.dlm_id)
    with pytest.raises(DlmTuiError, match=r"--offload none --quantize nf4"):
        train_document(TrainRequest(document=document, store=store, base=base), quiet)


def test_a_base_that_fits_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_base(tmp_path / "base", "llama")
    assert not offloaded(folder, tmp_path / "disk", monkeypatch, 1 << 40).is_offloaded
