"""`train --resume` goes on as the interrupted training was asked for, without being told again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm_tui.cli.main import main
from dlm_tui.cli.narration import Narration
from dlm_tui.document import load
from dlm_tui.errors import Cancelled, DlmTuiError
from dlm_tui.progress import Progress
from dlm_tui.store import Store, current_version
from dlm_tui.store.checkpoints import interrupted
from dlm_tui.training.checkpoints import CheckpointEvery
from tests.tiny_models import tiny_base
from tests.training_samples import write_document

FLAGS = ["--adapter", "facts", "--rank", "facts=3", "--no-packing", "--loraplus-ratio", "4"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "m"
    tiny_base(folder, "llama")
    return folder


def document(folder: Path) -> Path:
    folder.mkdir()
    return write_document(folder, sections=7, epochs=3)


def train(path: Path, *flags: str) -> int:
    return main(["train", str(path), "--home", str(path.parent / "home"), *flags])


def cut_short(path: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    """A training that is stopped at its fourth step."""
    said = Narration.__call__

    def stop(self: Narration, step: Progress) -> None:
        said(self, step)
        if step.stage == "sft" and step.done == 4:
            raise Cancelled("cancelled")

    with monkeypatch.context() as patch:
        patch.setattr(Narration, "__call__", stop)
        assert train(path, *flags) != 0
    left = interrupted(store_of(path))
    assert left is not None and left.words.startswith("facts at step ")
    assert left.asked is not None and left.asked.checkpoint_seconds == 600.0


def store_of(path: Path) -> Store:
    return Store(path.parent / "home", load(path).dlm_id)


def trained(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("facts", "manners"):
        version = current_version(store_of(path), name)
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            found[f"{name}/{file}"] = (version.path / file).read_bytes() if version is not None else None
    return found


def test_without_flags_it_goes_on_as_it_was_asked_for(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = document(tmp_path / "whole"), document(tmp_path / "cut")
    assert train(whole, "--base", str(base), *FLAGS) == 0
    cut_short(cut, monkeypatch, "--base", str(base), *FLAGS)
    torch.set_num_threads(2)  # whoever goes on may have another number of them
    capsys.readouterr()
    assert train(cut, "--resume") == 0
    assert "facts: goes on behind step" in capsys.readouterr().err
    assert trained(cut) == trained(whole)
    assert trained(cut)["manners/adapter_model.safetensors"] is None
    assert interrupted(store_of(cut)) is None


def test_what_is_said_again_must_agree(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = document(tmp_path / "d")
    cut_short(path, monkeypatch, "--base", str(base), *FLAGS)
    for flags, sentence in {
        ("--adapter", "manners"): "--adapter: the interrupted training has facts, not manners;",
        ("--rank", "facts=4"): "--rank facts: the interrupted training has 3, not 4;",
        ("--parameterization", "pissa"): "--parameterization: the interrupted training has the default, not pissa;",
        ("--packing",): "--packing: the interrupted training has it off, not it on;",
        ("--loraplus-ratio", "2"): "--loraplus-ratio: the interrupted training has 4.0, not 2.0;",
        ("--base", str(tmp_path)): f"--base: the interrupted training has {base}, not {tmp_path};",
    }.items():
        capsys.readouterr()
        assert train(path, "--resume", *flags) == 2
        told = capsys.readouterr().err
        assert f"{sentence} leave the flag out, or train anew without --resume" in told
        assert interrupted(store_of(path)) is not None
    assert train(path, "--resume", "--gate-only") == 2
    assert train(path, "--resume", "--base", str(base), *FLAGS, "--checkpoint-steps", "2") == 0


@pytest.mark.parametrize(("minutes", "kept"), [("0.00001", True), (None, False)])
def test_a_checkpoint_is_written_by_the_clock(
    minutes: str | None, kept: bool, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written at the end of a training that breaks off; without the flag it is every ten minutes."""
    path, said = document(tmp_path / "d"), Narration.__call__

    def break_off(self: Narration, step: Progress) -> None:
        said(self, step)
        if step.stage == "sft" and step.done == 4:
            raise DlmTuiError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Narration, "__call__", break_off)
        flags = ["--checkpoint-minutes", minutes] if minutes else []
        assert train(path, "--base", str(base), "--adapter", "facts", *flags) == 1
    left = interrupted(store_of(path))
    assert (left is not None) == kept
    if left is not None:
        assert left.words.startswith("facts at step 3 of ")
        assert left.asked is not None and left.asked.checkpoint_seconds == pytest.approx(0.0006)


def test_a_checkpoint_is_due_after_ten_minutes_or_so_many_steps() -> None:
    assert not CheckpointEvery().is_due(10_000, 599.9) and CheckpointEvery().is_due(1, 600.0)
    assert not CheckpointEvery(steps=3).is_due(2, 0.0) and CheckpointEvery(steps=3).is_due(3, 0.0)


def test_plain_train_says_what_would_go_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = document(tmp_path / "d")
    cut_short(path, monkeypatch, "--base", str(base), *FLAGS)
    capsys.readouterr()
    assert train(path, "--base", str(base)) == 0
    told = capsys.readouterr().err
    assert "an interrupted training is given up (facts at step " in told
    assert "`train --resume` would have gone on with it" in told
