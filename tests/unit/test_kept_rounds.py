"""`doctor DOC`: the kept versions of an adapter, composed as a history and by the mixer, add the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.model import Adapter, LowRank, Mixer, save_peft_adapter
from dlm_tui.model.modulated import history, rounds
from dlm_tui.model.modulated.base import Modulated
from dlm_tui.store import Store, claim, commit_version, new_version
from tests.training_samples import write_document

TARGETS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj")
SIZES = {"q_proj": (8, 8), "up_proj": (8, 12), "down_proj": (12, 8)}
EMBEDDING = "model.embed_tokens"


def an_adapter(seed: int, rank: int, scale: float, kind: str = "lora", names: Sequence[str] = TARGETS) -> Adapter:
    chance = torch.Generator().manual_seed(seed)
    modules = {}
    for name in names:
        d_in, d_out = SIZES[name.rsplit(".", 1)[1]]
        lora_A, lora_B = (torch.randn(size, generator=chance) for size in ((rank, d_in), (d_out, rank)))
        modules[name] = LowRank(lora_A, lora_B, scale)
    return Adapter("facts", modules, parameterization=kind)


ROUNDS = [
    an_adapter(1, 2, 2.0),
    an_adapter(2, 3, 1.0, "pissa"),
    an_adapter(3, 4, 0.5, names=TARGETS[1:]),
    an_adapter(4, 1, 1.0, "pissa", names=TARGETS[:2]),
]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    path = write_document(tmp_path)
    store = Store(tmp_path / "home", load(path).dlm_id).create()
    claim(store, load(path))
    for one in ROUNDS:
        version = new_version(store, "facts")
        save_peft_adapter(one, version.path, "peer-tiny", extra={"dlm_parameterization": one.parameterization})
        commit_version(store, version)
    version = new_version(store, "manners")
    save_peft_adapter(ROUNDS[0], version.path, "peer-tiny")
    commit_version(store, version)
    return ["doctor", str(path), "--home", str(store.home)]


def reported(command: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    main([*command, "--json"])
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)["rounds"]
    return found


def dense(parts: Sequence[tuple[Adapter, float]], name: str) -> Tensor:
    """The weight that the rounds add to a layer, float64."""
    pairs = [(one.modules[name], c) for one, c in parts if name in one.modules]
    return sum((pair.lora_B.double() @ pair.lora_A.double() * (pair.scale * c) for pair, c in pairs), torch.zeros(1))


def test_versions_of_unlike_kinds_ranks_and_layers_compose(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = reported(command, capsys)
    assert found["adapter"] == "facts" and found["exact"] is True
    assert found["versions"] == ["facts", "facts@3", "facts@2", "facts@1"]
    parts = [(one, 1 / place) for place, one in enumerate(reversed(ROUNDS), start=1)]
    wanted = 0.0
    for name in TARGETS:
        x = torch.randn(rounds.INPUTS, SIZES[name.rsplit(".", 1)[1]][0], generator=torch.Generator().manual_seed(0))
        wanted = max(wanted, float((x.double() @ dense(parts, name).T).abs().max()))
    assert found["largest_addition"] == pytest.approx(wanted, rel=1e-5)
    assert 0 < float(str(found["largest_difference"])) < 1e-5 * wanted
    assert main(command) == 0
    assert "rounds      facts + facts@3 + facts@2 + facts@1 compose: largest difference" in capsys.readouterr().out


def test_what_a_killed_training_left_is_no_version(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(Path(command[3]), load(Path(command[1])).dlm_id)
    (new_version(store, "facts").path / "adapter_model.safetensors").write_bytes(b"half")
    (store.adapter_dir("facts") / "versions" / "v0009").mkdir()
    (found,) = reported(command, capsys)
    assert found["exact"] is True and found["versions"] == ["facts", "facts@3", "facts@2", "facts@1"]


def without_coefficients(
    was: Callable[[Sequence[tuple[Modulated, float]]], dict[str, tuple[Tensor, Tensor]]],
) -> Callable[[Sequence[tuple[Modulated, float]]], dict[str, tuple[Tensor, Tensor]]]:
    return lambda kept: was([(one, 1.0) for one, _ in kept])


@pytest.mark.parametrize("where", ["history", "mixer"])
def test_a_composition_that_is_wrong_on_either_side_is_damage(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    if where == "history":
        monkeypatch.setattr(history, "_stack", without_coefficients(history._stack))
    else:
        row = Mixer.coefficients
        monkeypatch.setattr(Mixer, "coefficients", lambda self, mix: row(self, mix).flip(0))
    assert main(command) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "do not compose" in line]
    assert line.startswith("damage      facts + facts@3") and "Ask under one version at a time" in line
    assert reported(command, capsys)[0]["exact"] is False


def test_numbers_too_large_to_add_are_no_exact_composition() -> None:
    huge = replace(ROUNDS[0], modules={TARGETS[0]: LowRank(torch.full((1, 8), 1e38), torch.full((8, 1), 1e38), 1.0)})
    found = rounds.composed([(huge, 1.0), (replace(ROUNDS[0], name="facts@1"), 0.5)])
    assert found is not None and not found.exact
    infinite = replace(found, difference=float("inf"), addition=float("inf"))
    assert not infinite.exact and replace(found, difference=0.0, addition=0.0).exact


def test_a_pair_of_the_embedding_is_no_part_of_a_history() -> None:
    tokens = LowRank(torch.ones(1, 5), torch.ones(8, 1), 1.0, tokens=True)
    only = Adapter("facts", {EMBEDDING: tokens})
    assert rounds.composed([(only, 1.0), (replace(only, name="facts@1"), 0.5)]) is None
    found = rounds.composed([(only, 1.0), (replace(ROUNDS[0], name="facts@1"), 0.5)])
    assert found is not None and found.exact and EMBEDDING not in found.layers


def test_a_version_that_cannot_be_read_is_said(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    home, path = Path(command[3]), Path(command[1])
    config = Store(home, load(path).dlm_id).adapter_dir("facts") / "versions" / "v0002" / "adapter_config.json"
    config.write_text("{")
    (found,) = reported(command, capsys)
    assert found["exact"] is None and "is not a readable adapter folder" in str(found["text"])
