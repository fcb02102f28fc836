"""Every architecture on its tier against one full pass of the library: caches, crops, unequal rows."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dlm_tui.gate.embedding import prompt_tokens
from dlm_tui.model import backend_selection, linear
from dlm_tui.model.architectures.families import FAMILIES
from dlm_tui.model.architectures.spec import DecoderSpec
from dlm_tui.model.backbone import Backbone, ReferenceBackbone
from dlm_tui.model.backend_selection import agrees
from dlm_tui.model.base import Base
from dlm_tui.model.fused.forward import FusedBackbone
from dlm_tui.model.fused.weights import FusedWeights
from dlm_tui.model.linear import onednn_works
from dlm_tui.model.mixed import MixedModel
from tests.tiny_models import ARCHITECTURES, SMALL, random_adapter, target_names, tiny_base

FUSED = set(ARCHITECTURES) - {"gpt2", "stablelm"}
IDS = torch.randint(3, 300, (2, 30), generator=torch.Generator().manual_seed(3))


def mixed_model(folder: Path, architecture: str, **changes: object) -> MixedModel:
    base = tiny_base(folder, architecture, **changes)
    adapters = {
        "x": random_adapter(base, "x"),
        "y": random_adapter(base, "y", rank=2, seed=1, targets=target_names(base)[1::2]),
    }
    return MixedModel(base, adapters)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_in_every_way(tmp_path: Path, architecture: str) -> None:
    model = mixed_model(tmp_path / "m", architecture)
    assert model.backbone.tier == ("fused" if architecture in FUSED else "onednn")
    if isinstance(model.backbone, FusedBackbone):
        assert model.backbone.weights.compiled
    with torch.no_grad():
        untouched = model.base.model(IDS).logits
    assert torch.equal(model.reference.logits(model.reference.forward(IDS)), untouched)
    mix = torch.stack([model.coefficients({"x": 0.4}), model.coefficients({"x": 1.0, "y": -0.5})])
    wanted = model.reference.forward(IDS, None, mix)
    for backbone in (model.reference, model.backbone):
        near(backbone.logits(backbone.forward(IDS)), untouched)
        near(backbone.forward(IDS, None, mix), wanted)
        check_pieces(backbone, mix, wanted)
        check_unequal_rows(backbone, mix, wanted)


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=5e-5, rtol=5e-5)


def check_pieces(backbone: Backbone, mix: Tensor, wanted: Tensor) -> None:
    cache = backbone.new_cache(2, 4)
    pieces = [backbone.forward(IDS[:, a:b], cache, mix) for a, b in ((0, 7), (7, 8), (8, 29), (29, 30))]
    near(torch.cat(pieces, dim=1), wanted)
    assert list(cache.lengths) == [30, 30]
    cache.crop(30)
    for length in (27, 17, 1, 0):
        cache.crop(length)
        assert list(cache.lengths) == [length, length]
        near(backbone.forward(IDS[:, length : length + 3], cache, mix), wanted[:, length : length + 3])
        cache.crop(length)
    single = backbone.new_cache(1, 40)
    backbone.forward(IDS[:1, :20], single, mix[:1])
    copies = single.repeat(2)
    near(backbone.forward(IDS[:1, 20:].repeat(2, 1), copies, mix[:1].repeat(2, 1))[1], wanted[0, 20:])
    assert list(single.lengths) == [20]
    for length in (20, 13, 0):
        adopted = backbone.new_cache(2, 4)
        backbone.forward(IDS[:, :25], adopted, mix)
        adopted.adopt(single, length)
        assert list(adopted.lengths) == [length, length]
        both = backbone.forward(IDS[:1, length:].repeat(2, 1), adopted, mix[:1].repeat(2, 1))
        near(both, wanted[:1, length:].repeat(2, 1, 1))
    assert list(single.lengths) == [20]


def check_unequal_rows(backbone: Backbone, mix: Tensor, wanted: Tensor) -> None:
    cache = backbone.new_cache(2, 64)
    first = backbone.forward(IDS[:, :18], cache, mix, lengths=[18, 9])
    near(first[0], wanted[0, :18])
    near(first[1, :9], wanted[1, :9])
    ids = torch.stack([IDS[0, 18:22], IDS[1, 9:13]])
    second = backbone.forward(ids, cache, mix, lengths=[2, 4])
    near(second[0, :2], wanted[0, 18:20])
    near(second[1], wanted[1, 9:13])
    assert list(cache.lengths) == [20, 13]
    third = backbone.forward(torch.stack([IDS[0, 20:21], IDS[1, 13:14]]), cache, mix)
    near(third[:, 0], torch.stack([wanted[0, 20], wanted[1, 13]]))
    fourth = backbone.forward(torch.stack([IDS[0, 21:25], IDS[1, 14:18]]), cache, mix, lengths=[0, 4])
    near(fourth[1], wanted[1, 14:18])
    assert list(cache.lengths) == [21, 18]
    second_row = cache.select([1])
    near(backbone.forward(IDS[1:, 18:20], second_row, mix[1:])[0], wanted[1, 18:20])
    cache.crop(19)
    assert list(cache.lengths) == [19, 18]
    cache.crop(6)
    near(backbone.forward(IDS[:, 6:10], cache, mix), wanted[:, 6:10])


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.05, 1.1, 1.3],
    "long_factor": [1.5, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 32,
}
TEXT = torch.randint(3, 300, (2, 70), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def switching(tmp_path_factory: pytest.TempPathFactory) -> MixedModel:
    """A tiny Phi 3 that reads up to 32 tokens with short factors and longer texts with long ones."""
    folder = tmp_path_factory.mktemp("longrope")
    sizes = {"max_position_embeddings": 128, "original_max_position_embeddings": 32}
    return mixed_model(folder, "phi3", rope_parameters=LONGROPE, **sizes)


def backbones(model: MixedModel) -> dict[str, FusedBackbone]:
    """With the compiled step and without it."""
    assert isinstance(model.backbone, FusedBackbone) and model.backbone.weights.compiled
    return {"compiled": model.backbone, "plain": FusedBackbone(model.base, model.backbone.weights, model.mixer)}


def whole(model: MixedModel, mix: Tensor, row: int, length: int) -> Tensor:
    """Hidden states of the first tokens of a text, which the library reads at once."""
    return model.reference.forward(TEXT[row : row + 1, :length], None, mix[row : row + 1])[0]


@pytest.mark.parametrize("step", ["compiled", "plain"])
def test_longrope_on_both_sides_of_its_boundary_and_across(switching: MixedModel, step: str) -> None:
    backbone = backbones(switching)[step]
    mix = torch.stack([switching.coefficients({"x": 0.4}), switching.coefficients({"x": 1.0, "y": -0.5})])
    assert float((whole(switching, mix, 0, 33)[:32] - whole(switching, mix, 0, 32)).abs().max()) > 1e-2
    for length in (5, 31, 32, 33, 70):
        for row in (0, 1):
            found = backbone.forward(TEXT[row : row + 1, :length], None, mix[row : row + 1])[0]
            near(found, whole(switching, mix, row, length))
    cache = backbone.new_cache(2, 8)
    lengths = [29, 19]  # the second row crosses ten tokens behind the first
    backbone.forward(TEXT[:, :29], cache, mix, lengths=lengths)
    for _ in range(16):
        ids = torch.stack([TEXT[row, held : held + 1] for row, held in enumerate(lengths)])
        found = backbone.forward(ids, cache, mix)
        lengths = [held + 1 for held in lengths]
        for row, length in enumerate(lengths):
            near(found[row, -1], whole(switching, mix, row, length)[-1])
    assert list(cache.lengths) == [45, 35] and cache.far == [True, True]
    both = cache.select([1]).joined([cache.select([0])])
    found = backbone.forward(torch.stack([TEXT[1, 35:36], TEXT[0, 45:46]]), both, mix[[1, 0]])
    near(found[:, -1], torch.stack([whole(switching, mix, 1, 36)[-1], whole(switching, mix, 0, 46)[-1]]))
    cache.crop(20)  # back on the near side
    near(backbone.forward(TEXT[:, 20:24], cache, mix)[1], whole(switching, mix, 1, 24)[20:])
    # one row stays, the other crosses with many tokens at once
    cache.crop(22)
    found = backbone.forward(TEXT[:, 22:50], cache, mix, lengths=[28, 5])
    near(found[0], whole(switching, mix, 0, 50)[22:])
    near(found[1, :5], whole(switching, mix, 1, 27)[22:])


def test_what_was_read_as_part_of_a_long_text_is_read_anew_in_a_short_one(switching: MixedModel) -> None:
    mix = switching.coefficients({"x": 0.4})[None].repeat(2, 1)
    for backbone in backbones(switching).values():
        long = backbone.new_cache(1, 8)
        backbone.forward(TEXT[:1, :40], long, mix[:1])
        for length, more in ((12, 3), (12, 40), (32, 1), (40, 2)):
            adopted = backbone.new_cache(2, 4)
            adopted.adopt(long, length)
            found = backbone.forward(TEXT[:1, length : length + more].repeat(2, 1), adopted, mix)
            wanted = whole(switching, mix, 0, length + more)[length:]
            near(found, wanted.repeat(2, 1, 1))
        assert list(long.lengths) == [40]


def test_the_librarys_own_forward_runs_a_text_again_where_longrope_changes(switching: MixedModel) -> None:
    backbone = switching.reference
    mix = switching.coefficients({"x": 0.4})[None].repeat(2, 1)
    cache = backbone.new_cache(2, 8)
    for first, last in ((0, 30), (30, 31), (31, 34), (34, 35), (35, 40)):
        found = backbone.forward(TEXT[:, first:last], cache, mix)
        for row in (0, 1):
            near(found[row], whole(switching, mix, row, last)[first:])
    cache.crop(20)
    near(backbone.forward(TEXT[:, 20:24], cache, mix)[1], whole(switching, mix, 1, 24)[20:])
    near(backbone.forward(TEXT[:, 24:26], cache, mix, lengths=[2, 1])[1, :1], whole(switching, mix, 1, 25)[24:])
    # padding does not make a text longer
    ids = torch.stack([TEXT[0, 26:36], TEXT[1, 25:35]])
    near(backbone.forward(ids, cache, mix, lengths=[1, 5])[1, :5], whole(switching, mix, 1, 30)[25:])
    far = cache.select([0])
    near(backbone.forward(TEXT[:1, 27:40], far, mix[:1])[0], whole(switching, mix, 0, 40)[27:])
    both = far.joined([far.select([0])])
    near(backbone.forward(TEXT[:1, 40:42].repeat(2, 1), both, mix)[1], whole(switching, mix, 0, 42)[40:])


def test_both_tables_of_longrope_are_proved_at_load(switching: MixedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    (backbone, _), reference = backbones(switching).values(), switching.reference
    stated = dict(switching.base.config.rope_parameters)
    assert agrees(backbone, reference)
    cos, sin = backbone.weights.rope(64, far=True)
    monkeypatch.setitem(backbone.weights._tables, True, (cos * 1.01, sin))
    assert not agrees(backbone, reference)
    monkeypatch.undo()
    assert agrees(backbone, reference)
    assert dict(switching.base.config.rope_parameters) == stated and backbone.weights.switch == 32


@pytest.fixture(scope="module", params=["llama", "mistral"])
def walked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MixedModel:
    return mixed_model(tmp_path_factory.mktemp("walk"), request.param)


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 25), st.integers(1, 6)), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_any_walk_of_crops_and_appends_equals_a_full_pass(
    walked: MixedModel, steps: list[tuple[int, int]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mix = walked.coefficients({"x": 0.7})[None]
    for backbone in (walked.backbone, walked.reference):
        cache = backbone.new_cache(1, 8)
        held: list[int] = []
        for keep, more in steps:
            cache.crop(keep)
            held = held[:keep]
            new = torch.randint(3, 300, (1, more), generator=generator)
            found = backbone.forward(new, cache, mix)
            held += new[0].tolist()
            wanted = walked.reference.forward(torch.tensor([held]), None, mix)[:, -more:]
            near(found, wanted)
            assert list(cache.lengths) == [len(held)]


def test_fusing_copies_nothing(tmp_path: Path) -> None:
    model = mixed_model(tmp_path / "m", "llama")
    parameters = {p.untyped_storage().data_ptr() for p in model.base.model.parameters()}
    weights = model.base.fused
    for layer in weights.layers:
        for group in layer.groups:
            assert group.weights[0].untyped_storage().data_ptr() in parameters
    assert weights.head.data_ptr() == weights.embedding.data_ptr()


def test_a_fused_forward_that_disagrees_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(tmp_path / "m")
    original = FusedBackbone._norm

    def slightly_off(self: FusedBackbone, x: Tensor, weight: Tensor) -> Tensor:
        return original(self, x, weight) * 1.0005

    monkeypatch.setattr(FusedBackbone, "_norm", slightly_off)
    assert MixedModel(base, {}).backbone.tier == "onednn"
    assert "other numbers" in backend_selection.why_slower(base)
    monkeypatch.setattr(backend_selection, "onednn_works", lambda dtype: False)
    assert MixedModel(base, {}).backbone.tier == "reference"


def test_a_window_that_is_not_described_is_seen_though_the_probe_is_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = tiny_base(tmp_path / "m", "mistral", sliding_window=40)
    assert MixedModel(described, {}).backbone.tier == "fused"
    assert described.config.sliding_window == 40
    assert {layer.spec.window for layer in described.fused.layers} == {40}
    monkeypatch.setitem(FAMILIES, "MistralForCausalLM", DecoderSpec())
    base = tiny_base(tmp_path / "m", "mistral")
    assert MixedModel(base, {}).backbone.tier == "onednn"
    assert "other numbers" in backend_selection.why_slower(base)


def test_rotary_tables_are_looked_at_behind_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FusedWeights.rope

    def broken(self: FusedWeights, length: int, far: bool = False) -> tuple[Tensor, Tensor]:
        cos, sin = original(self, length, far)
        return torch.cat([cos[:, :30], torch.zeros_like(cos[:, 30:])], dim=1), sin

    monkeypatch.setattr(FusedWeights, "rope", broken)
    assert MixedModel(tiny_base(tmp_path / "m"), {}).backbone.tier == "onednn"


@pytest.mark.parametrize(("family", "name"), [("cohere", "CohereForCausalLM"), ("starcoder2", "Starcoder2ForCausalLM")])
def test_a_description_that_does_not_fit_costs_speed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, name: str
) -> None:
    monkeypatch.setitem(ARCHITECTURES, family, SMALL)
    monkeypatch.setitem(FAMILIES, name, DecoderSpec())
    model = mixed_model(tmp_path / "m", family)
    assert model.backbone.tier != "fused"
    assert "does not fit" in backend_selection.why_slower(model.base)
    mix = model.coefficients({"x": 1.0})[None].repeat(2, 1)
    near(model.backbone.forward(IDS, None, mix), model.reference.forward(IDS, None, mix))


@pytest.mark.parametrize(
    "changes",
    [{"hidden_act": "gelu"}, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}],
    ids=["activation", "rope"],
)
def test_what_the_fused_forward_does_not_know_goes_to_the_general_tier(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    assert mixed_model(tmp_path / "m", "llama", **changes).backbone.tier == "onednn"


COUNTS_COLUMNS = {
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
}


@pytest.mark.parametrize("family", COUNTS_COLUMNS)
def test_rows_of_unequal_length_are_apart_where_a_forward_counts_columns(tmp_path: Path, family: str) -> None:
    base = tiny_base(tmp_path / "m", "gpt2", model_type=family, **COUNTS_COLUMNS[family])
    targets = [name for name, module in base.model.named_modules() if isinstance(module, nn.Linear)][:4]
    model = MixedModel(base, {"x": random_adapter(base, "x", targets=targets)})
    mix = torch.stack([model.coefficients({"x": 0.4}), model.coefficients({"x": 1.0})])
    for backbone in (model.reference, model.backbone):
        wanted = model.reference.forward(IDS, None, mix)
        check_pieces(backbone, mix, wanted)
        check_unequal_rows(backbone, mix, wanted)
        shorter, longer = backbone.new_cache(1, 4), backbone.new_cache(1, 4)
        backbone.forward(IDS[:1, :20], longer, mix[:1])
        backbone.forward(IDS[1:, :5], shorter, mix[1:])
        both = longer.joined([shorter])
        assert list(both.lengths) == [20, 5] and both.nbytes > shorter.nbytes
        following = torch.stack([IDS[0, 20:24], IDS[1, 5:9]])
        near(backbone.forward(following, both, mix), torch.stack([wanted[0, 20:24], wanted[1, 5:9]]))
    assert "answers of unequal length are decoded one by one" in backend_selection.why_slower(base)


def test_rows_of_one_length_run_together_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(tmp_path / "m", "gpt2", model_type="mpt", **COUNTS_COLUMNS["mpt"])
    backbone, shapes, run = MixedModel(base, {}).backbone, [], ReferenceBackbone._run

    def counted(self: ReferenceBackbone, **inputs: Tensor) -> Tensor:
        shapes.append(tuple(inputs["input_ids"].shape))
        return run(self, **inputs)

    monkeypatch.setattr(ReferenceBackbone, "_run", counted)
    cache = backbone.new_cache(2, 4)
    backbone.forward(IDS[:, :9], cache)
    backbone.forward(IDS[:, 9:11], cache, lengths=[2, 1])
    cache.crop(9)
    backbone.forward(IDS[:, 9:10], cache)
    assert shapes == [(2, 9), (1, 2), (1, 1), (2, 1)]


def test_what_bears_gaps_is_not_taken_apart(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "m", "gpt2")
    assert type(MixedModel(base, {}).backbone.new_cache(2, 4)).__name__ == "ReferenceCache"
    assert base.rows_apart is False


def test_a_rotary_table_that_grew_is_what_it_was_for_the_next_text(tmp_path: Path) -> None:
    """Of the kind "dynamic", which the library keeps for what is shorter, but not for the shortest."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = mixed_model(tmp_path / "m", "llama", max_position_embeddings=16, rope_parameters=rope)
    ids = torch.cat([IDS, IDS.flip(0)], dim=1)
    wanted = {length: model.backbone.forward(ids[:, :length]) for length in (16, 20, 60)}
    for length in (20, 16):
        assert torch.equal(model.backbone.forward(ids[:, :length]), wanted[length]), length
    base = model.base
    assert (base.position_rows, base.context_length, len(prompt_tokens(base, "word " * 40).ids)) == (16, 16, 16)


