"""Every vector of `training.sources`, through the library and through `parse --sources --json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import load, route_sections
from dlm_tui.document.errors import DirectiveError
from dlm_tui.document.sources.describe import describe_counts, describe_for_show
from dlm_tui.document.sources.scan import SourceScan, expand_sources
from tests.interop.shared_vectors import packed, shared
from tests.interop.source_trees import SourceVector, source_vectors, with_tree

_TOLD = ("type", "adapter", "section_id", "label", "content_sha256", "tags")
# (class, labels that are ingested, counters above zero besides the tool's) for what `preferred` says in words.
_PREFERRED: dict[str, tuple[str | None, list[str], dict[str, int]]] = {
    "007-path-unknown-user-tilde": ("DirectivePathError", [], {}),
    "014-policy-strict-inner-symlink-leaks": (None, ["a.txt"], {"skipped_outside": 1}),
    "049-names-not-utf8": (None, ["ok.txt"], {"skipped_name": 1}),
}


def _vectors(has: str = "") -> pytest.MarkDecorator:
    """For every vector, or those whose expectation has a key and that the tool does right."""
    chosen = [v for v in source_vectors() if not has or (has in v.expected and not v.preferred)]
    return pytest.mark.parametrize("vector", chosen, ids=lambda vector: vector.name)


@pytest.fixture
def document(vector: SourceVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The vector's document in its tree."""
    tree = tmp_path.resolve() / "tree"
    tree.mkdir()
    if "home" in vector.content:
        monkeypatch.setenv("HOME", str(tree / vector.content["home"]))
    return vector.lay_out(tree)


def _tree(vector: SourceVector, document: Path) -> Path:
    return document.parents[len(Path(vector.content["document_path"]).parts) - 1]


def _parse(document: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["parse", str(document), "--sources", "--json"])
    return code, json.loads(capsys.readouterr().out)


@_vectors()
def test_parse_command(vector: SourceVector, document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = with_tree(vector.expected, _tree(vector, document))
    code, got = _parse(document, capsys)
    if vector.preferred:
        error, labels, counters = _PREFERRED[vector.name]
        assert (got.get("error"), [section["label"] for section in got.get("ingested", [])]) == (error, labels)
        assert all(got["sources"][0][name] == count for name, count in counters.items())
    elif "error" in expected:
        assert code != 0
        assert got["ok"] is False
        assert got["error"] == expected["error"]["class"]
        if "resolved" in expected["error"]:
            assert (got["resolved"], got["root"]) == (expected["error"]["resolved"], expected["error"]["root"])
        if "reason" in expected["error"]:
            assert (got["source_path"], got["reason"]) == (expected["error"]["path"], expected["error"]["reason"])
    elif not vector.content.get("blob_store"):
        assert code == 0
        assert got["ingested"] == [{key: section[key] for key in _TOLD} for section in expected["sections"]]
        assert got["sources"] == expected["provenance"]
        assert got["discovered"] == expected["discovered"]
        assert got["weights"] == expected["weights"]
        assert bool(got["warnings"]) >= bool(expected["warnings"] and vector.content["topic"] != "bytes")


@_vectors("sections")
def test_texts_in_memory(vector: SourceVector, document: Path) -> None:
    expected = with_tree(vector.expected, _tree(vector, document))
    parsed = load(document)
    scan = SourceScan(parsed, with_text=True, with_media=bool(vector.content.get("blob_store")))
    sections = [(section, section.as_section()) for section in scan.sections()]
    for (found, section), wanted in zip(sections, expected["sections"], strict=True):
        assert found.origin.label == wanted["label"]
        for field in ("type", "adapter", "section_id", "start_line", "media_alt", "media_transcript", "media_blob_sha"):
            assert getattr(section, field) == wanted.get(field)
        assert len(section.content.encode()) == found.facts.content_bytes == wanted["content_bytes"]
        assert found.facts.content_sha256 == wanted["content_sha256"]
    assert [describe_counts(counts) for counts in scan.counts] == expected["provenance"]


@_vectors("show")
def test_what_show_tells(vector: SourceVector, document: Path) -> None:
    expected = with_tree(vector.expected, _tree(vector, document))
    parsed = load(document)
    scan: SourceScan | None
    try:
        scan = SourceScan(parsed)
        list(scan.sections())
    except DirectiveError:
        scan = None
    told = describe_for_show(parsed, scan)
    wanted = {key: value for key, value in expected["show"].items() if value}
    assert told == wanted


@_vectors("routing_after_expansion")
def test_routing_after_expansion(vector: SourceVector, document: Path) -> None:
    expanded, _ = expand_sources(load(document))
    ids = [section.section_id for section in expanded.sections]
    routes = {name: [ids[index] for index in indices] for name, indices in route_sections(expanded).items()}
    assert routes == vector.expected["routing_after_expansion"]


def test_the_packed_copy_is_the_shared_folder() -> None:
    if not shared("sources-vectors"):
        pytest.skip("there is no shared folder beside the repository")
    assert packed("sources-vectors") == shared("sources-vectors")
