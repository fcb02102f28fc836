"""Whose a store is: copies are refused with the remedies, moved documents keep what was trained."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import load, with_dlm_id
from dlm_tui.session import Session
from dlm_tui.store import (
    Manifest,
    MetricsWriter,
    OwnedElsewhere,
    Store,
    adopt,
    other_owner,
    owner_path,
    read_manifest,
    refuse_other_document,
    update_manifest,
)
from dlm_tui.store.packs import unpack
from dlm_tui.training import refuse_before_base
from tests.adapter_versions import finished_training
from tests.interop.peer_fixture import peer_root

ID = "01J9ZK4M2N6P8Q0R1S3T5V7W9X"
TEXT = f"""---
dlm_id: {ID}
dlm_version: 15
base_model: pocket
training:
  adapters: {{tone: {{}}, facts: {{}}}}
---
::prose#tone::
Be kind.

::prose#facts::
The tide is high at noon.
"""


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A document that was trained where it lies."""
    path = tmp_path / "papers" / "harbour.dlm"
    path.parent.mkdir()
    path.write_text(TEXT)
    record_training(path, tmp_path)
    return path


def store_of(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", ID)


def record_training(path: Path, tmp_path: Path) -> None:
    """What `commit_runs` says about the document."""
    document, store = load(path), store_of(tmp_path)
    finished_training(store, "tone", "facts", run=1)

    def record(manifest: Manifest) -> None:
        manifest.source_path = owner_path(document)
        manifest.content_hashes = {section.section_id: section.section_id for section in document.sections}

    update_manifest(store, record)


def owner_of(path: Path, tmp_path: Path) -> str | None:
    owner = other_owner(store_of(tmp_path), load(path))
    return owner.path if owner is not None else None


def test_the_document_that_was_trained_may_use_its_store(trained: Path, tmp_path: Path) -> None:
    assert owner_of(trained, tmp_path) is None
    trained.write_text(TEXT.replace("Be kind.", "Be strict.").replace("The tide is high at noon.", "It is low."))
    assert owner_of(trained, tmp_path) is None, "whatever its text becomes"


def test_a_copy_is_refused_with_both_remedies(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(trained, trained.with_name("copy.dlm")))
    with pytest.raises(OwnedElsewhere) as refused:
        refuse_other_document(store_of(tmp_path), load(copy))
    text = str(refused.value)
    assert f"{trained} has the same dlm_id as {copy}" in text and "--adopt" in text
    offered = text.partition("(dlm_id: ")[2].partition(")")[0]
    copy.write_bytes(with_dlm_id(copy.read_bytes(), offered))
    assert load(copy).dlm_id != ID
    assert other_owner(Store(tmp_path / "home", offered), load(copy)) is None


def test_a_moved_document_keeps_its_store(trained: Path, tmp_path: Path) -> None:
    there = tmp_path / "elsewhere.dlm"
    trained.rename(there)
    assert owner_of(there, tmp_path) is None
    there.write_text(TEXT.replace("Be kind.", "Be strict."))
    assert owner_of(there, tmp_path) is None, "moved and edited: a section is still what was trained"
    trained.write_text(TEXT.replace(ID, "A" * 26))
    assert owner_of(there, tmp_path) is None, "what lies at the old place now has another id"


def test_another_text_with_the_id_is_refused_though_the_first_is_gone(trained: Path, tmp_path: Path) -> None:
    trained.unlink()
    other = tmp_path / "other.dlm"
    other.write_text(TEXT.replace("Be kind.", "Sing.").replace("The tide is high at noon.", "Dance."))
    with pytest.raises(OwnedElsewhere, match=r"was trained on another text, .*harbour\.dlm, which is not there"):
        refuse_other_document(store_of(tmp_path), load(other))
    adopt(store_of(tmp_path), load(other))
    assert owner_of(other, tmp_path) is None


def _symbolic(target: Path, link: Path) -> None:
    link.symlink_to(target)


@pytest.mark.parametrize("join", [_symbolic, os.link], ids=["symbolic", "hard"])
def test_links_are_the_same_document(trained: Path, tmp_path: Path, join: Callable[[Path, Path], None]) -> None:
    link = tmp_path / "link.dlm"
    join(trained, link)
    assert owner_of(link, tmp_path) is None


def test_a_relative_path_is_the_same_document(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.parent)
    assert owner_of(Path(trained.name), tmp_path) is None
    assert owner_path(load(Path(trained.name))) == str(trained)


@pytest.mark.parametrize("recorded", [None, "", "harbour.dlm", "nul\0in it"])
def test_a_store_that_names_no_place_belongs_to_its_id(trained: Path, tmp_path: Path, recorded: str | None) -> None:
    update_manifest(store_of(tmp_path), lambda manifest: setattr(manifest, "source_path", recorded))
    copy = Path(shutil.copy(trained, trained.with_name("copy.dlm")))
    assert owner_of(copy, tmp_path) is None


def test_a_first_document_that_cannot_be_read_now_is_still_the_owner(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(trained, trained.with_name("copy.dlm")))
    trained.write_text("half a fi")
    assert owner_of(copy, tmp_path) == str(trained)


def test_every_way_in_is_closed_to_a_copy(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copy(trained, trained.with_name("copy.dlm")))
    home, before = tmp_path / "home", sorted((tmp_path / "home").rglob("*"))
    for words in (
        ["metrics", copy], ["traffic", copy], ["adapter", "list", copy], ["adapter", "back", copy],
        ["adapter", "prune", copy], ["pack", copy], ["route", copy, "hello"], ["prompt", copy, "hello"],
        ["train", copy], ["eval", copy], ["drift", copy], ["label", copy, "hello", "--adapter", "tone"],
        ["export", copy], ["doctor", copy, "--repair"], ["serve", copy],
    ):  # fmt: skip
        assert main([*(str(word) for word in words), "--home", str(home)]) in (1, 2), words
        assert "--adopt" in capsys.readouterr().err, words
    assert copy.read_text() == TEXT
    assert sorted((tmp_path / "home").rglob("*")) == before
    assert main(["show", str(copy), "--home", str(home), "--json"]) == 0
    assert str(trained) in json.loads(capsys.readouterr().out)["problems"][0]
    assert main(["doctor", str(copy), "--home", str(home)]) == 1
    with pytest.raises(OwnedElsewhere):
        refuse_before_base(load(copy), store_of(tmp_path), None)
    with pytest.raises(OwnedElsewhere):
        next(Session.open(copy, home))


def test_adopt_gives_the_store_to_the_copy(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy, home = Path(shutil.copy(trained, trained.with_name("copy.dlm"))), tmp_path / "home"
    assert main(["adapter", "list", str(copy), "--home", str(home), "--adopt", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"tone", "facts"}
    manifest = read_manifest(store_of(tmp_path))
    assert manifest is not None and manifest.source_path == str(copy)
    assert owner_of(trained, tmp_path) == str(copy), "now the first one is the stranger"


def test_adopt_without_a_document_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--adopt"]) == 2
    assert "--adopt needs the DOC that was moved" in capsys.readouterr().err


def test_adopting_before_anything_was_trained_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new.dlm"
    path.write_text(TEXT)
    adopt(store_of(tmp_path), load(path))
    assert not (tmp_path / "home").exists()


def test_an_unpacked_document_owns_its_store(trained: Path, tmp_path: Path) -> None:
    manifest = read_manifest(store_of(tmp_path))
    assert manifest is not None
    with MetricsWriter(store_of(tmp_path)) as metrics:
        for run in manifest.training_runs:
            metrics.restore_run(run)
    pack = tmp_path / "carried.pack"
    assert main(["pack", str(trained), "--home", str(tmp_path / "home"), "--out", str(pack)]) == 0
    made = unpack(pack, tmp_path / "second", tmp_path / "there")
    assert other_owner(made.store, load(made.document)) is None
    owner = other_owner(made.store, load(trained))
    assert owner is not None and owner.path == str(made.document)


@pytest.mark.parametrize("which", ["routed", "uniform", "diverged"])
def test_stores_of_the_dlm_tool_work_from_where_they_are(which: str) -> None:
    root = peer_root()
    document = load(root / f"{which}.dlm")
    assert other_owner(Store(root / "home", document.dlm_id), document) is None