def test_a_decoder_is_found_that_its_class_names_wrongly(tmp_path: Path) -> None:
    """Llama 4's class calls it as its form with images does."""
    changes = {"head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 16, "intermediate_size_mlp": 64}
    model = mixed_model(tmp_path / "m", "llama", model_type="llama4_text", **changes)
    base, mix = model.base, torch.stack([model.coefficients({"x": 0.4}), model.coefficients({"x": 1.0})])
    assert base.in_decoder("model.layers.0.self_attn.q_proj") and not base.in_decoder("lm_head")
    with torch.no_grad():
        untouched = base.model(IDS).logits
    near(model.backbone.logits(model.backbone.forward(IDS)), untouched)
    check_pieces(model.backbone, mix, model.reference.forward(IDS, None, mix))
    check_unequal_rows(model.backbone, mix, model.reference.forward(IDS, None, mix))


@pytest.mark.parametrize(
    ("architecture", "width"), [("qwen3_moe", "moe_intermediate_size"), ("mixtral", "intermediate_size")]
)
def test_experts_of_any_width_are_run(tmp_path: Path, architecture: str, width: str) -> None:
    model = mixed_model(tmp_path / "m", architecture, **{width: 17})
    assert model.backbone.tier == "fused"
    with torch.no_grad():
        near(model.backbone.logits(model.backbone.forward(IDS)), model.base.model(IDS).logits)


def test_biases_everywhere_are_part_of_the_fused_forward(tmp_path: Path) -> None:
    model = mixed_model(tmp_path / "m", "llama", attention_bias=True, mlp_bias=True)
    assert model.backbone.tier == "fused"
    mix = model.coefficients({"x": 1.0})[None].repeat(2, 1)
    near(model.backbone.forward(IDS, None, mix), model.reference.forward(IDS, None, mix))


def test_without_the_private_operator_plain_products_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(linear, "onednn_linear", absent)
    onednn_works.cache_clear()
    try:
        assert not onednn_works(torch.float32)
        model = mixed_model(tmp_path / "m", "llama")
        assert model.backbone.tier == "fused"
        near(model.backbone.forward(IDS), model.reference.forward(IDS))
        assert mixed_model(tmp_path / "n", "stablelm").backbone.tier == "reference"
    finally:
        onednn_works.cache_clear()


def test_the_middle_tier_leaves_plain_linears_and_gradients(tmp_path: Path) -> None:
    model = mixed_model(tmp_path / "m", "stablelm")
    coefficients = torch.zeros(2, 2, requires_grad=True)
    model.backbone.forward(IDS, None, coefficients).square().sum().backward()
    assert coefficients.grad is not None
    assert float(coefficients.grad.abs().sum()) > 0
    assert all(type(m) is nn.Linear for m in model.base.model.modules() if isinstance(m, nn.Linear))


def test_what_is_not_the_quickest_says_why(tmp_path: Path) -> None:
    for architecture, reason in {"stablelm": "no description", "mixtral": "", "llama": ""}.items():
        base = tiny_base(tmp_path / architecture, architecture)
        MixedModel(base, {})
        assert reason in backend_selection.why_slower(base) and bool(reason) == bool(backend_selection.why_slower(base))
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    base = tiny_base(tmp_path / "dynamic", "llama", rope_parameters=dynamic)
    MixedModel(base, {})
    assert "dynamic" in backend_selection.why_slower(base)


def test_half_precision_bases_run_and_agree_roughly(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "m")
    half = Base(base.model.bfloat16(), base.tokenizer, base.source, base.identity)
    model = MixedModel(half, {"x": random_adapter(half, "x")})
    assert model.backbone.tier == "fused"
    assert agrees(model.backbone, ReferenceBackbone(half))
    assert model.backbone.logits(model.backbone.forward(IDS)).dtype == torch.float32


def test_weights_rounded_to_bfloat16_decode_while_gates_stay_in_float32(tmp_path: Path) -> None:
    model = mixed_model(tmp_path / "m", "llama")
    quick = MixedModel(model.base, model.adapters, generation_dtype="bfloat16")
    assert quick.generation is not quick.backbone
    mix = model.coefficients({"x": 0.5})[None].repeat(2, 1)
    wanted = model.backbone.forward(IDS, None, mix)
    assert torch.equal(quick.backbone.forward(IDS, None, mix), wanted)
    assert model.generation is model.backbone
    cache = quick.generation.new_cache(2, 9)
    found = torch.cat([quick.generation.forward(IDS[:, t : t + 1], cache, mix) for t in range(9)], dim=1)
    assert 0.0 < float((found - wanted[:, :9]).abs().max()) < 0.1 * float(wanted.abs().max())


@pytest.mark.parametrize(
    ("architecture", "problem"),
    [
        ("llama", ""),
        (
            "gpt2",
            "answers are computed in float32, not in bfloat16, which only the fast path reads: "
            "no description of GPT2LMHeadModel is there yet",
        ),
    ],
)
def test_what_cannot_be_read_as_bfloat16_is_said(tmp_path: Path, architecture: str, problem: str) -> None:
    model = mixed_model(tmp_path / "m", architecture)
    assert model.dtype_problem == ""
    asked = MixedModel(model.base, model.adapters, generation_dtype="bfloat16")
    assert (asked.dtype_problem, asked.decoding_dtype == torch.float32) == (problem, bool(problem))


def test_a_bfloat16_checkpoint_is_read_as_bfloat16_without_loss(tmp_path: Path) -> None:
    model = rounded_copy(mixed_model(tmp_path / "m", "llama"))
    assert isinstance(model.backbone, FusedBackbone) and model.backbone.weights.uses_bf16_weights
    assert MixedModel(model.base, model.adapters, generation_dtype="bfloat16").generation.tier == "fused"
    mix = model.coefficients({"x": 0.5})[None].repeat(2, 1)
    wide = FusedBackbone(model.base, model.backbone.weights, model.mixer, compiled=True)
    found, wanted = (
        torch.cat([run.forward(IDS[:, t : t + 1], cache, mix) for t in range(9)], dim=1)
        for run, cache in ((model.backbone, model.backbone.new_cache(2, 9)), (wide, wide.new_cache(2, 9)))
    )
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=2e-6)


