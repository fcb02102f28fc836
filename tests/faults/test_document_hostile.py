"""Hostile documents end in an error or a result, and the cost grows with their size, not faster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dlm_tui.document import (
    Document,
    DocumentError,
    FrontmatterError,
    SchemaValidationError,
    body_problems,
    gate_probes,
    load,
    parse_bytes,
    route_sections,
    training_rows,
)
from dlm_tui.errors import DlmTuiError

HEAD = "---\ndlm_id: 01J9ZK4M2N6P8Q0R1S3T5V7W9X\nbase_model: b\ntraining: {adapters: {tone: {}, facts: {}}}\n---\n"
MIB = 1 << 20


def yaml_document(frontmatter: str) -> bytes:
    return f"---\n{frontmatter}\n---\nx".encode()


def aliases(first: str, item: str) -> str:
    """Ten levels, each holding the level before ten times."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} " + item % ",".join([f"*a{i - 1}"] * 10) for i in range(1, 11)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "frontmatter",
    [
        aliases("[x]", "[%s]"),
        aliases("{x: 1}", "{<<: [%s]}"),
        aliases("{x: 1}", "{k: [%s]}"),
        "[" * 100_000,
        "{a: " * 100_000,
        "- " * 100_000,
        "? " * 100_000,
        "\n".join(" " * depth + "a:" for depth in range(1000)),
        "seed: " + "9" * 5000,
        "seed: 0x" + "f" * 100_000,
        "seed: 1" + ":59" * 100_000,
        "a: 1" + ":59" * 100_000 + ".5",
        "a: !!timestamp nonsense",
        "a: !!int ''",
        "a: !!bool perhaps",
        "a: 2024-13-45",
        "a: 0x_",
        "x: " + "y" * (2 * MIB),
        "a: \0",
    ],
    ids=lambda text: text[:24],
)
def test_yaml_bombs_are_frontmatter_errors(frontmatter: str) -> None:
    begun = time.process_time()
    with pytest.raises(FrontmatterError) as caught:
        parse_bytes(yaml_document(frontmatter))
    assert len(str(caught.value)) < 10_000
    # A bomb that went off would take minutes; an honest refusal takes a fraction of a second.
    assert time.process_time() - begun < 60


@pytest.mark.parametrize("frontmatter", ["a: &a [*a]", "training: &t {adapters: {tone: *t}}"])
def test_an_alias_that_holds_itself_is_a_value_of_a_wrong_type(frontmatter: str) -> None:
    with pytest.raises(SchemaValidationError) as caught:
        parse_bytes(yaml_document(frontmatter))
    assert len(str(caught.value)) < 10_000


def linear(make: Callable[[int], bytes], sizes: tuple[int, int], work: Callable[[bytes], object]) -> None:
    """Processor time per unit may not grow from the small to the large size (margin of four, best of several)."""

    def seconds_per_unit(size: int, rounds: int) -> float:
        data = make(size)
        best = float("inf")
        for _ in range(rounds):
            begun = time.process_time()
            work(data)
            best = min(best, time.process_time() - begun)
        return best / size

    small, large = seconds_per_unit(sizes[0], 5), seconds_per_unit(sizes[1], 1)
    for _ in range(4):
        if large < 4 * small:
            break
        # a busy machine slows one measurement; what grows is slow in each
        large = min(large, seconds_per_unit(sizes[1], 1))
    assert large < 4 * small, f"{small * 1e6:.2f} µs per unit became {large * 1e6:.2f}"


def many_sections(count: int) -> bytes:
    kinds = (
        "::instruction#tone::\n### Q\nq{}\n### A\na\n",
        "::prose#facts::\ntext {}\n",
        '::preference::\n<!-- dlm-auto-harvest: source="s" -->\n### Prompt\np{}\n### Chosen\nc\n### Rejected\nr\n',
        '::image path="a{}.png"::\ncaption\n',
    )
    return (HEAD + "".join(kinds[i % 4].format(i) for i in range(count))).encode()


def everything(data: bytes) -> Document:
    document = parse_bytes(data)
    gate_probes(document)
    body_problems(document)
    text = [i for routed in route_sections(document).values() for i in routed]
    training_rows(document, [i for i in text if not document.sections[i].is_media])
    return document


def test_time_per_section_stays_flat_from_a_thousand_to_a_hundred_thousand() -> None:
    assert len(everything(many_sections(1000)).sections) == 1000
    linear(many_sections, (1_000, 100_000), everything)


@pytest.mark.parametrize(
    "make",
    [
        lambda size: (HEAD + "x" * size).encode(),
        lambda size: (HEAD + "\0" * size).encode(),
        lambda size: (HEAD + "\r" * (size // 4)).encode(),
        lambda size: (HEAD + "::" + "a" * size + "::").encode(),
        lambda size: (HEAD + "::image" + " " * size).encode(),
        lambda size: (HEAD + "::image" + ' path="a"' * (size // 9) + " " * size).encode(),
        lambda size: (HEAD + "::preference::\n<!-- dlm-auto-mined:" + ' a="b"' * (size // 6) + " -->").encode(),
        lambda size: (HEAD + "::preference::\n<!-- dlm-auto-mined:" + " " * size + " -->").encode(),
        lambda size: (HEAD + "::instruction::\n### Q\nq\n### A\n" + "\u2028" * (size // 8)).encode(),
        lambda size: ("---\n" * (size // 4)).encode(),
    ],
    ids=["line", "nul", "cr", "fence", "spaces", "attributes", "marker", "marker-spaces", "separators", "dashes"],
)
def test_ten_megabyte_lines_cost_in_proportion(make: Callable[[int], bytes]) -> None:
    def work(data: bytes) -> None:
        try:
            everything(data)
        except DlmTuiError as error:
            assert len(str(error)) < 10_000

    linear(make, (MIB // 2, 10 * MIB), work)


_PEAK = """
import sys, tracemalloc
from dlm_tui.document import parse_bytes

data = sys.stdin.buffer.read()
tracemalloc.start()
parse_bytes(data)
print(tracemalloc.get_traced_memory()[1])
"""


def test_memory_is_a_small_multiple_of_the_input() -> None:
    data = (HEAD + "é" * (5 * MIB)).encode()
    # in a process of its own: what other threads of this one take would count, too
    done = subprocess.run([sys.executable, "-c", _PEAK], input=data, capture_output=True, check=True)
    assert len(data) < int(done.stdout) < 8 * len(data)


@pytest.mark.parametrize("bad", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
def test_invalid_utf8_names_the_byte(bad: bytes) -> None:
    data = HEAD.encode() + b"text " + bad + b" text"
    with pytest.raises(DocumentError) as caught:
        parse_bytes(data)
    assert getattr(caught.value, "byte_offset", None) == len(HEAD) + 5


def test_what_is_no_readable_file_is_one_sentence(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.dlm"
    os.mkfifo(fifo)
    loop = tmp_path / "loop.dlm"
    loop.symlink_to(loop)
    odd_names = [tmp_path / "absent.dlm", tmp_path / "a\0b", tmp_path / ("n" * 300)]
    for path in (tmp_path, fifo, loop, Path("/dev/zero"), *odd_names):
        with pytest.raises(DlmTuiError) as caught:
            load(path)
        assert caught.value.exit_code == 1 and "Traceback" not in str(caught.value)
    huge = tmp_path / "huge.dlm"
    with huge.open("wb") as handle:
        handle.truncate(1 << 40)
    with pytest.raises(DlmTuiError, match="larger than"):
        load(huge)
