"""Seeded mutations of the conformance corpus: only document errors come out, and everything read can be shown.

DLM_TUI_FUZZ sets the number of mutants, DLM_TUI_FUZZ_SEED where they start.
"""

from __future__ import annotations

import json
import os
import random

import pytest

from dlm_tui.document import DocumentError, body_problems, describe_document, describe_error, parse_bytes
from tests.interop.conformance_corpus import vectors

MUTANTS = int(os.environ.get("DLM_TUI_FUZZ", "30000"))
FIRST_SEED = int(os.environ.get("DLM_TUI_FUZZ_SEED", "0"))
_SHARDS = 4

_TOKENS = [
    token.encode()
    for token in (
        "---\n",
        "\n",
        "\r\n",
        "\r",
        "\t",
        "\0",
        "\ufeff",
        "\u2028",
        "\u0085",
        "\x0b",
        "```\n",
        "::prose::\n",
        "::instruction#tone::\n",
        "::preference#facts::\n",
        "::instruction::",
        '::image path="a" alt="b"::\n',
        '::audio path="a" transcript=""::\n',
        "::",
        "#",
        '="',
        "### Q\n",
        "### A\n",
        "### Q !probe\n",
        "### Prompt\n",
        "### Chosen\n",
        "### Rejected\n",
        '<!-- dlm-auto-harvest: source="x" -->\n',
        '<!-- dlm-auto-mined: judge_name="" mined_run_id="' + "9" * 5000 + '" -->\n',
        '<!-- dlm-auto-synth: synth_at="2026-W01-1" -->\n',
        "&a ",
        "*a",
        "<<: *a\n",
        "<<: [*a, *a]\n",
        "? ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ": ",
        "|\n",
        ">-\n",
        "!!int ",
        "!!float ",
        "!!bool ",
        "!!timestamp ",
        "!!binary ",
        "!!set ",
        "!!omap ",
        "!!str ",
        "!!null ",
        '"\\ud800"',
        '"\\x00"',
        "1:60:99",
        "1:30.5",
        "0x_",
        "-.inf",
        ".nan",
        "~",
        "2024-02-30",
        "2024-01-01T25:00:00Z",
        "9" * 5000,
        "training:\n",
        "  adapters: {tone: {}, facts: {}}\n",
        "  gate: {enabled: true}\n",
        "dlm_version: 1\n",
        "  dpo: {beta: 2}\n",
    )
]
_RAW = [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"]


def mutate(rng: random.Random, corpus: list[bytes]) -> bytes:
    """One document with one to four edits."""
    data = bytearray(rng.choice(corpus)[:6000])
    for _ in range(rng.randint(1, 4)):
        at, end = sorted(rng.randint(0, len(data)) for _ in range(2))
        end = min(end, at + rng.choice((1, 4, 40, 400)))
        kind = rng.randrange(8)
        if kind == 0:
            data[at:end] = b""
        elif kind == 1:
            data[at:at] = data[at:end] * rng.randint(1, 3)
        elif kind in (2, 3, 4):
            data[at:at] = rng.choice(_TOKENS)
        elif kind == 5 and data:
            data[min(at, len(data) - 1)] = rng.randrange(256)
        elif kind == 6:
            other = rng.choice(corpus)
            start = rng.randint(0, len(other))
            data[at:end] = other[start : start + rng.choice((10, 100, 1000))]
        else:
            data[at:at] = rng.choice(_RAW) if rng.random() < 0.2 else rng.choice(_TOKENS)
    return bytes(data)


@pytest.mark.parametrize("shard", range(_SHARDS))
def test_mutants_give_documents_or_document_errors(shard: int) -> None:
    corpus = [vector.data for vector in vectors()]
    parsed = refused = 0
    for seed in range(FIRST_SEED + shard, FIRST_SEED + MUTANTS, _SHARDS):
        data = mutate(random.Random(seed), corpus)
        try:
            document = parse_bytes(data)
            shown = describe_document(document)
            lines = data.count(b"\n") + data.count(b"\r") + 1
            assert all(1 <= problem.line <= lines for problem in body_problems(document))
            parsed += 1
        except DocumentError as error:
            shown = describe_error(error)
            assert error.line >= 0 and error.col >= 0
            refused += 1
        except Exception as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}\n{data!r}")
        json.dumps(shown, ensure_ascii=False, allow_nan=False).encode("utf-8")
    assert parsed > 0 and refused > 0
    print(f"shard {shard}: {parsed} parsed, {refused} refused")
