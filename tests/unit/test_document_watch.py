"""Saves are noticed quickly, whatever way the editor writes."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from dlm_tui.document import Change, DocumentError, load, watch_document
from dlm_tui.files import write_atomic

HEAD = "---\ndlm_id: 01J9ZK4M2N6P8Q0R1S3T5V7W9X\nbase_model: smollm2-135m\n---\n\n"


async def following(changes: AsyncGenerator[Change, None]) -> Change:
    return await asyncio.wait_for(anext(changes), timeout=120)


async def started(path: Path, changes: AsyncGenerator[Change, None]) -> None:
    """Two saves have come through: the second one can only come from the running watch, which keeps events."""
    for text in ("first warm up", "warm up"):
        path.write_text(HEAD + text)
        assert (await following(changes)).document is not None


async def test_saves_of_all_kinds_are_seen_without_the_poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlm_tui.document.watch._POLL_MS", 8000)
    path = tmp_path / "a.dlm"
    path.write_text(HEAD + "first")
    known = load(path).sha256
    async with aclosing(watch_document(path, known)) as changes:
        await started(path, changes)
        delays = []
        for round_number in range(6):
            text = HEAD + f"save {round_number}"
            begun = time.perf_counter()
            if round_number % 3 == 0:
                path.write_text(text)
            elif round_number % 3 == 1:
                write_atomic(path, text.encode())
            else:
                path.replace(tmp_path / "a.dlm~")
                path.write_text(text)
            change = await following(changes)
            while change.document is None:
                change = await following(changes)
            delays.append(time.perf_counter() - begun)
            assert change.document.sections[0].content == f"save {round_number}"
    # a watch that lived on its poll would take eight seconds each; quick to the eye is measured elsewhere
    assert statistics.median(delays) < 4.0, delays


async def test_a_broken_save_is_an_error_item_and_a_repair_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.dlm"
    path.write_text(HEAD + "first")
    async with aclosing(watch_document(path, load(path).sha256)) as changes:
        await started(path, changes)
        path.write_text(HEAD + "::story::\n")
        broken = await following(changes)
        assert broken.document is None and isinstance(broken.error, DocumentError) and broken.error.line == 6
        path.write_text(HEAD + "warm up")
        assert (await following(changes)).document is not None
        path.unlink()
        gone = await following(changes)
        assert gone.document is None and gone.error is not None and "cannot read" in str(gone.error)
        path.write_text(HEAD + "warm up")
        assert (await following(changes)).document is not None


async def test_only_new_content_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.dlm"
    path.write_text(HEAD + "first")
    async with aclosing(watch_document(path, load(path).sha256)) as changes:
        await started(path, changes)
        (tmp_path / "other.dlm").write_text("noise")
        path.touch()
        path.write_text(HEAD + "warm up")
        path.write_text(HEAD + "second")
        change = await following(changes)
        assert change.document is not None and change.document.sections[0].content == "second"


async def test_a_save_before_the_watch_started_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.dlm"
    path.write_text(HEAD + "first")
    known = load(path).sha256
    path.write_text(HEAD + "second")
    async with aclosing(watch_document(path, known)) as changes:
        change = await following(changes)
        assert change.document is not None and change.document.sections[0].content == "second"


async def test_a_link_to_a_document_elsewhere_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "a.dlm"
    target.write_text(HEAD + "first")
    link = tmp_path / "link.dlm"
    link.symlink_to(target)
    async with aclosing(watch_document(link, load(link).sha256)) as changes:
        await started(target, changes)
        target.write_text(HEAD + "second")
        change = await following(changes)
        assert change.document is not None and change.document.sections[0].content == "second"


async def test_a_folder_that_goes_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "a.dlm"
    path.write_text(HEAD + "first")
    async with aclosing(watch_document(path, load(path).sha256)) as changes:
        await started(path, changes)
        folder.rename(tmp_path / "aside")
        assert (await following(changes)).error is not None
        (tmp_path / "aside").rename(folder)
        assert (await following(changes)).document is not None
