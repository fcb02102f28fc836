"""What versions have alike lies on the disk once, and no version can tell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import Document
from dlm_tui.model import Base, base_of, load_base, save_peft_adapter
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.store import AdapterVersion, Store, new_version, seal_version
from dlm_tui.store.adapter_history import drop_version, version_history
from dlm_tui.store.examine import examine
from dlm_tui.store.packs import unpack, write_pack
from dlm_tui.store.shared_files import freed_bytes, write_shared
from dlm_tui.store.version_record import damage
from dlm_tui.store.versions import adapter_versions, all_versions
from dlm_tui.training import TrainRequest, train_document
from dlm_tui.training.import_adapter import import_adapter
from tests.interop.peer_fixture import peer_root
from tests.tiny_models import random_adapter
from tests.training_samples import sample

NAMES = ("facts", "manners")
TOKENIZER = b"the words " * 1000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", "01JEXPXRTTESTSEXPXRTTESTSE").create()


def made(store: Store, name: str, words: bytes = TOKENIZER, weights: bytes = b"") -> AdapterVersion:
    """A finished version with a tokenizer of one file and a folder."""
    version = new_version(store, name)

    def write(folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes(words)
        (folder / "templates").mkdir()
        (folder / "templates" / "chat.jinja").write_bytes(words)

    write_shared(store, version, write)
    (version.path / "adapter_model.safetensors").write_bytes(weights)
    (version.path / "adapter_config.json").write_text("{}")
    seal_version(version)
    return version


def inode(version: AdapterVersion, name: str = "tokenizer.json") -> int:
    return (version.path / name).stat().st_ino


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that can link the lock of a store and no files of versions."""
    real = os.link

    def link(source: Any, target: Any, **more: Any) -> None:
        if "versions" in Path(target).parts:
            raise OSError(1, "Operation not permitted")
        real(source, target, **more)

    monkeypatch.setattr(os, "link", link)


def test_a_version_links_what_another_has_and_goes_alone(store: Store) -> None:
    first, second = made(store, "facts"), made(store, "manners")
    other = made(store, "manners", TOKENIZER.replace(b"words", b"terms"))  # the same size, other bytes
    assert inode(first) == inode(second) != inode(other)
    assert inode(first, "templates/chat.jinja") == inode(second, "templates/chat.jinja")
    assert inode(first, "adapter_config.json") != inode(second, "adapter_config.json")
    assert not list(store.root.rglob("*.tmp.*"))
    assert not any(damage(version, all_files=True) for version in (first, second, other))
    drop_version(store, "facts", 1)
    assert (second.path / "tokenizer.json").read_bytes() == TOKENIZER
    assert damage(second, all_files=True) == {}


def test_a_damaged_file_is_linked_by_nobody(store: Store) -> None:
    first = made(store, "facts")
    (first.path / "tokenizer.json").write_bytes(TOKENIZER[::-1])
    second = made(store, "manners")
    assert inode(first) != inode(second) and damage(second, all_files=True) == {}


def test_nothing_outside_the_store_is_linked(store: Store, tmp_path: Path) -> None:
    elsewhere = made(Store(tmp_path / "other", store.dlm_id).create(), "facts")
    (store.adapters_dir / "facts").symlink_to(elsewhere.path.parent.parent)
    links = made(store, "style")
    (links.path / "tokenizer.json").unlink()
    (links.path / "tokenizer.json").symlink_to(elsewhere.path / "tokenizer.json")
    assert inode(made(store, "manners")) != inode(elsewhere)


def test_without_links_every_version_has_its_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    no_links(monkeypatch)
    first, second = made(store, "facts"), made(store, "manners")
    assert inode(first) != inode(second) and damage(second, all_files=True) == {}
    assert not list(store.root.rglob("*.tmp.*"))


def test_sizes_count_a_shared_file_once_and_free_it_with_its_last_version(store: Store) -> None:
    first, second = made(store, "facts", weights=bytes(500)), made(store, "manners", weights=bytes(300))
    shared = 2 * len(TOKENIZER)
    alone = {name: facts[0].size for name, facts in version_history(store, NAMES).items()}
    assert 500 < alone["facts"] < 500 + shared and 300 < alone["manners"] < 300 + shared
    assert freed_bytes([first.path, second.path]) == sum(alone.values()) + shared
    assert store.total_size() == sum(alone.values()) + shared
    assert drop_version(store, "facts", 1) == alone["facts"]
    assert drop_version(store, "manners", 1) == alone["manners"] + shared


def trained(tmp_path: Path) -> tuple[Document, Store, Base]:
    document = sample(tmp_path)
    store = Store(tmp_path / "home", document.dlm_id)
    base = run_to_end(load_base(base_of(document, peer_root() / "base")))

    def quiet(_: Progress) -> None:
        """Nobody watches."""

    train_document(TrainRequest(document=document, store=store, base=base), quiet)
    return document, store, base


def tokenizers(store: Store) -> dict[str, set[int]]:
    """File of a tokenizer → the inodes it has in all versions of the store."""
    found: dict[str, set[int]] = {}
    for name in NAMES:
        for version in all_versions(store, name):
            for path in version.path.iterdir():
                if path.name.startswith(("token", "chat_", "special_")):
                    found.setdefault(path.name, set()).add(path.stat().st_ino)
    return found


def test_training_importing_and_unpacking_keep_one_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, store, base = trained(tmp_path)
    assert "tokenizer.json" in tokenizers(store) and set(map(len, tokenizers(store).values())) == {1}
    base.encode_raw("a prompt that is cut", limit=3)  # leaves its mark on the tokenizer
    save_peft_adapter(random_adapter(base, "manners"), tmp_path / "given", "elsewhere/base")
    path = tmp_path / "sample.dlm"
    run_to_end(import_adapter(str(tmp_path / "given"), "manners", path, store.home, base, replace=True))
    assert len(all_versions(store, "manners")) == 2 and set(map(len, tokenizers(store).values())) == {1}
    assert [finding for finding in examine(store, NAMES, document.base_model) if finding.severity != "note"] == []

    packed = write_pack(path, store)
    theirs = unpack(packed.path, tmp_path / "theirs", tmp_path / "beside").store
    assert set(map(len, tokenizers(theirs).values())) == {1}
    assert tokenizers(theirs).keys() == tokenizers(store).keys()
    for version in adapter_versions(theirs, NAMES).values():
        assert damage(version, all_files=True) == {}
    assert theirs.total_size() < store.total_size() + 100_000

    capsys.readouterr()
    shared = (all_versions(store, "manners")[0].path / "tokenizer.json").stat().st_size
    assert main(["adapter", "drop", str(path), "manners", "--version", "1", "--home", str(store.home)]) == 0
    said = float(capsys.readouterr().err.split("deleted, ")[1].split(" MB")[0])
    assert said * 1e6 < shared
    assert damage(all_versions(store, "facts")[0], all_files=True) == {}


def test_training_works_where_nothing_can_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_links(monkeypatch)
    _, store, _ = trained(tmp_path)
    assert set(map(len, tokenizers(store).values())) == {2}
    for version in adapter_versions(store, NAMES).values():
        assert damage(version, all_files=True) == {}
