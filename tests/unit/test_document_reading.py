"""What callers rely on beside the vectors: messages, settings, problems, rows, imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dlm_tui.document import (
    Document,
    DocumentError,
    InstructionParseError,
    InvalidMixSpecError,
    MediaTrainingError,
    Problem,
    SchemaValidationError,
    UnknownAdapterError,
    body_problems,
    gate_mode,
    gate_probes,
    gate_samples,
    instruction_content,
    instruction_pairs,
    load,
    parse_bytes,
    parse_mix,
    route_sections,
    training_rows,
    with_dlm_id,
)
from dlm_tui.document.field_lines import line_of_field
from dlm_tui.errors import DlmTuiError, UsageError

ID = "01J9ZK4M2N6P8Q0R1S3T5V7W9X"


def document(body: str = "", training: str = "{}") -> Document:
    return parse_bytes(f"---\ndlm_id: {ID}\nbase_model: smollm2-135m\ntraining: {training}\n---\n{body}".encode())


NAMED = "{adapters: {tone: {lora_r: 4}, facts: {}}, gate: {enabled: true, cold_start_floor: 1}}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("---\ndlm_id: [\n---\n", "a.dlm:2:10: invalid YAML"),
        ("---\n- x\n---\n", "a.dlm:2: the frontmatter must be a mapping, not list"),
        ("---\nx: \x07\n---\n", "a.dlm: invalid YAML"),
        ("---\ndlm_version: 99\n---\n", "a.dlm:2: dlm_version 99 is newer"),
        ("---\ndlm_version: 0\n---\n", "a.dlm: there is no dlm_version 0"),
        (f"---\ndlm_id: {ID}\nbase_model: b\n---\n::x::", "a.dlm:5:1: unknown section type 'x'"),
    ],
)
def test_messages_start_with_the_place(tmp_path: Path, data: str, message: str) -> None:
    path = tmp_path / "a.dlm"
    path.write_text(data)
    with pytest.raises(DocumentError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("frontmatter", "problem"),
    [
        ("base_model: &a [*a]", "base_model: Input should be a valid string"),
        ("base_model: b\ntraining: &a\n  lora_r: *a", "training.lora_r: Input should be a valid integer"),
        ("base_model: b\ntraining: &a\n  adapters: *a", "training.adapters: Input should be a valid dictionary"),
        ("base_model: b\nexport: &a\n  default_quant: *a", "export.default_quant: Input should be 'Q4_K_M'"),
    ],
)
def test_an_alias_that_contains_itself_is_a_value_of_a_wrong_type(frontmatter: str, problem: str) -> None:
    data = f"---\ndlm_id: 01KTESTTESTTESTTESTTESTTES\ndlm_version: 15\n{frontmatter}\n---\n"
    with pytest.raises(SchemaValidationError) as caught:
        parse_bytes(data.encode())
    assert problem in str(caught.value)


def test_all_schema_problems_come_together() -> None:
    with pytest.raises(SchemaValidationError) as caught:
        parse_bytes(b"---\ndlm_id: x\ntraining: {lora_r: 0, what: 1, micro_batch_size: 0}\n---\n")
    assert caught.value.fields == (
        "dlm_id",
        "base_model",
        "training.lora_r",
        "training.micro_batch_size",
        "training.what",
    )


def test_a_bad_adapter_name_says_what_a_name_is() -> None:
    with pytest.raises(
        SchemaValidationError, match=r"bad adapter name 'Tone'; one is a-z, then at most 31 of a-z, 0-9"
    ):
        document(training="{adapters: {Tone: {}, facts: {}}}")


@pytest.mark.parametrize(
    ("frontmatter", "field", "said"),
    [
        (
            "training:\n  adapters: {on: {}}\n",
            "training.adapters.on",
            'reads this key as true; write it in quotes: "on"',
        ),
        ("training:\n  adapters: {2024: {}}\n", "training.adapters.2024", 'as a number; write it in quotes: "2024"'),
        ("training:\n  No: 1\n", "training.No", 'as false; write it in quotes: "No"'),
        ("yes: 1\n", "yes", 'as true; write it in quotes: "yes"'),
    ],
)
def test_a_key_that_yaml_does_not_read_as_text_is_named_as_written(frontmatter: str, field: str, said: str) -> None:
    text = f"---\n{frontmatter}dlm_id: 01J8ZQ5M3V0000000000000001\nbase_model: pocket\n---\n"
    with pytest.raises(SchemaValidationError, match=f": {field}: .*{said}"):
        parse_bytes(text.encode())


def test_union_labels_do_not_hide_adapter_names() -> None:
    with pytest.raises(SchemaValidationError) as caught:
        document(training="{adapters: {target_modules: {lora_r: 0, target_modules: 3}, int: {lora_r: 0}}}")
    assert caught.value.fields == (
        "training.adapters.target_modules.lora_r",
        "training.adapters.target_modules.target_modules",
        "training.adapters.int.lora_r",
    )


def test_settings_of_named_and_flat_adapters() -> None:
    named = document(training=NAMED)
    assert named.adapter_names == ("tone", "facts")
    assert named.adapter_settings("tone").lora_r == 4 and named.adapter_settings("facts").lora_r == 8
    with pytest.raises(UsageError):
        named.adapter_settings("default")
    flat = document(training="{lora_r: 32, target_modules: [q_proj]}")
    assert flat.adapter_names == () and flat.routing_names == ("default",)
    assert flat.adapter_settings("default").lora_r == 32
    assert flat.adapter_settings("default").target_modules == ["q_proj"]
    assert flat.adapter_settings("default").lora_alpha == 16


def test_problems_have_lines_of_the_file() -> None:
    body = (
        "\ntext\n"  # 6, 7
        "::instruction#ghost::\n### Q\nq\n### A\n\n"  # 8-12
        " ::prose::\n"  # 13: joins the answer above
        "```\n::prose ::\n```\n"  # 14-16: code
        '::image path="a.png"::\ncaption\n'  # 17, 18
        '::preference::\n<!-- dlm-auto-harvest: source="s" -->\n### Prompt\np\u2028p\n### Rejected\nr\n'  # 19-24
        "::instruction::"  # 25
    )
    assert body_problems(document(body)) == [
        Problem(8, 1, "the adapter 'ghost' is not declared; the document has default", "error"),
        Problem(
            13,
            2,
            "this looks like a fence but is read as text; a fence is a whole line with nothing around it",
            "warning",
        ),
        Problem(17, 1, "this image section is shown but cannot be trained here", "error"),
        Problem(23, 1, "expected the line '### Chosen'", "error"),
        Problem(25, 1, "no '### Q' in this section", "error"),
    ]


def test_rows_of_equal_sections_are_counted_on() -> None:
    pair = "::instruction::\n### Q\nq\n### A\na\n"
    rows = training_rows(document(pair + pair + "::prose::\n text \n"))
    assert [(row.kind, row.section_index, row.sub_index) for row in rows] == [
        ("messages", 0, 0),
        ("messages", 1, 1),
        ("text", 2, 0),
    ]
    assert rows[0].messages == (("user", "q"), ("assistant", "a")) and rows[2].text == "text"


def test_training_refuses_media_and_bad_bodies_with_a_sentence() -> None:
    with pytest.raises(MediaTrainingError, match="line 6"):
        training_rows(document('::audio path="a" transcript="t"::\n'))
    with pytest.raises(InstructionParseError):
        training_rows(document("::instruction::\nno header\n"))
    with pytest.raises(UnknownAdapterError, match="line 6"):
        route_sections(document("::prose#ghost::\nx\n"))


def test_probes_keep_their_section_and_skip_bad_bodies() -> None:
    made = document("::prose#tone::\nhello\n::instruction#facts::\nbad\n::preference#facts::\n### Prompt\np\n", NAMED)
    assert [(probe.adapter, probe.prompt) for probe in gate_probes(made)] == [("tone", "hello")]
    assert gate_probes(made)[0].section is made.sections[0]
    assert gate_samples(made) == {"tone": 1, "facts": 0} and gate_mode(made) == "uniform"


def test_composed_pairs_parse_back() -> None:
    made = document("::instruction#tone::\n" + instruction_content(" a\nb ", "c\n\nd\n", probe=True), NAMED)
    assert instruction_pairs(made.sections[0]) == [("a\nb", "c\n\nd")]
    assert gate_probes(made)[0].prompt == "a\nb"


def test_signed_mixes() -> None:
    assert parse_mix("a:-1.5, b:+2", signed=True) == [("a", -1.5), ("b", 2.0)]
    for spec in ("a:nan", "a:inf", "a:-inf", "a:1,a:2"):
        with pytest.raises(InvalidMixSpecError):
            parse_mix(spec, signed=True)


@pytest.mark.parametrize("line", [f"dlm_id: {ID}", f"'dlm_id': '{ID}'", f"dlm_id:   {ID}   # mine"])
def test_new_id_in_place(line: str) -> None:
    data = f"\ufeff---\r\n# é\u2028x: 1\r\nbase_model: b\r\n{line}\r\n---\r\n\r\ndlm_id: {ID}".encode()
    new = "0" * 26 if "'" in line else "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"
    if b"\xe2\x80\xa8" in data:
        data = data.replace("\u2028x: 1".encode(), "\u2028".encode())
    assert with_dlm_id(data, new) == data.replace(ID.encode(), new.encode(), 1)


def test_an_id_of_digits_gets_quotes_and_a_shared_one_is_refused() -> None:
    data = f"---\ndlm_id: {ID}\nbase_model: b\n---\n".encode()
    assert b'dlm_id: "77777777777777777777777777"\n' in with_dlm_id(data, "7" * 26)
    with pytest.raises(DlmTuiError):
        with_dlm_id(f"---\nbase_model: &x {ID}\ndlm_id: *x\n---\n".encode(), "7" * 26)
    with pytest.raises(UsageError):
        with_dlm_id(data, "short")


def test_importing_the_room_loads_nothing_heavy() -> None:
    program = (
        "import sys, dlm_tui.document, dlm_tui.cli.parse\n"
        "slow = ('torch', 'textual', 'transformers', 'pydantic', 'yaml', 'watchfiles')\n"
        "print([m for m in slow if m in sys.modules])\n"
        "dlm_tui.document.parse_bytes(b'---\\ndlm_id: 01J9ZK4M2N6P8Q0R1S3T5V7W9X\\nbase_model: b\\n---\\n')\n"
        "print([m for m in slow[:3] if m in sys.modules])\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == ["[]", "[]"]


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("training.adapters.tone.lora_r", 7),
        ("training.adapters.tone.no_such_key", 6),
        ("training.sources.1.path", 10),
        ("nothing", 2),
    ],
)
def test_fields_are_found_in_the_file(field: str, line: int) -> None:
    text = (
        "---\ndlm_id: x\ntraining:\n  # a comment\n  adapters:\n    tone:\n      lora_r: 4\n"
        "  sources:\n  - path: a\n  - path: b\n---\nbody\n"
    )
    assert line_of_field(text, field) == line
