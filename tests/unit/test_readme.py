"""What the README shows works as it stands."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from dlm_tui.cli.main import COMMANDS
from dlm_tui.document import fresh_dlm_id, gate_samples, parse_bytes

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_the_example_document_is_valid() -> None:
    example = re.search(r"this one is complete:\n\n((?:    .*\n|\n)+)", README)
    assert example is not None
    text = textwrap.dedent(example.group(1)).replace("dlm_id: \u2026", f"dlm_id: {fresh_dlm_id()}")
    document = parse_bytes(text.encode())
    assert document.adapter_names == ("facts", "tone")
    assert gate_samples(document) == {"facts": 1, "tone": 0}


def test_every_command_is_shown() -> None:
    for command in COMMANDS:
        shown = "dlm-tui [DOC]" if command == "open" else f"dlm-tui {command}"
        assert shown in README, command


def test_pictures_exist() -> None:
    for path in re.findall(r"\]\((assets/[^)]+)\)", README):
        assert (Path(__file__).resolve().parents[2] / path).exists(), path
