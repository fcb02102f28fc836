"""Taking in folders: patterns in bounded time, hostile trees, files that change or vanish, what is remembered."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import sqlite3
import time
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_tui.document import Document, gate_probes, load, training_rows
from dlm_tui.document.errors import DirectivePathError
from dlm_tui.document.probes import PROSE_PROBE_CHARS
from dlm_tui.document.side_file import (
    SideFile,
    SideFileError,
    read_side_file,
    side_file_path,
    write_side_file,
)
from dlm_tui.document.sources import FileMemory, reading, survey, survey_sources, watch_sources
from dlm_tui.document.sources import memory as memory_module
from dlm_tui.document.sources.folder_config import make_config
from dlm_tui.document.sources.globs import compile_any
from dlm_tui.document.sources.scan import Outcome, SourceScan, expand_sources
from dlm_tui.document.sources.weights import copies, weight_distribution, weighted_rows
from dlm_tui.errors import Cancelled, DlmTuiError

_HEAD = "---\ndlm_id: 01J8ZQ5M3V0000000000000001\ndlm_version: 15\nbase_model: pocket\ntraining:\n"


def _document(folder: Path, training: str, body: str = "") -> Document:
    path = folder / "doc.dlm"
    path.write_text(f"{_HEAD}{training}---\n{body}")
    return load(path)


def _outcomes(scan: SourceScan) -> dict[str, Outcome]:
    return {outcome.label: outcome.outcome for outcome in scan}


def _backtracking(pattern: str) -> re.Pattern[str]:
    parts = {"*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/?|\*|\?|[^*?]", pattern, re.DOTALL)
    return re.compile("".join(".*" if t.startswith("**") else parts.get(t) or re.escape(t) for t in tokens))


@given(st.text("ab/*?\n", max_size=12), st.text("ab/\n", max_size=12))
def test_every_way_to_match_gives_what_the_rules_say(pattern: str, text: str) -> None:
    wanted = _backtracking(pattern).fullmatch(text) is not None
    assert compile_any([pattern])(text) == wanted
    assert compile_any([pattern])(text) == wanted
    assert compile_any(["zz", pattern])(text) == wanted


def test_many_stars_do_not_make_matching_slow() -> None:
    matches = compile_any(["**a" * 40 + "b"])
    start = time.process_time()
    assert not matches("a" * 4000)
    assert matches("a" * 4000 + "b")
    assert time.process_time() - start < 2


def test_a_long_pattern_is_neither_compiled_nor_matched_slowly() -> None:
    start = time.process_time()
    assert compile_any(["*" * 900_001 + "xt"])("a/b/file.txt")
    assert not compile_any(["*a*b*c" * 100_000])("a/b/file.txt")
    assert time.process_time() - start < 4


def test_an_ignore_file_of_very_many_rules() -> None:
    warned: list[str] = []
    plain = "".join(f"name{number}\n" for number in range(90_000)) + "!name5\n"
    start = time.process_time()
    config = make_config("/a", "", None, plain.encode(), warned.append)
    assert [negate for negate, matches in config.judges if matches("b/name5")] == [False, True]
    assert [negate for negate, matches in config.judges if matches("b/name89999")] == [False]
    assert (len(config.rules), warned) == (90_001, [])
    assert make_config("/a", "", None, b"a*\n!b*\n" * 100_000, warned.append).rules == ()
    assert ".dlm/ignore is not used" in warned[0]
    assert time.process_time() - start < 8


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("dlm_training_version: true", True),
        ("dlm_training_version: 1.0", True),
        ("dlm_training_version: '1'", False),
        ("weights: {a: {b: .inf, c: .nan}}", True),
        ("weights: {a: {true: 1}}", False),
        ("metadata: {a: null}", False),
        ("include: null", False),
        ("- a", False),
        ("", True),
        ("# nothing", True),
        ("a: &a [*a]", False),
    ],
)
def test_training_yaml(text: str, valid: bool) -> None:
    warnings: list[str] = []
    config = make_config("/x", "", text.encode(), None, warnings.append)
    assert (config.training is not None) == valid
    assert len(warnings) == (0 if valid else 1)


def test_a_tree_of_traps_is_counted_and_never_fatal(tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "deep").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "nul.txt").write_bytes(b"x\0")
    (source / "latin.txt").write_bytes(b"caf\xe9")
    (source / "line\nfeed\x1b[31m.txt").write_text("x")
    (source / "loop").symlink_to("loop")
    (source / "up").symlink_to("..")
    (source / "gone.txt").symlink_to("nothing")
    os.mkfifo(source / "pipe.txt")
    os.mkfifo(source / ".dlm-pipe")
    (source / ".dlm").mkdir()
    os.mkfifo(source / ".dlm/ignore")
    (source / "deep/.dlm").write_text("a file, not a folder")
    (source / b"bad\xff.txt".decode("utf-8", "surrogateescape")).write_text("x")
    scan = SourceScan(_document(tmp_path, "  sources: [{path: src}]\n"))
    assert _outcomes(scan) == {
        "a.txt": "ingested",
        "nul.txt": "binary",
        "latin.txt": "encoding",
        "line\nfeed\x1b[31m.txt": "ingested",
        "bad\udcff.txt": "name",
        "deep/.dlm": "ingested",
    }
    assert scan.warning_count == 3
    assert all(warning.encode() for warning in scan.warnings)


def test_a_folder_that_vanishes_in_the_middle_is_counted(tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "b").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "b/c.txt").write_text("c")
    (source / "d.txt").write_text("d")
    scan = SourceScan(_document(tmp_path, "  sources: [{path: src}]\n"))
    seen = {}
    for outcome in scan:
        seen[outcome.label] = outcome.outcome
        if outcome.label == "a.txt":
            (source / "b/c.txt").unlink()
            (source / "b").rmdir()
            (source / "d.txt").unlink()
    assert seen == {"a.txt": "ingested", "b/": "unreadable", "d.txt": "unreadable"}


def test_a_file_that_grows_while_it_is_read_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.txt").write_text("x")
    real = reading.os.fstat

    def growing(descriptor: int) -> os.stat_result:
        with (tmp_path / "log.txt").open("a") as handle:
            handle.write("more")
        return real(descriptor)

    monkeypatch.setattr(reading.os, "fstat", growing)
    scan = SourceScan(_document(tmp_path, "  sources: [{path: log.txt}]\n"))
    assert _outcomes(scan) == {"log.txt": "unreadable"}
    assert "changed while it was read" in scan.warnings[0]


def test_strict_reads_neither_files_nor_configurations_through_links_that_leave_the_source(tmp_path: Path) -> None:
    source, other = tmp_path / "src", tmp_path / "other"
    (source / "sub").mkdir(parents=True)
    (other / ".dlm").mkdir(parents=True)
    (other / ".dlm/ignore").write_text("*\n")
    (other / "secret.txt").write_text("s")
    (source / "a.txt").write_text("a")
    (source / "inside.txt").symlink_to("a.txt")
    (source / "leak.txt").symlink_to("../other/secret.txt")
    (source / ".dlm").symlink_to("../other/.dlm")
    training = "  sources: [{path: src}]\n"
    assert _outcomes(SourceScan(_document(tmp_path, training))) == dict.fromkeys(
        ("a.txt", "inside.txt"), "by_descent"
    ) | {"leak.txt": "ingested"}
    scan = SourceScan(_document(tmp_path, training + "  sources_policy: strict\n"))
    assert _outcomes(scan) == {"a.txt": "ingested", "inside.txt": "ingested", "leak.txt": "outside"}


@pytest.mark.parametrize("path", ["~nosuchuser42/x", '"a\\0b"', "round"])
def test_a_path_that_means_nothing_is_a_path_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(DirectivePathError):
        SourceScan(_document(tmp_path, f"  sources: [{{path: {path}}}]\n"))


def test_a_folder_trains_the_adapter_it_is_bound_to(tmp_path: Path) -> None:
    for name in ("tone", "facts", "facts/deep", "other"):
        (tmp_path / "src" / name).mkdir(parents=True)
        (tmp_path / "src" / name / "x.txt").write_text(f"about {name}")
    document = _document(tmp_path, "  adapters: {tone: {}, facts: {}}\n  sources: [{path: src}]\n")
    bindings = {"src/tone": "tone", "src/facts": "facts", "./src/facts/deep": "tone"}
    write_side_file(side_file_path(tmp_path / "doc.dlm"), SideFile(source_adapters=bindings))
    expanded, _ = expand_sources(document)
    assert [section.adapter for section in expanded.sections] == ["tone", "facts", None, "tone"]
    assert [probe.adapter for probe in gate_probes(expanded)] == ["tone", "facts", "tone"]
    short, _ = expand_sources(document, only_bound=True, characters=PROSE_PROBE_CHARS)
    assert [section.section_id for section in short.sections] == [
        section.section_id for section in expanded.sections if section.adapter
    ]
    assert gate_probes(short)[0].prompt == gate_probes(expanded)[0].prompt


def test_a_binding_to_an_adapter_that_is_not_there_is_said(tmp_path: Path) -> None:
    write_side_file(side_file_path(tmp_path / "doc.dlm"), SideFile(source_adapters={"src": "nobody"}))
    (tmp_path / "src").mkdir()
    with pytest.raises(SideFileError, match="'nobody', but the document has default"):
        expand_sources(_document(tmp_path, "  sources: [{path: src}]\n"))


def test_weights_repeat_and_drop_rows_by_tag(tmp_path: Path) -> None:
    (tmp_path / "src/old/.dlm").mkdir(parents=True)
    (tmp_path / "src/.dlm").mkdir()
    (tmp_path / "src/.dlm/training.yaml").write_text("metadata: {age: new}\nweights: {age: {new: 2, old: 0}}\n")
    (tmp_path / "src/old/.dlm/training.yaml").write_text("metadata: {age: old}\n")
    for name in ("a.txt", "b.txt", "old/c.txt"):
        (tmp_path / "src" / name).write_text(name)
    expanded, scan = expand_sources(_document(tmp_path, "  sources: [{path: src}]\n", "By hand.\n"))
    rows = weighted_rows(training_rows(expanded), expanded, scan.weights)
    assert [(row.text.splitlines()[-1], row.sub_index) for row in rows] == [
        ("By hand.", 0),
        ("a.txt", 0),
        ("a.txt", 1),
        ("b.txt", 0),
        ("b.txt", 1),
    ]
    assert weight_distribution(training_rows(expanded), expanded, scan.weights) == {"age": {"new": 2, "old": 1}}
    with pytest.raises(DlmTuiError, match="drop every row"):
        weighted_rows(rows[1:], expanded, {"age": {"new": 0.0}})
    with pytest.raises(DlmTuiError, match="finite"):
        weighted_rows(rows, expanded, {"age": {"new": float("inf")}})


def test_a_fraction_is_drawn_from_seed_and_id() -> None:
    drawn = [copies(1.25, 7, f"{index:016x}") for index in range(4000)]
    assert set(drawn) == {1, 2}
    assert 0.22 < drawn.count(2) / 4000 < 0.28
    digest = hashlib.blake2b(b"7:0000000000000000", digest_size=8).digest()
    assert drawn[0] == 1 + (int.from_bytes(digest, "big") / 2**64 < 0.25)


def test_the_side_file_survives_writing_and_reading(tmp_path: Path) -> None:
    path = side_file_path(tmp_path / "notes.dlm")
    assert path.name == "notes.dlm.tui.toml"
    assert read_side_file(path) == SideFile()
    content = SideFile(source_adapters={'a"b\\c\n\x1b é': "tone"})
    write_side_file(path, content)
    assert read_side_file(path) == content


@pytest.mark.parametrize("text", ["a = ", "unknown = 1", "[source_adapters]\nx = 3", "\udcff"])
def test_a_bad_side_file_is_one_sentence_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.dlm.tui.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SideFileError, match=re.escape(str(path))):
        read_side_file(path)


def test_files_that_have_not_changed_are_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / "src" / name).write_text(name)
    (tmp_path / "src/d.bin").write_bytes(b"\0")
    _age(tmp_path / "src")
    document, where = _document(tmp_path, "  sources: [{path: src}]\n"), tmp_path / "cache/files.sqlite"
    memory = FileMemory(where)
    first = survey_sources(document, memory)
    assert memory.read == 4
    assert survey_sources(document, memory) == first
    assert memory.read == 4
    memory = FileMemory(where)
    assert survey_sources(document, memory) == first
    assert memory.read == 0
    (tmp_path / "src/b.txt").write_text("B.txt")
    (tmp_path / "src/c.txt").unlink()
    os.utime(tmp_path / "src/a.txt")
    second = survey_sources(document, memory)
    assert memory.read == 2
    assert second.files[0].section_id == first.files[0].section_id
    assert second.files[1].section_id != first.files[1].section_id
    assert second.counts[0].skipped == {"binary": 1}
    assert second.news([file.section_id for file in first.files]) == (1, 2)


def test_a_damaged_memory_is_started_anew(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.txt").write_text("a")
    _age(tmp_path / "src")
    where = tmp_path / "files.sqlite"
    where.write_bytes(b"no database")
    document = _document(tmp_path, "  sources: [{path: src}]\n")
    survey_sources(document, FileMemory(where))
    memory = FileMemory(where)
    survey_sources(document, memory)
    assert memory.read == 0


def test_a_memory_that_another_process_writes_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.txt").write_text("a")
    _age(tmp_path / "src")
    document, where = _document(tmp_path, "  sources: [{path: src}]\n"), tmp_path / "files.sqlite"
    survey_sources(document, FileMemory(where))
    (tmp_path / "src/b.txt").write_text("b")
    _age(tmp_path / "src")
    real = sqlite3.connect
    monkeypatch.setattr(memory_module.sqlite3, "connect", lambda path: real(path, timeout=0.01))
    with contextlib.closing(real(where)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert len(survey_sources(document, FileMemory(where)).files) == 2
    monkeypatch.undo()
    memory = FileMemory(where)
    survey_sources(document, memory)
    assert memory.read == 1


def test_a_scan_stops_when_told_and_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").mkdir()
    for index in range(300):
        (tmp_path / f"src/{index}.txt").write_text("x")
    document = _document(tmp_path, "  sources: [{path: src}]\n")
    monkeypatch.setattr(survey, "_REPORT_SECONDS", 0.0)
    told: list[int] = []
    survey_sources(document, on_files=lambda files, _: told.append(files))
    assert told == [64, 128, 192, 256]
    with pytest.raises(Cancelled):
        survey_sources(document, stopped=lambda: True)


async def test_changes_of_source_files_and_of_the_side_file_are_seen(tmp_path: Path) -> None:
    (tmp_path / "src/deep").mkdir(parents=True)
    (tmp_path / "src/deep/a.txt").write_text("a")
    document = _document(tmp_path, "  adapters: {tone: {}, facts: {}}\n  sources: [{path: src}]\n")
    async with aclosing(watch_sources(document, FileMemory())) as surveys:
        assert (await anext(surveys)).per_adapter == {None: 1}
        following = asyncio.ensure_future(anext(surveys))
        await asyncio.sleep(0)
        (tmp_path / "src/deep/b.txt").write_text("b")
        while (found := await asyncio.wait_for(following, 120)).per_adapter != {None: 2}:
            following = asyncio.ensure_future(anext(surveys))
        write_side_file(side_file_path(tmp_path / "doc.dlm"), SideFile(source_adapters={"src": "tone"}))
        found = await asyncio.wait_for(anext(surveys), 20)
        assert found.per_adapter == {"tone": 2}
        (tmp_path / "src").rename(tmp_path / "gone")
        found = await asyncio.wait_for(anext(surveys), 20)
        assert "path does not exist" in found.error
        (tmp_path / "gone").rename(tmp_path / "src")
        found = await asyncio.wait_for(anext(surveys), 20)
        assert found.per_adapter == {"tone": 2}


def _age(folder: Path) -> None:
    """Wait until a later change of these files is sure to get another time."""
    newest = max(path.stat().st_ctime_ns for path in folder.rglob("*"))
    while time.time_ns() - newest <= memory_module._SETTLED_NS:
        time.sleep(0.005)
