"""Every conformance vector and table case, executed; none is skipped."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from dlm_tui.document import (
    DocumentError,
    InvalidMixSpecError,
    describe_document,
    describe_error,
    is_adapter_name,
    is_dlm_id,
    parse_bytes,
    parse_mix,
    section_id,
    split_side,
)
from dlm_tui.errors import DlmTuiError
from dlm_tui.store import parse_gate_config
from tests.interop.conformance_corpus import (
    TABLE_NAMES,
    Vector,
    packed_files,
    shared_files,
    table,
    vectors,
)

# Where the other tool lets a raw exception escape, we report what its own stage would: (class, line, reason).
DEVIATIONS = {
    "049-yaml-deep-nesting": ("FrontmatterError", 5, "its stack overflows; we bound the nesting depth"),
    "051-yaml-empty-binary-literal": ("FrontmatterError", 6, "its integer reader raises on 0b_ without digits"),
    "056-yaml-impossible-date": ("FrontmatterError", 5, "its date reader raises on a month 13"),
    "289-marker-synth-empty-strategy": ("FenceError", 7, "its section class raises without a position"),
}
_REMARKS = {
    "name",
    "category",
    "description",
    "note",
    "docs_mismatch",
    "upstream_bug",
    "suggested_error",
    "release_0_10_0",
    "message_contains",
}


@pytest.mark.parametrize("vector", vectors(), ids=lambda vector: vector.name)
def test_vector(vector: Vector) -> None:
    expected = {key: value for key, value in vector.expected.items() if key not in _REMARKS}
    try:
        got = describe_document(parse_bytes(vector.data))
    except DocumentError as error:
        got = describe_error(error)
    message = got.pop("message", "")
    if vector.name in DEVIATIONS:
        assert (got["error"], got["line"]) == DEVIATIONS[vector.name][:2]
        assert DEVIATIONS[vector.name][0] == vector.expected["suggested_error"]
        return
    hints = (message + " " + " ".join(got.get("fields", ()))).lower()
    if "fields" not in expected:
        got.pop("fields", None)
    # Compared as text, so that the order of keys counts and 1 is not 1.0 or true.
    assert json.dumps(got, indent=1, sort_keys=True) == json.dumps(expected, indent=1, sort_keys=True)
    assert json.dumps(got.get("frontmatter")) == json.dumps(expected.get("frontmatter"))
    for word in vector.expected.get("message_contains", ()):
        assert word.lower() in hints


def test_all_vectors_run_and_deviations_are_the_known_defects(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(vectors()) == 350
    suggested = {vector.name for vector in vectors() if vector.expected.get("suggested_error")}
    assert suggested == set(DEVIATIONS)
    counts = {name: len(table(name)) for name in TABLE_NAMES}
    assert sum(counts.values()) == 222
    source = "the shared folder" if shared_files() else "the packed copy"
    with capsys.disabled():
        print(f"\nconformance: {len(vectors())} vectors, {sum(counts.values())} table cases from {source}")


def test_packed_copy_is_the_shared_corpus() -> None:
    assert len(packed_files()) == 706
    if shared_files():
        assert packed_files() == shared_files()


@pytest.mark.parametrize("case", table("adapter-mix"), ids=lambda case: repr(case["spec"]))
def test_adapter_mix(case: dict[str, Any]) -> None:
    if not case["ok"]:
        with pytest.raises(InvalidMixSpecError) as caught:
            parse_mix(case["spec"], case.get("declared"))
        assert all(word in str(caught.value) for word in case["message_contains"])
        return
    got = parse_mix(case["spec"], case.get("declared"))
    assert [[name, _tagged(weight)] for name, weight in got] == case["entries"]
    assert [math.copysign(1, weight) for _, weight in got] == [_sign(weight) for _, weight in case["entries"]]


@pytest.mark.parametrize("case", table("adapter-name"), ids=lambda case: repr(case["name"]))
def test_adapter_name(case: dict[str, Any]) -> None:
    assert is_adapter_name(case["name"]) == case["valid"]


@pytest.mark.parametrize("case", table("dlm-id"), ids=lambda case: repr(case["dlm_id"]))
def test_dlm_id(case: dict[str, Any]) -> None:
    assert is_dlm_id(case["dlm_id"]) == case["valid"]


@pytest.mark.parametrize("index", range(len(table("gate-config"))))
def test_gate_config(index: int) -> None:
    case = table("gate-config")[index]
    if not case["ok"]:
        with pytest.raises(DlmTuiError):
            parse_gate_config(case["config"])
        return
    got = parse_gate_config(case["config"])
    read = {key: getattr(got, key) for key in case["parsed"]}
    read["adapter_names"] = list(read["adapter_names"])
    assert read == case["parsed"]


@pytest.mark.parametrize("index", range(len(table("section-id"))))
def test_section_id(index: int) -> None:
    case = table("section-id")[index]
    content = case["content"] if "content" in case else "".join(case["content_repeat"][:1]) * case["content_repeat"][1]
    media = {"media_path": case.get("media_path"), "media_blob_sha": case.get("media_blob_sha")}
    assert section_id(case["type"], content, **media) == case["section_id"]


@pytest.mark.parametrize("index", range(len(table("split-assignment"))))
def test_split_assignment(index: int) -> None:
    case = table("split-assignment")[index]
    assert split_side(case["seed"], case["section_id"], case["sub_index"], case["val_frac"]) == case["side"]


def _tagged(weight: float) -> Any:
    return weight if math.isfinite(weight) else {"$float": repr(weight)}


def _sign(weight: Any) -> float:
    return 1.0 if isinstance(weight, dict) else math.copysign(1, weight)
