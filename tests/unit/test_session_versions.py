"""A kept version is a view: alone, and mixed exactly with the one in force."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dlm_tui.errors import UsageError
from dlm_tui.model import save_peft_adapter
from dlm_tui.model.views import UNIFORM, custom, solo
from dlm_tui.progress import run_to_end
from dlm_tui.store import StoreError, commit_version, new_version
from tests.export_sessions import open_tiny
from tests.tiny_models import random_adapter

IDS = torch.randint(3, 300, (1, 12), generator=torch.Generator().manual_seed(2))


def test_a_version_composes_exactly_with_the_live_one(tmp_path: Path) -> None:
    session = open_tiny(tmp_path, "llama")
    before = session.model.adapters["tone"]
    newer = random_adapter(session.base, "tone", rank=5, seed=77)
    version = new_version(session.store, "tone")
    save_peft_adapter(newer, version.path, session.base.identity.id)
    commit_version(session.store, version)
    for _ in session.reload():
        pass
    assert session.versions["tone"] == 2
    mix = session.mix_of(custom({"tone@1": 0.5, "tone": -0.25}), None)
    model = session.model_for([mix])
    assert session.model_for([mix]) is model and session.model_for([{}]) is session.model
    with torch.no_grad():
        mixed = model.backbone.forward(IDS, None, model.coefficients(mix)[None])
        plain = dict(session.base.model.named_modules())
        kept = {}
        for adapter, scale in ((before, 0.5), (newer, -0.25)):
            for name, pair in adapter.modules.items():
                weight = plain[name].weight
                kept.setdefault(name, weight.detach().clone())
                weight += scale * pair.scale * (pair.lora_B @ pair.lora_A)
        merged = session.model.reference.forward(IDS, None, None)
        for name, weight in kept.items():
            plain[name].weight.copy_(weight)
    torch.testing.assert_close(mixed, merged, atol=2e-4, rtol=2e-4)
    assert set(session.mix_of(UNIFORM, None)) == {"tone", "facts", "style"}


def test_a_version_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    session = open_tiny(tmp_path, "llama")
    with pytest.raises(UsageError, match="has no version 9"):
        session.model_for([session.mix_of(solo("tone@9"), None)])
    with pytest.raises(UsageError, match="no trained adapter"):
        session.mix_of(custom({"nobody": 1.0}), None)


def test_a_store_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    session = open_tiny(tmp_path, "llama")
    before, root = dict(session.versions), session.store.root
    root.rename(root.with_name("away"))
    with pytest.raises(StoreError, match="is gone: bring it back"):
        run_to_end(session.reload())
    assert session.versions == before and set(session.model.names) == set(before) and not root.exists()
    root.mkdir()  # as a copy of it begins
    with pytest.raises(StoreError, match="is gone: bring it back"):
        run_to_end(session.reload())
    root.rmdir()
    root.with_name("away").rename(root)
    run_to_end(session.reload())
    assert session.versions == before
