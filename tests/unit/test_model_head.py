"""Logits against those of the library's whole forward, whatever its class puts behind the output layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from dlm_tui.model.base import Base
from dlm_tui.model.head import Head, Scaling
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.registry import BaseUnavailable
from tests.tiny_models import offloaded_base, tiny_base, write_tiny_base

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(3))
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"logits_scaling": 4.0, "final_logit_softcapping": 2.0, "logit_scale": 0.5},  # it reads none of them
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0},
    "gemma2": {"final_logit_softcapping": 2.0, "head_dim": 8},
    "hyperclovax": {"logits_scaling": 0.5},
    "recurrent_gemma": {"logits_soft_cap": 1.0, "lru_width": 32, "head_dim": 8},
    "falcon_h1": {"lm_head_multiplier": 0.3, "head_dim": 8, **MAMBA},
    "modernbert-decoder": {"layer_types": ["full_attention"] * 3},  # further layers in front of the output layer
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},  # runs its decoder by another name
}
ASKED = {"modernbert-decoder"}


def whole(base: Base) -> Tensor:
    with torch.no_grad():
        return cast("Tensor", base.model(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_librarys_own_forward(tmp_path: Path, family: str) -> None:
    base = tiny_base(tmp_path / "m", "llama", model_type=family, **FAMILIES[family])
    model = MixedModel(base, {})
    for backbone in (model.reference, model.backbone):
        logits = backbone.logits(backbone.forward(IDS))
        torch.testing.assert_close(logits, whole(base), atol=2e-5, rtol=2e-5)
    assert cast("Scaling", base.scaling).is_known is (family not in ASKED)


def test_what_only_the_library_computes_is_differentiable(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "m", "llama", model_type="modernbert-decoder", **FAMILIES["modernbert-decoder"])
    hidden = torch.randn(2, 3, base.hidden_size, requires_grad=True)
    logits = MixedModel(base, {}).reference.logits(hidden)
    logits.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.shape == (2, 3, base.vocab_size)
    assert hidden.grad is not None and bool(hidden.grad.any())


def test_a_base_on_the_disk_is_asked_without_reading_it(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "m", "llama", model_type="hyperclovax", logits_scaling=0.5)
    base = offloaded_base(folder, tmp_path / "away")
    assert base.is_offloaded
    head = Head(base, lambda hidden: hidden)
    torch.testing.assert_close(head(torch.ones(1, 4)), torch.full((1, 4), 0.5))
    backbone = MixedModel(base, {}).backbone
    torch.testing.assert_close(backbone.logits(backbone.forward(IDS)), whole(base), atol=2e-5, rtol=2e-5)


def test_a_forward_that_cannot_be_asked_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(tmp_path / "m")

    def other(self: nn.Module, **inputs: object) -> object:
        raise ValueError("pixels are missing")

    monkeypatch.setattr(type(base.model), "forward", other)
    with pytest.raises(BaseUnavailable, match=r"how it makes logits .* \(pixels are missing\); use another base"):
        Head(base)
