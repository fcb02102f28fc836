"""Looking through source folders, against listing the files and reading them, in the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dlm_tui.document import Document, load
from dlm_tui.document.sources import FileMemory, survey_sources
from tests.benchmarks.harness import Row, at_most, paired, scratch

_HEAD = "---\ndlm_id: 01J8ZQ5M3V0000000000000001\ndlm_version: 15\nbase_model: pocket\ntraining:\n"
_LINE = "The boats come in with the tide, and the tide table hangs on the wall of the harbour office.\n"
_LOOK = """
import json, sys, tracemalloc
from pathlib import Path
from dlm_tui.document import load
from dlm_tui.document.sources import survey_sources

document = load(Path(sys.argv[1]))
tracemalloc.start()
found = survey_sources(document)
assert found.files
print(json.dumps(tracemalloc.get_traced_memory()))
"""


def rows(quick: bool) -> list[Row]:
    """A folder of 20,000 files with 200 MB of text (quick: a tenth), looked through the first time and again."""
    files = 2_000 if quick else 20_000
    document, size = _tree(files)
    memory = FileMemory(scratch() / "files.sqlite")
    _settle(document, memory)
    rounds = 3 if quick else 5

    def baseline() -> object:
        return _list_and_read(document)

    first = paired(lambda: survey_sources(document, FileMemory()), baseline, rounds=rounds, warmup=1)
    read = memory.read
    again = paired(lambda: survey_sources(document, memory), baseline, rounds=rounds, warmup=1)
    if memory.read != read:
        raise AssertionError(f"{memory.read - read} unchanged files were read again")
    kept, peak = _memory(document)
    if peak > size / 2:
        raise AssertionError(f"looking took {peak / 1e6:.0f} MB")
    what = f"{files:,} files, {size / 1e6:.0f} MB"
    bounded = f"peak {peak / 1e6:.0f} MB of Python objects while looking, {kept / 1e6:.0f} MB kept"
    walk = "os.walk and reading every file"
    return [
        at_most(f"source folder, first look ({what})", first, walk, 10, f"all read, judged, hashed; {bounded}"),
        at_most(f"source folder, second look ({what})", again, walk, 3, "no unchanged file was read"),
    ]


def _settle(document: Document, memory: FileMemory) -> None:
    """Look until nothing is read again: a file that was written a moment ago is not remembered yet."""
    read = -1
    while memory.read != read:
        read = memory.read
        survey_sources(document, memory)


def _tree(files: int) -> tuple[Document, int]:
    root = scratch() / "sources"
    size = 0
    for index in range(files):
        folder = root / "src" / f"d{index % 200:03d}" / f"e{index % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        text = f"{index}\n" + _LINE * 107
        size += len(text)
        (folder / f"f{index}.txt").write_text(text)
    path = root / "doc.dlm"
    path.write_text(f"{_HEAD}  sources: [{{path: src}}]\n---\n")
    return load(path), size


def _list_and_read(document: Document) -> int:
    """What `rg --files` followed by reading every file does."""
    assert document.path is not None
    total = 0
    for folder, _, names in os.walk(document.path.parent / "src"):
        for name in names:
            total += len(Path(folder, name).read_bytes())
    return total


def _memory(document: Document) -> tuple[int, int]:
    """Bytes of Python objects that looking keeps and takes at most, in a process that does nothing else."""
    done = subprocess.run([sys.executable, "-c", _LOOK, str(document.path)], capture_output=True, text=True, check=True)
    kept, peak = json.loads(done.stdout)
    return kept, peak
