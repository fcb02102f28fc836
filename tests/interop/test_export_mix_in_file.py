"""A rounded file holds the mix, all of it and nothing else: adapters are less than the rounding of the weights."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm_tui.export import targets_gguf, targets_hf
from dlm_tui.export.concatenate import LoraPair, concatenate
from dlm_tui.export.mix_check import MIX, Error, MixCheck
from dlm_tui.export.requests import ExportRefused
from dlm_tui.session import Session
from tests.export_sessions import NAMES, export, open_tiny
from tests.tiny_models import random_adapter, target_names, write_tiny_base

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp (extra [llama]) is not installed"
)
Mix = dict[str, LoraPair]
WEIGHTS = {"tone": 0.7, "facts": 0.5, "style": 0.0}
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def small_adapters(base: Any) -> dict[str, Any]:
    """Three adapters, each a few per cent of what it changes: less than four bits leave."""
    targets = target_names(base, *LAYERS)
    return {
        name: random_adapter(base, name, rank=4, seed=seed, targets=targets, size=0.02)
        for seed, name in enumerate(NAMES, start=1)
    }


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("mix")
    return open_tiny(folder, "llama", gate=False, adapters=small_adapters, hidden_size=256, intermediate_size=256)


def negated(mix: Mix, session: Session) -> Mix:
    return {module: replace(pair, lora_B=-pair.lora_B) for module, pair in mix.items()}


def doubled(mix: Mix, session: Session) -> Mix:
    return {module: replace(pair, lora_B=2 * pair.lora_B) for module, pair in mix.items()}


def one_module_left_out(mix: Mix, session: Session) -> Mix:
    return {module: pair for module, pair in mix.items() if module != "model.layers.1.self_attn.o_proj"}


def another_adapter(mix: Mix, session: Session) -> Mix:
    return concatenate(session.model.adapters, [("style", 0.7)])


def one_more_adapter(mix: Mix, session: Session) -> Mix:
    return concatenate(session.model.adapters, [*WEIGHTS.items(), ("style", 0.7)])


def one_adapter_less(mix: Mix, session: Session) -> Mix:
    return concatenate(session.model.adapters, [("tone", 0.7)])


WRONG: dict[str, Callable[[Mix, Session], Mix | None]] = {
    "left out": lambda mix, session: None,
    "negated": negated,
    "at twice its scale": doubled,
    "in all modules but one": one_module_left_out,
    "of another adapter": another_adapter,
    "with one more adapter": one_more_adapter,
    "with one adapter less": one_adapter_less,
}


def asked(session: Session, quant: str) -> Any:
    mix = ",".join(f"{name}:{weight}" for name, weight in WEIGHTS.items())
    return export(session, target="ollama", quant=quant, mix=mix, verify=True)


@pytest.mark.parametrize("quant", ["q4_k_m", "q8_0", "bf16"])
def test_a_file_with_another_mix_is_refused(session: Session, monkeypatch: pytest.MonkeyPatch, quant: str) -> None:
    writing = targets_gguf.write_model
    for change in WRONG.values():

        def write(*given: Any, mix: Mix, change: Any = change, **named: Any) -> Any:
            return writing(*given, mix=change(mix, session), **named)

        monkeypatch.setattr(targets_gguf, "write_model", write)
        with pytest.raises(ExportRefused, match=r"does not hold the workbench's (mix|weights)"):
            asked(session, quant)


@pytest.mark.parametrize("quant", ["q4_k_m", "q8_0"])
def test_the_right_mix_is_found_in_the_file(session: Session, quant: str) -> None:
    parity = asked(session, quant).manifest["parity"]
    assert parity["weights"]["error_along_mix"] < 0.5
    assert parity["against"] == "the weights as stored"


def test_a_base_that_has_the_mix_in_it_is_refused_where_the_mix_lies_beside(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, mix = targets_gguf.write_model, concatenate(session.model.adapters, [("tone", 0.5)])
    monkeypatch.setattr(targets_gguf, "write_model", lambda *given, **named: writing(*given, **{**named, "mix": mix}))
    with pytest.raises(ExportRefused, match=r"is off by .* times (the mix|the adapter 'tone')"):
        export(session, target="llama-server", quant="q8_0", mix="tone:0.7", verify=True)


def test_a_merged_folder_without_a_mix_that_answers_hardly_show_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiny(base: Any) -> dict[str, Any]:
        return {name: random_adapter(base, name, size=0.0005) for name in NAMES}

    session, writing = open_tiny(tmp_path, "llama", gate=False, adapters=tiny), targets_hf.write_merged
    asked = {"target": "merged", "quant": "f32", "mix": "tone:0.7", "verify": True}
    assert export(session, **asked).manifest["parity"]["weights"]["error_along_mix"] < 0.05
    monkeypatch.setattr(
        targets_hf, "write_merged", lambda folder, source, pairs, *rest: writing(folder, source, {}, *rest)
    )
    with pytest.raises(ExportRefused, match=r"is off by -1 times the mix"):
        export(session, **asked)


@pytest.mark.parametrize(("target", "quant"), [("merged", None), ("ollama", "bf16")])
def test_a_mix_that_the_type_of_the_base_swallows_is_refused_whatever_holds_it(
    tmp_path: Path, target: str, quant: str | None
) -> None:
    def weak(base: Any) -> dict[str, Any]:
        return {name: random_adapter(base, name, rank=2, seed=seed, size=0.003) for seed, name in enumerate(NAMES)}

    folder = write_tiny_base(tmp_path / "base", "llama")
    weights = load_file(path := folder / "model.safetensors")
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    session = open_tiny(tmp_path, "llama", gate=False, adapters=weak)
    with pytest.raises(ExportRefused, match="the mix is lost in the rounding to"):
        export(session, target=target, quant=quant, mix="tone:0.5,facts:0.5", verify=True)


@pytest.mark.parametrize(("lost", "said"), [(0.3, True), (0.05, False)])
@pytest.mark.parametrize(("target", "quant"), [("ollama", "q8_0"), ("merged", "bf16")])
def test_what_rounding_took_of_a_mix_is_said(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, quant: str, lost: float, said: bool
) -> None:
    monkeypatch.setattr(MixCheck, "lost", lost)
    found = export(session, target=target, quant=quant, mix="tone:0.7", verify=True, out=str(tmp_path / "out"))
    assert found.manifest["parity"]["weights"]["mix_lost"] == lost
    assert ("rounding took 30% of the mix: a finer --quant keeps more of it" in found.notes) == said


def rounded(size: float, factor: float, tensors: int = 40) -> MixCheck:
    """Tensors with `factor` of a mix of relative `size` in them, rounded coarsely; all judged but not together."""
    chance, check = torch.Generator().manual_seed(0), MixCheck()
    for number in range(tensors):
        weights = torch.randn(64, 64, generator=chance)
        pair = LoraPair(torch.randn(2, 64, generator=chance), torch.randn(64, 2, generator=chance) * size)
        meant, stored = (weights + part * (pair.lora_B @ pair.lora_A) for part in (1.0, factor))
        error = Error({MIX: pair})
        error.add((stored / 0.3).round() * 0.3, meant)
        check.judge(f"blk.{number}", error, "Q4_0")
    return check


def test_what_no_tensor_tells_alone_all_tell_together() -> None:
    rounded(0.005, 1.0).judge_all("Q4_0")
    for factor in (0.0, -1.0, 2.0):
        with pytest.raises(ExportRefused, match=r"the file as a whole is off by .* times the mix"):
            rounded(0.005, factor).judge_all("Q4_0")


def on_a_grid(every: int, factor: float = 1.0, size: float = 0.02) -> tuple[Error, Error]:
    """One column in `every` of the weights stands on the grid of the rounding, as of a base that was quantised before;
    `factor` of a mix was stored. The error, and that of rounding alone."""
    chance = torch.Generator().manual_seed(0)
    weights = torch.randn(1024, 1024, generator=chance)
    weights[:, ::every] = (weights[:, ::every] / 0.3).round() * 0.3
    pair = LoraPair(torch.randn(2, 1024, generator=chance), torch.randn(1024, 2, generator=chance) * size)
    meant, stored = (weights + part * (pair.lora_B @ pair.lora_A) for part in (1.0, factor))
    error, alone = Error({MIX: pair}), Error({MIX: pair})
    error.add((stored / 0.3).round() * 0.3, meant)
    alone.add((meant / 0.3).round() * 0.3, meant)
    return error, alone


def test_what_rounding_swallows_of_a_mix_is_no_fault_of_the_file() -> None:
    error, alone = on_a_grid(4)
    check = MixCheck()
    check.judge("blk.0", error, "Q8_0", lambda: alone)
    check.judge_all("Q8_0")
    assert 0.2 < check.lost < 0.3
    with pytest.raises(ExportRefused, match=r"is off by -0\.2\d times the mix"):
        MixCheck().judge("blk.0", error, "Q8_0")
    for factor in (0.0, 0.5, 2.0):
        error, alone = on_a_grid(4, factor)
        with pytest.raises(ExportRefused, match=r"is off by .* times the mix"):
            MixCheck().judge("blk.0", error, "Q8_0", lambda alone=alone: alone)


def test_a_mix_that_rounding_swallows_whole_is_said_to_be_lost() -> None:
    error, alone = on_a_grid(1)
    check = MixCheck()
    check.judge("blk.0", error, "Q8_0", lambda: alone)
    assert check.lost > 0.9
    with pytest.raises(ExportRefused, match=r"the mix is lost in the rounding to Q8_0.*choose a finer --quant"):
        check.judge_all("Q8_0")


def test_a_mix_below_the_rounding_is_said_to_be_lost() -> None:
    with pytest.raises(ExportRefused, match=r"the mix is lost in the rounding to Q4_0.*choose a finer --quant"):
        rounded(0.0001, 1.0).judge_all("Q4_0")