def test_a_system_that_does_not_tell_its_free_memory_reads_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_selection.os, "sysconf_names", {})
    model = rounded_copy(mixed_model(tmp_path / "m", "llama"))
    assert isinstance(model.backbone, FusedBackbone)
    assert model.backbone.weights.compiled and not model.backbone.weights.uses_bf16_weights


def rounded_copy(model: MixedModel) -> MixedModel:
    """The same model as if its checkpoint had been bfloat16."""
    module = copy.deepcopy(model.base.model).bfloat16().float()
    return MixedModel(Base(module, model.base.tokenizer, model.base.source, model.base.identity), model.adapters)


def test_caches_refuse_what_does_not_fit(tmp_path: Path) -> None:
    model = mixed_model(tmp_path / "m", "llama")
    for backbone, other in ((model.backbone, model.reference), (model.reference, model.backbone)):
        cache = backbone.new_cache(2, 8)
        with pytest.raises(TypeError):
            other.forward(IDS, cache)
        with pytest.raises(ValueError, match=r"3 rows|cache of 2"):
            backbone.forward(IDS[:1].repeat(3, 1), cache)
        for lengths in ([0, 1], [31, 1], [1]):
            with pytest.raises(ValueError, match="lengths"):
                backbone.forward(IDS, cache, lengths=lengths)
        with pytest.raises(ValueError, match="one row"):
            cache.repeat(3)
        with pytest.raises(ValueError, match="single row"):
            backbone.new_cache(1, 8).adopt(cache, 0)
        single = backbone.new_cache(1, 8)
        with pytest.raises(ValueError, match="single row"):
            cache.adopt(single, 1)
        with pytest.raises(TypeError):
            other.new_cache(1, 8).adopt(single, 0)


def test_nothing_warns(tmp_path: Path) -> None:
    model = mixed_model(tmp_path / "m", "gemma2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.backbone.forward(IDS, model.backbone.new_cache(2, 30))
