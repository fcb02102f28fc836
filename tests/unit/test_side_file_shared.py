"""Two processes that change the file beside a document at once: each looks at it again when it holds it."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlm_tui.cli.main import _remembered
from dlm_tui.document import read_side_file, replacing, set_side_value, side_file, side_file_path
from dlm_tui.document.replacing import DocumentBusy, beside_lock
from dlm_tui.model.registry import BaseUnavailable
from tests.training_samples import write_document


def test_a_key_that_another_process_sets_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.dlm.tui.toml"

    @contextlib.contextmanager
    def after_another(beside: Path) -> Iterator[None]:
        monkeypatch.undo()
        set_side_value(path, "quantize", "nf4")
        with beside_lock(beside):
            yield

    monkeypatch.setattr(side_file, "beside_lock", after_another)
    set_side_value(path, "offload", "/disk")
    found = read_side_file(path)
    assert (found.quantize, found.offload) == ("nf4", "/disk")


def test_who_cannot_have_it_says_so_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.dlm.tui.toml"
    set_side_value(path, "quantize", "nf4")
    monkeypatch.setattr(replacing, "_BESIDE_SECONDS", 0.0)
    with beside_lock(path):
        set_side_value(path, "quantize", "nf4")  # as it is already: nothing is written
        with pytest.raises(DocumentBusy, match="try again"):
            set_side_value(path, "offload", "/disk")
    assert read_side_file(path).offload is None
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("another", [False, True])
def test_what_is_taken_back_is_only_what_was_set(tmp_path: Path, another: bool) -> None:
    document = write_document(tmp_path)
    path = side_file_path(document)
    args = argparse.Namespace(document=str(document), quantize="nf4")
    with pytest.raises(BaseUnavailable), _remembered(args, ["quantize"]):
        assert read_side_file(path).quantize == "nf4"
        if another:
            set_side_value(path, "offload", "/disk")
        raise BaseUnavailable("no")
    assert path.exists() == another
    assert not another or (read_side_file(path).quantize, read_side_file(path).offload) == (None, "/disk")
