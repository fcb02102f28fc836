"""Properties that hold for every text: hypothesis looks for the exception."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlm_tui.document import (
    DocumentError,
    append_section,
    describe_document,
    format_mix,
    fresh_dlm_id,
    is_dlm_id,
    load,
    parse_bytes,
    parse_mix,
    with_dlm_id,
)
from dlm_tui.errors import DlmTuiError

HEAD = "---\ndlm_id: 01J9ZK4M2N6P8Q0R1S3T5V7W9X\nbase_model: b\ntraining: {adapters: {tone: {}, facts: {}}}\n---\n"
LINES = [
    "",
    " ",
    "text",
    "::prose::",
    "::instruction::",
    "::instruction#tone::",
    "::preference#facts::",
    "::prose#ghost::",
    '::image path="a.png"::',
    '::audio path="a.wav" transcript="t"::',
    ":: instruction::",
    "```",
    "```py",
    "### Q",
    "### Q !probe",
    "### A",
    "### Prompt",
    "### Chosen",
    "### Rejected",
    '<!-- dlm-auto-harvest: source="s" -->',
    "a\u2028b",
    "\u0085",
    "\x0b### Q",
]
bodies = st.lists(st.one_of(st.sampled_from(LINES), st.text(max_size=12)), max_size=24).map("\n".join)
names = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)
fast = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)


@fast
@given(st.one_of(st.binary(max_size=300), bodies.map(lambda body: (HEAD + body).encode(errors="replace"))))
def test_parse_raises_nothing_but_document_errors(data: bytes) -> None:
    try:
        document = parse_bytes(data)
    except DocumentError as error:
        assert str(error).encode()
        return
    assert document.sha256 == hashlib.sha256(data).hexdigest()
    json.dumps(describe_document(document), ensure_ascii=False).encode()


@fast
@given(st.text(max_size=200))
def test_frontmatter_raises_nothing_but_document_errors(text: str) -> None:
    data = f"---\n{text}\n---\nx".encode(errors="replace")
    try:
        parse_bytes(data)
    except DocumentError as error:
        assert str(error).encode()


@fast
@given(
    bodies,
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["prose", "instruction", "preference"]),
    st.sampled_from([None, "tone", "facts"]),
    bodies,
)
def test_append_keeps_all_earlier_sections(
    body: str, newline: str, section_type: str, adapter: str | None, content: str
) -> None:
    data = (HEAD + body).replace("\n", newline).encode(errors="replace")
    content = content.encode(errors="replace").decode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.dlm"
        path.write_bytes(data)
        try:
            before = load(path)
            result = append_section(path, before.sha256, type=section_type, adapter=adapter, content=content)
        except DlmTuiError:
            assert path.read_bytes() == data
            return
        after = load(path)
        assert path.read_bytes().startswith(data)
        assert after.sections[:-1] == before.sections
        assert [s.section_id for s in after.sections[:-1]] == [s.section_id for s in before.sections]
        assert after.sections[-1].content == content.replace("\r\n", "\n").replace("\r", "\n")
        assert path.read_bytes()[: result.offset] == data and result.previous_sha256 == before.sha256


@fast
@given(st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
def test_signed_mixes_round_trip(mix: dict[str, float]) -> None:
    read = parse_mix(format_mix(mix), list(mix), signed=True)
    assert read == list(mix.items())
    assert [math.copysign(1, weight) for _, weight in read] == [math.copysign(1, w) for w in mix.values()]


@fast
@given(st.dictionaries(names, st.floats(min_value=0), min_size=1, max_size=6))
def test_plain_mixes_round_trip(mix: dict[str, float]) -> None:
    assert parse_mix(format_mix(mix)) == list(mix.items())


@fast
@given(st.text(max_size=60), st.booleans())
def test_mix_strings_raise_nothing_else(spec: str, signed: bool) -> None:
    try:
        entries = parse_mix(spec, signed=signed)
    except DlmTuiError:
        return
    again = parse_mix(format_mix(entries), signed=signed)
    assert [(name, repr(weight)) for name, weight in again] == [(name, repr(weight)) for name, weight in entries]


@settings(fast, max_examples=60)
@given(bodies, st.sampled_from(["{}", '"{}"', "'{}'", "{}  # note"]), st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_new_id_changes_nothing_else(body: str, style: str, newline: str) -> None:
    old, new = "01J9ZK4M2N6P8Q0R1S3T5V7W9X", fresh_dlm_id()
    assert is_dlm_id(new)
    text = (HEAD + body).encode(errors="replace").decode().replace(f"dlm_id: {old}", f"dlm_id: {style.format(old)}")
    data = text.replace("\n", newline).encode()
    try:
        before = parse_bytes(data)
    except DocumentError:
        return
    changed = with_dlm_id(data, new)
    assert changed == data.replace(old.encode(), new.encode(), 1)
    assert parse_bytes(changed).sections == before.sections
