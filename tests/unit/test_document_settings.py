"""Settings are changed in the frontmatter byte for byte, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm_tui.document import load, parse_bytes, setting_paths, with_settings, write_settings
from dlm_tui.document.errors import DocumentError, FileChanged
from dlm_tui.errors import DlmTuiError, UsageError

BODY = "\n::instruction#facts::\n### Q\na\n### A\nb\n"
TEXTS = {
    "block": """---
dlm_id: 01KTESTTESTTESTTESTTESTTES   # mine
base_model: pocket
training:
  num_epochs: 3      # enough
  adapters:
    facts:
      lora_r: 4    # small

    tone: {}   # nothing
  gate:
    enabled: true
export: {}
---
""",
    "flow": """---
dlm_id: 01KTESTTESTTESTTESTTESTTES
base_model: pocket
training: {num_epochs: 3, adapters: {facts: {lora_r: 4}, tone: {}}, gate: {enabled: true}}
---
""",
    "bare": """---
dlm_id: 01KTESTTESTTESTTESTTESTTES
base_model: pocket
---
""",
}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", ["block", "flow"])
def test_only_the_values_change(kind: str, line_end: str) -> None:
    data = (TEXTS[kind] + BODY).replace("\n", line_end).encode()
    given = {
        "adapters.facts.lora_r": "16",
        "adapters.facts.learning_rate": "1e-4",
        "adapters.tone.lora_r": "2",
        "gate.entropy_lambda": "0.1",
        "num_epochs": "5",
        "warmup_ratio": "0",
        "cpt.schedule": "sft",
    }
    changed = with_settings(data, given)
    training = parse_bytes(changed).training
    assert training.adapters is not None
    facts = training.adapters["facts"]
    assert (facts.lora_r, facts.learning_rate, training.adapters["tone"].lora_r) == (16, 1e-4, 2)
    assert (training.gate.entropy_lambda, training.gate.enabled) == (0.1, True)
    assert (training.num_epochs, training.warmup_ratio, training.cpt.schedule) == (5, 0.0, "sft")
    old, new = data.decode(), changed.decode()
    assert new.endswith(BODY.replace("\n", line_end)) and new.count("\r\n") in (0, new.count("\n"))
    for remark in ("# mine", "# enough", "# small", "# nothing"):
        assert old.count(remark) == new.count(remark)
    kept = [line for line in old.splitlines() if line.strip()]
    if kind == "block":
        gone = [line for line in kept if line not in new.splitlines()]
        assert gone == ["  num_epochs: 3      # enough", "      lora_r: 4    # small", "    tone: {}   # nothing"]


def test_a_rate_without_a_name_is_that_of_every_adapter() -> None:
    document = parse_bytes((TEXTS["block"] + BODY).encode())
    assert setting_paths(document, "lora_r") == ["adapters.facts.lora_r", "adapters.tone.lora_r"]
    assert setting_paths(document, "adapters.tone.lora_r") == ["adapters.tone.lora_r"]
    assert setting_paths(document, "gate.lr") == ["gate.lr"]
    assert setting_paths(parse_bytes(TEXTS["bare"].encode()), "lora_r") == ["lora_r"]
    with pytest.raises(UsageError):
        setting_paths(document, "gate..lr")


def test_what_the_schema_refuses_is_refused_in_its_words() -> None:
    data = (TEXTS["block"] + BODY).encode()
    with pytest.raises(DocumentError, match=r"lora_r"):
        with_settings(data, {"adapters.facts.lora_r": "1000"})
    with pytest.raises(DocumentError, match="nonsense"):
        with_settings(data, {"nonsense": "1"})
    for value in ("", "a\nb", "{x: 1}", "[1]", "*a", "a # b"):
        with pytest.raises(UsageError):
            with_settings(data, {"num_epochs": value})


def test_where_there_is_no_safe_place_it_is_said() -> None:
    shared = TEXTS["block"].replace("facts:\n      lora_r: 4    # small\n", "facts: &same {lora_r: 4}\n")
    data = (shared.replace("tone: {}", "tone: *same") + BODY).encode()
    with pytest.raises(DlmTuiError, match="by hand"):
        with_settings(data, {"adapters.tone.lora_r": "8"})
    assert parse_bytes(with_settings(TEXTS["bare"].encode(), {"lora_r": "4"})).training.lora_r == 4


def test_a_file_that_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "d.dlm"
    path.write_text(TEXTS["block"] + BODY)
    seen = load(path).sha256
    after = write_settings(path, seen, {"num_epochs": "7"})
    assert load(path).training.num_epochs == 7 and load(path).sha256 == after
    with pytest.raises(FileChanged):
        write_settings(path, seen, {"num_epochs": "8"})
    assert load(path).training.num_epochs == 7
