"""Appending a section leaves every other byte and every other section alone."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlm_tui.document import (
    BodyError,
    Document,
    DocumentError,
    append_section,
    instruction_content,
    load,
    parse_bytes,
    preview_section,
)
from dlm_tui.document.replacing import ReadOnlyDocument, save_document
from dlm_tui.errors import UsageError

SEEN = b"one two three"
HEAD = """---
dlm_id: 01J9ZK4M2N6P8Q0R1S3T5V7W9X
dlm_version: 15
base_model: smollm2-135m
training:
  adapters: {tone: {}, facts: {}}
---
"""
PAIR = instruction_content("What is it?", "It is that.")


def write(path: Path, text: str | bytes) -> Document:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load(path)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("body", ["", "\n", "\n\n", "\nprose", "\nprose\n", "\nprose\n\n\n", "::instruction::\n\nx"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_append_keeps_bytes_sections_and_line_ends(tmp_path: Path, newline: str, body: str, bom: str) -> None:
    path = tmp_path / "a.dlm"
    before = write(path, bom + (HEAD + body).replace("\n", newline))
    data = path.read_bytes()
    result = append_section(path, before.sha256, type="instruction", adapter="tone", content=PAIR)
    after = load(path)
    grown = path.read_bytes()
    assert grown.startswith(data) and grown[result.offset :] == result.added_text.encode()
    assert after.sections[:-1] == before.sections
    added = after.sections[-1]
    assert (added.type, added.adapter, added.content) == ("instruction", "tone", PAIR)
    assert (added.start_line, added.section_id) == (result.line, result.section_id)
    assert result.added_text.replace(newline, "").count("\r") == 0
    assert result.added_text.count("\n") in (0 if newline == "\r" else result.added_text.count(newline),)
    assert grown.endswith(newline.encode()) == data.endswith(newline.encode())
    assert after.sha256 == result.sha256


@pytest.mark.parametrize(
    "content", ["text", "text\n", "text\n\n\n", "\n\ntext", "  text  ", "a\r\nb", "```\n::x::\n```"]
)
@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
def test_prose_content_reads_back_exactly(tmp_path: Path, content: str, ending: str) -> None:
    path = tmp_path / "a.dlm"
    before = write(path, HEAD + "\nhello" + ending)
    append_section(path, before.sha256, type="prose", adapter=None, content=content)
    assert load(path).sections[-1].content == content.replace("\r\n", "\n")


@pytest.mark.parametrize(("gap", "lead"), [(0, 0), (1, 0), (2, 0), (1, 1), (0, 1)])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_the_habit_of_blank_lines_around_fences_is_kept(
    tmp_path: Path, gap: int, lead: int, newline: str, end: str
) -> None:
    path = tmp_path / "a.dlm"
    sections = [f"::prose#tone::\n{chr(10) * lead}text {n}" for n in range(3)]
    before = write(path, (HEAD + ("\n" * (1 + gap)).join(sections) + end).replace("\n", newline))
    data = path.read_bytes()
    result = append_section(path, before.sha256, type="prose", adapter="tone", content="new")
    grown = path.read_bytes()
    wanted = (HEAD + ("\n" * (1 + gap)).join([*sections, f"::prose#tone::\n{chr(10) * lead}new"])).replace(
        "\n", newline
    )
    blank_at_end = max(0, len(end) - 1 - gap)
    if not blank_at_end:
        assert grown == (wanted + ("\n" if end else "").replace("\n", newline)).encode()
    assert grown.startswith(data), "no byte that was there is touched"
    after = load(path)
    assert [section.content.strip("\n") for section in after.sections] == ["text 0", "text 1", "text 2", "new"]
    assert after.sections[:2] == before.sections[:2]
    assert preview_section(data, type="prose", adapter="tone", content="new") == result.added_text
    assert path.read_bytes()[: result.offset] == data and result.previous_sha256 == before.sha256


def test_preview_is_what_is_added(tmp_path: Path) -> None:
    path = tmp_path / "a.dlm"
    before = write(path, HEAD + "\nprose\n")
    data = path.read_bytes()
    preview = preview_section(data, type="instruction", adapter="facts", content=PAIR)
    result = append_section(path, before.sha256, type="instruction", adapter="facts", content=PAIR)
    assert result.added_text == preview == f"::instruction#facts::\n{PAIR}\n"
    assert path.read_bytes()[: result.offset] == data and result.previous_sha256 == before.sha256


def test_a_save_that_came_between_is_built_on(tmp_path: Path) -> None:
    path = tmp_path / "a.dlm"
    before = write(path, HEAD + "\nprose\n")
    path.write_bytes(path.read_bytes() + b"edited\n")
    edited = path.read_bytes()
    result = append_section(path, before.sha256, type="prose", adapter="tone", content="more")
    assert path.read_bytes() == edited + b"::prose#tone::\nmore\n"
    assert result.previous_sha256 == parse_bytes(edited).sha256 != before.sha256


@pytest.mark.parametrize("moment", ["before the last look", "after the last look"])
@pytest.mark.parametrize("swaps", [True, False])
def test_an_editor_that_saves_at_the_last_moment_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, swaps: bool
) -> None:
    from dlm_tui.document import replacing

    path = tmp_path / "a.dlm"
    before = write(path, HEAD + "\nprose\n")
    saved = path.read_bytes() + b"the editor's line\n"
    saves = iter([saved])
    write_scratch, exchange = replacing.write_scratch, replacing.exchange_names

    def editor_saves() -> None:
        for data in saves:
            scratch = tmp_path / "editor"
            scratch.write_bytes(data)
            scratch.replace(path)

    def slow_write(target: Path, data: bytes) -> Path:
        scratch = write_scratch(target, data)
        if moment == "before the last look":
            editor_saves()
        return scratch

    def slow_exchange(one: Path, other: Path) -> bool:
        if moment == "after the last look" and swaps:
            editor_saves()
        return swaps and exchange(one, other)

    monkeypatch.setattr(replacing, "write_scratch", slow_write)
    monkeypatch.setattr(replacing, "exchange_names", slow_exchange)
    append_section(path, before.sha256, type="prose", adapter="tone", content="more")
    wanted = saved if moment == "before the last look" or swaps else (HEAD + "\nprose\n").encode()
    assert path.read_bytes() == wanted + b"::prose#tone::\nmore\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.dlm"]


APPEND = """
import sys
from pathlib import Path
from dlm_tui.document import append_section, load
path = Path(sys.argv[1])
for number in range(8):
    sha = load(path).sha256
    append_section(path, sha, type="prose", adapter="tone", content=f"{sys.argv[2]} {number}")
