"""Adapters on the token embedding: exact in every tier and mix, and a tied output layer keeps the base's weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlm_tui.model.adapters import load_peft_adapter, save_peft_adapter
from dlm_tui.model.backend_selection import fastest
from dlm_tui.model.base import Base
from dlm_tui.model.fused.forward import FusedBackbone
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.mixer import Mixer
from dlm_tui.model.onednn import OneDnnBackbone
from dlm_tui.scoring.nulls import matched_nulls, squared_norm
from tests.tiny_models import random_adapter, tiny_base, token_adapter

IDS = torch.randint(3, 300, (4, 14), generator=torch.Generator().manual_seed(3))
MIXES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-0.5, 0.7], [0.3, 1.4]])
# tied or not, scaled in the module (Gemma) or behind it (Granite), learned positions (GPT-2)
SHAPES = {"llama": True, "qwen2": False, "gemma3_text": True, "granite": True, "gpt2": True}


@pytest.fixture(scope="module", params=SHAPES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base") / "m"
    return tiny_base(folder, request.param, tie_word_embeddings=SHAPES[request.param])


@pytest.fixture(scope="module")
def model(base: Base) -> MixedModel:
    # `y` leaves the embedding alone, so that one column of the mix has no part in it
    return MixedModel(base, {"x": token_adapter(base, "x", rank=3), "y": random_adapter(base, "y", seed=5)})


def merged_logits(model: MixedModel, row: Tensor, ids: Tensor) -> Tensor:
    """The additions merged into the weights of a float64 copy whose output layer keeps the base's."""
    module = copy.deepcopy(model.base.model).double()
    head = module.get_output_embeddings()  # type: ignore[operator]
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        for name, weight in zip(model.names, row.tolist(), strict=True):
            for target, pair in model.adapters[name].modules.items():
                delta = pair.lora_B.double() @ pair.lora_A.double() * pair.scale * weight
                own = module.get_submodule(target).weight
                own += delta.T if own.shape != delta.shape else delta
        return module(ids).logits  # type: ignore[no-any-return]


def tiers(model: MixedModel) -> list[object]:
    found: list[object] = [model.reference, model.backbone, OneDnnBackbone(model.base, model.mixer)]
    if isinstance(model.backbone, FusedBackbone):
        found.append(FusedBackbone(model.base, model.backbone.weights, model.mixer))
    return found


def test_every_tier_mixes_it_exactly_per_row(model: MixedModel) -> None:
    wanted = torch.cat([merged_logits(model, row, ids[None]) for row, ids in zip(MIXES, IDS, strict=True)])
    limit = 2e-5 * float(wanted.abs().max())
    for backbone in tiers(model):
        found = backbone.logits(backbone.forward(IDS, None, MIXES))  # type: ignore[attr-defined]
        assert (found.double() - wanted).abs().max() <= limit, backbone.tier  # type: ignore[attr-defined]
        # piece by piece: the last tokens one at a time, as answers are decoded
        cache = backbone.new_cache(4, 14)  # type: ignore[attr-defined]
        pieces = [backbone.forward(part, cache, MIXES) for part in IDS.split([11, 1, 2], dim=1)]  # type: ignore[attr-defined]
        found = backbone.logits(torch.cat(pieces, dim=1))  # type: ignore[attr-defined]
        assert (found.double() - wanted).abs().max() <= limit, backbone.tier  # type: ignore[attr-defined]


def test_a_row_of_zeros_is_bitwise_the_base(model: MixedModel) -> None:
    for backbone in tiers(model):
        off, on = backbone.forward(IDS), backbone.forward(IDS, None, MIXES)  # type: ignore[attr-defined]
        assert torch.equal(on[0], off[0]) and not torch.equal(on[1], off[1])
        assert torch.equal(backbone.forward(IDS, None, torch.zeros(4, 2)), off)  # type: ignore[attr-defined]


def test_it_is_stored_as_peft_stores_it(model: MixedModel, base: Base, tmp_path: Path) -> None:
    save_peft_adapter(model.adapters["x"], tmp_path / "a", base.identity.id)
    back = load_peft_adapter(tmp_path / "a", "x", base)
    for module, pair in model.adapters["x"].modules.items():
        found = back.modules[module]
        assert torch.equal(found.lora_A, pair.lora_A) and torch.equal(found.lora_B, pair.lora_B)
        assert (found.scale, found.tokens) == (pair.scale, pair.tokens)


def test_nulls_are_as_large_on_the_embedding(model: MixedModel) -> None:
    trained = model.adapters["x"]
    (module,) = [name for name, pair in trained.modules.items() if pair.tokens]
    nulls = [null.modules[module] for null in matched_nulls(model, range(12))]
    assert all(null.tokens for null in nulls)
    mean = sum(map(squared_norm, nulls)) / len(nulls)
    assert mean == pytest.approx(squared_norm(trained.modules[module]) / 2, rel=0.2), "half the adapters have it"


def test_the_gate_s_embedding_is_the_plain_base_s(model: MixedModel, base: Base) -> None:
    plain = fastest(base, Mixer((), base.device, base.dtype))
    assert torch.equal(model.backbone.forward(IDS[:1]), plain.forward(IDS[:1]))
