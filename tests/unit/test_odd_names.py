"""A document whose name is not UTF-8: it trains to the end, and its training is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.errors import UsageError
from dlm_tui.export.atomic_folder import check_destination
from dlm_tui.export.requests import ExportRefused
from dlm_tui.store import Store, current_version, read_manifest, resolve_home
from dlm_tui.training import TrainRequest, train_document
from tests.tiny_models import tiny_base
from tests.training_samples import write_document


def test_a_home_and_a_destination_that_could_take_no_file_are_refused_before_the_work(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with pytest.raises(UsageError, match="is not UTF-8 text, so no adapter could be saved"):
        resolve_home(odd)
    with pytest.raises(ExportRefused, match="is not UTF-8 text"):
        check_destination(odd)
    assert resolve_home(tmp_path / "café") == tmp_path / "café"


def test_a_name_that_is_not_utf8_loses_no_training(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.dlm"))
    try:
        path.write_bytes(write_document(tmp_path, sections=2, epochs=1).read_bytes())
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    document = load(path)
    store = Store(tmp_path / "home", document.dlm_id)
    train_document(TrainRequest(document=document, store=store, base=tiny_base(tmp_path / "m")), lambda _: None)
    assert current_version(store, "facts") is not None
    manifest = read_manifest(store)
    assert manifest is not None and manifest.source_path == f"{tmp_path}/caf\\udce9.dlm"


def test_what_cannot_take_such_a_name_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.dlm"))
    try:
        path.write_bytes(write_document(tmp_path).read_bytes())
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert main(["queue", str(path), "add", "train", "--home", str(tmp_path / "home")]) == 2
    assert "caf\\udce9.dlm is not: rename it" in capsys.readouterr().err
    assert main(["pack", str(path), "--home", str(tmp_path / "home")]) == 1
    assert "caf\\udce9.dlm cannot be packed: its name is not UTF-8 text; rename it" in capsys.readouterr().err


def test_a_name_without_room_for_a_lock_names_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_document(tmp_path).rename(tmp_path / f"{'n' * 251}.dlm")
    assert main(["section", str(path), "add", "--type", "prose", "--text", "a"]) == 1
    assert f"{path}: its name is too long; choose a shorter one" in capsys.readouterr().err
    (tmp_path / "a.jsonl").write_text('{"prompt": "hi"}\n')
    assert main(["sets", str(path), "import", str(tmp_path / "a.jsonl"), "--set", "a"]) == 1
    assert f"{path}: its name is too long; choose a shorter one" in capsys.readouterr().err
    assert main(["show", str(path), "--home", str(tmp_path / "home")]) == 0