"""


def test_four_processes_that_label_at_once_lose_no_section(tmp_path: Path) -> None:
    path = tmp_path / "a.dlm"
    write(path, HEAD + "\nprose\n")
    command = [sys.executable, "-c", APPEND, str(path)]
    writers = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0, 0]
    texts = {section.content for section in load(path).sections}
    assert texts >= {f"{who} {number}" for who in range(4) for number in range(8)}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.dlm"]


def test_a_read_only_document_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dlm"
    before = write(path, HEAD + "\nprose\n")
    path.chmod(0o444)
    with pytest.raises(ReadOnlyDocument, match="read-only"):
        append_section(path, before.sha256, type="prose", adapter=None, content="more")
    assert load(path).sha256 == before.sha256


def test_hard_links_stay_one_file(tmp_path: Path) -> None:
    path, other = tmp_path / "a.dlm", tmp_path / "b.dlm"
    before = write(path, HEAD + "\nprose\n")
    data = path.read_bytes()
    other.hardlink_to(path)
    result = append_section(path, before.sha256, type="prose", adapter="tone", content="more")
    assert path.samefile(other) and load(other).sha256 == result.sha256
    assert path.read_bytes()[: result.offset] == data


@pytest.mark.parametrize(
    "data", [b"", b"one", b"one two thr", b"one TWO three and more", b"TWO three", b"one two threE", SEEN]
)
@pytest.mark.parametrize("full", [False, True])
def test_any_change_to_a_file_with_two_names_is_whole_or_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, full: bool
) -> None:
    path, other = tmp_path / "a.dlm", tmp_path / "b.dlm"
    path.write_bytes(SEEN)
    other.hardlink_to(path)
    if full:
        real, calls = os.fsync, []

        def refuse_once(number: int) -> None:
            calls.append(number)
            if len(calls) == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(number)

        monkeypatch.setattr(os, "fsync", refuse_once)
        with pytest.raises(OSError, match="No space"):
            save_document(path, SEEN, data)
    else:
        save_document(path, SEEN, data)
    assert path.samefile(other) and path.read_bytes() == (SEEN if full else data)


def test_the_scratch_of_a_killed_label_is_cleared_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.dlm"
    before = write(path, HEAD + "\nprose\n")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f"a.dlm.tmp.{ended.pid}.0123abcd").write_bytes(path.read_bytes())
    living = tmp_path / f"a.dlm.tmp.{os.getppid()}.0123abcd"
    living.write_bytes(b"x")
    append_section(path, before.sha256, type="prose", adapter=None, content="more")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.dlm", living.name]


@pytest.mark.parametrize(
    ("section_type", "adapter", "content", "error"),
    [
        ("prose", None, "one\n::instruction::\ntwo", UsageError),
        ("prose", None, "::story::", UsageError),
        ("prose", None, "```\nopen", UsageError),
        ("prose", None, " \n", UsageError),
        ("prose", "ghost", "text", UsageError),
        ("image", None, "text", UsageError),
        ("prose", None, "\ud800", UsageError),
        ("instruction", "tone", '<!-- dlm-auto-harvest: source="x" -->\n' + PAIR, UsageError),
        ("instruction", "tone", "no headers", BodyError),
        ("instruction", "tone", "", BodyError),
        ("preference", "tone", PAIR, BodyError),
    ],
)
def test_content_that_would_not_read_back_is_refused(
    tmp_path: Path, section_type: str, adapter: str | None, content: str, error: type[Exception]
) -> None:
    path = tmp_path / "a.dlm"
    before = write(path, HEAD + "\nprose\n")
    data = path.read_bytes()
    with pytest.raises(error):
        append_section(path, before.sha256, type=section_type, adapter=adapter, content=content)
    assert path.read_bytes() == data
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.dlm"]


def test_a_broken_document_is_not_extended(tmp_path: Path) -> None:
    data = (HEAD + "\n```\nopen\n").encode()
    with pytest.raises(DocumentError):
        preview_section(data, type="prose", adapter=None, content="x")


def test_symbolic_links_and_modes_survive(tmp_path: Path) -> None:
    target = tmp_path / "real.dlm"
    before = write(target, HEAD + "\nprose\n")
    target.chmod(0o640)
    link = tmp_path / "link.dlm"
    link.symlink_to(target)
    result = append_section(link, before.sha256, type="prose", adapter=None, content="more")
    assert link.is_symlink() and parse_bytes(target.read_bytes()).sha256 == result.sha256
    assert target.stat().st_mode & 0o777 == 0o640
