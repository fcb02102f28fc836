"""Homes, version folders and the pointers between them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_tui.errors import UsageError
from dlm_tui.store import (
    AdapterVersion,
    PointerError,
    Store,
    StoreError,
    adapter_versions,
    commit_version,
    current_version,
    latest_version,
    new_version,
    reject_version,
    resolve_home,
    stored_adapters,
)

ID = "01JTESTTESTTESTTESTTESTTES"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", ID).create()


def filled(version: AdapterVersion, text: str = "x") -> AdapterVersion:
    (version.path / "adapter_config.json").write_text(text, encoding="utf-8")
    return version


def test_home_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DLM_HOME", raising=False)
    assert resolve_home(None) == tmp_path / ".dlm"
    monkeypatch.setenv("DLM_HOME", "~/elsewhere")
    assert resolve_home(None) == tmp_path / "elsewhere"
    assert resolve_home("~/flag") == tmp_path / "flag"
    monkeypatch.chdir(tmp_path)
    assert resolve_home("relative").is_absolute()
    assert resolve_home("relative") == Path.cwd() / "relative"
    with pytest.raises(UsageError):
        resolve_home("~no_such_user_here/x")


def test_a_store_object_touches_nothing_and_cannot_leave_the_home(tmp_path: Path) -> None:
    store = Store(tmp_path / "home", ID)
    assert current_version(store, "tone") is None
    assert stored_adapters(store) == []
    assert latest_version(store, "tone") is None
    assert list(tmp_path.iterdir()) == []
    for bad in ("../up", "a/b", "", ".", "..", "x\0", "a" * 65):
        with pytest.raises(StoreError):
            Store(tmp_path, bad)
    for bad in ("../up", "Tone", "tone\n", "_gate", "", "a" * 33):
        with pytest.raises(UsageError):
            store.adapter_dir(bad)


def test_create_makes_the_folders_of_every_store(store: Store) -> None:
    found = {path.relative_to(store.root).as_posix() for path in store.root.rglob("*")}
    assert found == {"adapter", "adapter/versions", "logs"}


@pytest.mark.parametrize("name", ["default", "tone"])
def test_commit_flips_the_pointer_only_at_the_end(store: Store, name: str) -> None:
    first = filled(new_version(store, name))
    assert first.path.name == "v0001"
    assert current_version(store, name) is None
    commit_version(store, first)
    assert current_version(store, name) == first
    second = filled(new_version(store, name), "y")
    assert current_version(store, name) == first
    commit_version(store, second)
    assert current_version(store, name) == second
    assert (first.path / "adapter_config.json").read_text() == "x"
    folder = "adapter" if name == "default" else "adapter/tone"
    pointer = (store.adapter_dir(name) / "current.txt").read_bytes()
    assert pointer == f"{folder}/versions/v0002\n".encode()


def test_numbers_count_abandoned_folders_but_not_rejected_ones(store: Store) -> None:
    new_version(store, "tone")
    (store.adapter_dir("tone") / "versions" / "v7").mkdir()
    (store.adapter_dir("tone") / "versions" / "v0099").write_text("a file, no version")
    (store.adapter_dir("tone") / "versions" / "v0050-rejected").mkdir()
    assert new_version(store, "tone").path.name == "v0008"
    (store.adapter_dir("tone") / "versions" / "v9999").mkdir()
    assert new_version(store, "tone").path.name == "v10000"
    assert latest_version(store, "tone") == 10000


def test_rejecting_keeps_the_pointer_and_every_rejected_folder(store: Store) -> None:
    good = filled(new_version(store, "tone"))
    commit_version(store, good)
    names = []
    for _ in range(3):
        names.append(reject_version(store, filled(new_version(store, "tone"))).name)
    assert names == ["v0002-rejected", "v0002-rejected-1", "v0002-rejected-2"]
    assert current_version(store, "tone") == good
    with pytest.raises(StoreError):
        reject_version(store, good)


def test_what_cannot_be_committed(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="empty"):
        commit_version(store, new_version(store, "tone"))
    foreign = tmp_path / "v0003"
    foreign.mkdir()
    filled(AdapterVersion("tone", 3, foreign))
    with pytest.raises(StoreError):
        commit_version(store, AdapterVersion("tone", 3, foreign))
    link = store.adapter_dir("tone") / "versions" / "v0003"
    link.symlink_to(foreign)
    with pytest.raises(StoreError):
        commit_version(store, AdapterVersion("tone", 3, link))
    assert current_version(store, "tone") is None


def test_named_adapters_are_listed_without_the_flat_layout(store: Store) -> None:
    for name in ("tone", "knowledge"):
        commit_version(store, filled(new_version(store, name)))
    commit_version(store, filled(new_version(store, "default")))
    (store.adapters_dir / "_gate").mkdir()
    (store.adapters_dir / "Not An Adapter").mkdir()
    assert stored_adapters(store) == ["knowledge", "tone"]
    commit_version(store, filled(new_version(store, "versions")))
    assert stored_adapters(store) == ["knowledge", "tone", "versions"]
    found = adapter_versions(store, ["tone", "style", "knowledge"])
    assert list(found) == ["tone", "knowledge"]
    flat = current_version(store, "default")
    assert flat is not None
    assert flat.path == store.adapters_dir / "versions" / "v0001"


def test_an_empty_pointer_is_none(store: Store) -> None:
    store.adapter_dir("tone").mkdir()
    for content in ("", "\n", "  \t\r\n"):
        (store.adapter_dir("tone") / "current.txt").write_text(content)
        assert current_version(store, "tone") is None


@pytest.mark.parametrize("place", ["adapter/tone", "adapter/tone/versions", "adapter"])
def test_no_version_is_written_through_a_link_out_of_the_store(store: Store, tmp_path: Path, place: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = store.root / place
    if link.is_dir():
        shutil.rmtree(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    with pytest.raises(StoreError, match="out of the store through a link"):
        new_version(store, "tone")
    assert list(outside.iterdir()) == []


def test_pointers_through_links_do_not_leave_the_store(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "versions" / "v0001"
    outside.mkdir(parents=True)
    pointer = store.adapter_dir("tone") / "current.txt"
    (store.adapter_dir("tone") / "versions").mkdir(parents=True)

    (store.adapter_dir("tone") / "versions" / "v0001").symlink_to(outside)
    pointer.write_text("adapter/tone/versions/v0001\n")
    with pytest.raises(PointerError, match="outside"):
        current_version(store, "tone")

    (store.root / "away").symlink_to(outside.parent)
    pointer.write_text("away/v0001\n")
    with pytest.raises(PointerError, match="outside"):
        current_version(store, "tone")

    (store.root / "loop").symlink_to(store.root / "loop")
    pointer.write_text("loop/v0001\n")
    with pytest.raises(PointerError):
        current_version(store, "tone")

    pointer.unlink()
    pointer.symlink_to(tmp_path / "secret.txt")
    with pytest.raises(PointerError, match="link"):
        current_version(store, "tone")

    (store.root / "adapter" / "style").symlink_to(outside.parent.parent)
    (outside.parent.parent / "current.txt").write_text("adapter/style/versions/v0001\n")
    with pytest.raises(PointerError, match="outside"):
        current_version(store, "style")


def test_a_home_behind_a_link_works(store: Store, tmp_path: Path) -> None:
    commit_version(store, filled(new_version(store, "tone")))
    (tmp_path / "link").symlink_to(tmp_path / "home")
    found = current_version(Store(tmp_path / "link", ID), "tone")
    assert found is not None
    assert found.version == 1


@pytest.mark.parametrize(
    "content",
    [
        b"adapter/tone/versions/v0009\n",
        b"adapter/tone/versions\n",
        b"adapter/tone/versions/v0001-rejected\n",
        b"adapter/tone/versions/v0001\nadapter/tone/versions/v0001\n",
        b"/\n",
        b".\n",
        b"../\n",
        b"\xff\xfe\n",
        b"adapter/tone\0/versions/v0001\n",
        b"a/" * 4000 + b"v0001\n",
        b"x" * 5000,
    ],
)
def test_pointers_that_name_no_version(store: Store, content: bytes) -> None:
    (store.adapter_dir("tone") / "versions" / "v0001-rejected").mkdir(parents=True)
    (store.adapter_dir("tone") / "versions" / "v0001").mkdir()
    (store.adapter_dir("tone") / "current.txt").write_bytes(content)
    with pytest.raises(PointerError) as caught:
        current_version(store, "tone")
    assert "current.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


PIECES = st.sampled_from(
    ["..", ".", "", "adapter", "tone", "versions", "v0001", "v0002", "out", "/", "~", "v0001\n", "\0"]
)


@settings(max_examples=300, deadline=None)
@given(
    content=st.one_of(
        st.lists(PIECES, max_size=9).map("/".join),
        st.text(max_size=60),
        st.lists(PIECES, max_size=6).map(lambda parts: os.sep + "/".join(parts)),
    ),
    tail=st.sampled_from(["", "\n", "\r\n", " \n"]),
)
def test_no_pointer_leaves_the_store(tmp_path: Path, content: str, tail: str) -> None:
    store = Store(tmp_path / "home", ID)
    inside = store.adapter_dir("tone") / "versions" / "v0001"
    inside.mkdir(parents=True, exist_ok=True)
    (tmp_path / "v0001").mkdir(exist_ok=True)
    (store.home / "v0001").mkdir(exist_ok=True)
    if not (store.root / "out").is_symlink():
        (store.root / "out").symlink_to(tmp_path)
    (store.adapter_dir("tone") / "current.txt").write_bytes((content + tail).encode("utf-8", "surrogatepass"))
    try:
        found = current_version(store, "tone")
    except PointerError:
        return
    if found is not None:
        assert found.path.resolve().is_relative_to(store.root.resolve())
        assert found.path.resolve() == inside.resolve()
