"""What a training says before it loads a base: somebody else trains, or the disk is full."""

from __future__ import annotations

import os
import shutil
import threading
from collections import namedtuple
from contextlib import nullcontext
from pathlib import Path

import pytest

from dlm_tui.document import load
from dlm_tui.store import Store, StoreError, refuse_full_disk, run_lock
from dlm_tui.store.errors import LockHeld
from dlm_tui.store.versions import all_versions
from dlm_tui.training import refuse_before_base
from tests.adapter_versions import finished_training
from tests.tui.document import write_document

_Usage = namedtuple("_Usage", "total used free")


def test_the_one_who_trains_is_named(tmp_path: Path) -> None:
    document = load(write_document(tmp_path))
    store = Store(tmp_path / "home", document.dlm_id)
    refuse_before_base(document, store, None)
    assert not store.root.exists(), "nothing is made by asking"
    store.create()
    refuse_before_base(document, store, None)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with run_lock(store):
            held.set()
            done.wait()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    try:
        with pytest.raises(LockHeld, match=rf"another run is training this document \(process {os.getpid()} on "):
            refuse_before_base(document, store, None)
    finally:
        done.set()
        other.join()
    refuse_before_base(document, store, None)


def test_a_full_disk_is_noticed_and_the_folder_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "home", "0" * 26)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: _Usage(1 << 30, 1 << 30, 3 << 20))
    with pytest.raises(StoreError, match=rf"only 3 MiB are free in {tmp_path}, and a training may write 16 MiB"):
        refuse_full_disk(store, ["tone"])


def test_the_disk_needs_room_for_what_is_trained_not_for_every_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, "01JEXPXRTTESTSEXPXRTTESTSE").create()
    for run in (1, 2, 3):
        finished_training(store, "tone", run=run)
    for version in all_versions(store, "tone"):
        (version.path / "adapter_model.safetensors").write_bytes(bytes(4 << 20))
    needs = {"gate_only": 1 << 20, "tone": 24 << 20, "facts": 16 << 20}
    for what, need in needs.items():
        for free in (need - 1, need):
            monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: _Usage(1 << 40, 1 << 40, free))
            with nullcontext() if free == need else pytest.raises(StoreError, match="a training may write"):
                refuse_full_disk(store, [what], gate_only=what == "gate_only")
