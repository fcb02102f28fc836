"""What people type wrongly: a sentence on stderr, the right exit code, nothing on stdout, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlm_tui.app.config import ConfigError, load_config
from dlm_tui.cli.main import main
from dlm_tui.document import read_side_file, set_side_value
from dlm_tui.document.expectations import expectation
from dlm_tui.document.prompt_sets import PromptCase, PromptSets
from tests.interop.peer_fixture import PEER_IDS, copy_peer, make_writable, peer_root
from tests.training_samples import write_document


@pytest.fixture
def document(tmp_path: Path) -> Path:
    return write_document(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], code: int, words: str, *arguments: str) -> str:
    """Run a command that must fail; returns what it said."""
    assert main(arguments) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    *narration, sentence = output.err.strip().splitlines()
    assert all(line.endswith((" …", " left")) for line in narration), output.err  # a slow machine says its share, too
    assert words in sentence, output.err
    return output.err


@pytest.mark.parametrize("command", ["show", "train", "metrics"])
def test_a_document_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    refused(capsys, 1, "nowhere.dlm", command, str(tmp_path / "nowhere.dlm"))


@pytest.mark.parametrize("words", ["sets DOC list", "sets DOC import SET --set a", "check DOC"])
def test_sets_of_a_document_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "hi"}\n')
    given = {"DOC": str(tmp_path / "nowhere.dlm"), "SET": str(tmp_path / "a.jsonl")}
    refused(capsys, 1, "nowhere.dlm", *(given.get(word, word) for word in words.split()))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("command", ["show", "train", "metrics"])
def test_a_folder_instead_of_a_document(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    refused(capsys, 1, str(tmp_path), command, str(tmp_path))


def test_a_pack_instead_of_a_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x.dlm.pack").write_bytes(b"")
    refused(capsys, 2, "unpack", "open", str(tmp_path / "x.dlm.pack"))
    refused(capsys, 1, "x.dlm.pack", "verify", str(tmp_path / "x.dlm.pack"))
    refused(capsys, 1, "empty file", "unpack", str(tmp_path / "x.dlm.pack"), "--home", str(tmp_path / "home"))
    refused(capsys, 1, "nowhere", "unpack", str(tmp_path / "nowhere.dlm.pack"))
    refused(capsys, 1, "train", "pack", str(write_document(tmp_path)), "--home", str(tmp_path / "home"))
    assert not (tmp_path / "home").exists()


def test_sources_that_cannot_be_taken_in(capsys: pytest.CaptureFixture[str], document: Path) -> None:
    document.write_text(document.read_text().replace("training:\n", "training:\n  sources: [{path: no\\nwhere}]\n"))
    refused(capsys, 1, "path does not exist", "parse", str(document), "--sources")
    document.with_name(document.name + ".tui.toml").write_text("a = [")
    refused(capsys, 1, "sample.dlm.tui.toml", "parse", str(document), "--sources")


def test_text_that_is_not_utf8(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "latin.dlm"
    path.write_bytes(b"---\n\xff\xfe")
    refused(capsys, 3, "latin.dlm", "show", str(path))


def test_an_invalid_document_names_line_and_reason(capsys: pytest.CaptureFixture[str], document: Path) -> None:
    document.write_text(document.read_text().replace("steps: 20", "steps: none"))
    refused(capsys, 3, "training.gate.steps", "train", str(document))


def test_an_unknown_base(capsys: pytest.CaptureFixture[str], document: Path) -> None:
    refused(capsys, 1, "peer-tiny", "train", str(document))


def test_a_base_folder_that_is_none(capsys: pytest.CaptureFixture[str], document: Path, tmp_path: Path) -> None:
    refused(capsys, 1, "empty", "train", str(document), "--base", str(tmp_path / "empty"))


def test_an_adapter_nobody_declared(capsys: pytest.CaptureFixture[str], document: Path) -> None:
    base = str(peer_root() / "base")
    refused(capsys, 2, "no adapter 'nobody'", "train", str(document), "--base", base, "--adapter", "nobody")
    refused(capsys, 2, "nobody", "prompt", str(document), "hi", "--base", base, "--adapter", "nobody")
    refused(capsys, 2, "nobody", "prompt", str(document), "hi", "--base", base, "--mix", "nobody:1")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("prompt DOC hi --max-tokens 0", "max tokens must be at least 1, not 0"),
        ("prompt DOC hi --temperature nan", "the temperature must be a number of at least 0, not nan"),
        ("repl DOC --temperature -1", "the temperature must be a number of at least 0, not -1.0"),
        ("repl DOC --top-p 0", "top-p must be above 0 and at most 1, not 0.0"),
        ("prompt DOC hi --mix facts:inf", "the weight of 'facts' in the mix is not a finite number"),
        ("prompt DOC hi --mix facts:1 --signed --mix facts:nan", "'facts:nan' is not a finite number"),
        ("prompt DOC hi --mix nobody:1", "the mix names nobody"),
        ("prompt DOC hi --mix loud", "no mix is called 'loud'"),
        ("prompt DOC hi --adapter nobody", "declares no adapter 'nobody'"),
        ("sets DOC run --set s --max-tokens 0", "max tokens must be at least 1, not 0"),
        ("check DOC --set s --top-p 2", "top-p must be above 0 and at most 1, not 2.0"),
        ("score DOC hi --heat --max-tokens 0", "max tokens must be at least 1, not 0"),
        ("score DOC hi --mix nobody:1", "the mix names nobody"),
        ("export DOC --mix facts:nan", "the weight of 'facts' in the mix is not a finite number"),
        ("export DOC --adapter nobody", "declares no adapter 'nobody'"),
    ],
)
def test_what_needs_no_base_is_refused_without_one(
    capsys: pytest.CaptureFixture[str], document: Path, words: str, sentence: str
) -> None:
    """The document's base is nowhere, which would be said by whatever looked for it."""
    PromptSets(document).save({"s": [PromptCase("hi", (expectation("contains", "x"),))]})
    refused(capsys, 2, sentence, *(str(document) if word == "DOC" else word for word in words.split()))


def test_a_null_view_of_no_size(capsys: pytest.CaptureFixture[str], document: Path) -> None:
    refused(capsys, 1, "rank_scale must be", "score", str(document), "hi", "--null-view", "1", "--rank-scale", "nan")


def test_an_empty_prompt(capsys: pytest.CaptureFixture[str], document: Path) -> None:
    refused(capsys, 2, "empty", "prompt", str(document), "   ", "--base", str(peer_root() / "base"))


def test_unknown_options_are_usage_errors(capsys: pytest.CaptureFixture[str], document: Path) -> None:
    assert main(["show", str(document), "--colour"]) == 2
    assert "--colour" in capsys.readouterr().err


def test_the_screen_needs_a_terminal(capsys: pytest.CaptureFixture[str], document: Path) -> None:
    refused(capsys, 2, "needs a terminal", str(document))


def test_hostile_names_reach_the_terminal_as_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = refused(capsys, 1, "\\x1b]0;pwned\\x07", "show", str(tmp_path / "\x1b]0;pwned\x07.dlm"))
    assert "\x1b" not in error


def test_untrained_and_long_and_empty_prompts_route_uniformly_or_in_full(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import json

    home = copy_peer(tmp_path / "peer", base=False)
    make_writable(home)
    arguments = ["--home", str(home / "home"), "--base", str(peer_root() / "base"), "--json"]
    assert main(["route", str(home / "routed.dlm"), "x" * 100_000, *arguments]) == 0
    result = json.loads(capsys.readouterr().out)["results"][0]
    assert result["tokens"] == 512 and sum(result["weights"].values()) == pytest.approx(1, abs=1e-6)
    assert main(["route", str(home / "routed.dlm"), "", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)["results"][0]
    assert set(result["weights"].values()) == {1 / 3} and result["tokens"] == 0


def test_a_store_of_another_base_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    home = copy_peer(tmp_path / "peer", base=False)
    make_writable(home)
    document = home / "routed.dlm"
    document.write_text(document.read_text().replace("base_model: peer-tiny", "base_model: hf:someone/else"))
    base = str(peer_root() / "base")
    options = ["--home", str(home / "home"), "--base", base]
    refused(capsys, 1, "made for base", "train", str(document), *options)
    refused(capsys, 1, "made for base", "prompt", str(document), "hello", *options)
    refused(capsys, 1, "made for base", "export", str(document), "--mix", "uniform", *options)
    assert (home / "home" / "store" / PEER_IDS["routed"] / "manifest.json").exists()


def test_a_home_that_cannot_be_written_is_said_and_no_label_is_half_done(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = copy_peer(tmp_path / "peer", base=False)
    make_writable(copy)
    document, base = copy / "routed.dlm", str(peer_root() / "base")
    before = document.read_bytes()
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "x" / "y", Path("/proc/x")):
        assert main(["doctor", "--home", str(home)]) == 1
        told = capsys.readouterr().out
        assert "not ready" in told and f"the home {home} cannot be used" in told
        refused(capsys, 1, "cannot be written", "label", str(document), "Hello.", "--adapter", "tone",
                "--home", str(home), "--base", base)  # fmt: skip
        assert document.read_bytes() == before
    assert main(["doctor", "--home", str(tmp_path / "new" / "home")]) == 0
    assert "ready" in capsys.readouterr().out and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("score DOC x --grid=1", "--grid, --chosen, --rejected and --csv belong to --sweep"),
        ("score DOC x --rank-scale 2", "--rank-scale belongs to --null-view"),
        ("score DOC x --max-tokens 9", "--max-tokens belongs to --sweep and --heat"),
        ("score DOC x --sweep facts --null-view 1", "--null-view is one more view"),
        ("score DOC --suite --views base", "--suite scores every adapter"),
        ("prompt DOC x --gate off --adapter facts", "--adapter and --gate off exclude each other"),
        ("prompt DOC x --gate off --mix facts:1", "--mix and --gate off exclude each other"),
        ("repl DOC --adapter facts --mix facts:1", "--adapter and --mix exclude each other"),
        ("prompt DOC x --signed", "--signed belongs to --mix"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    capsys: pytest.CaptureFixture[str], document: Path, words: str, said: str
) -> None:
    refused(capsys, 2, said, *[str(document) if word == "DOC" else word for word in words.split()])


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (1, "show FOLDER/smaple.dlm", "did you mean FOLDER/sample.dlm?"),
        (1, "open FOLDER/smaple.dlm", "did you mean FOLDER/sample.dlm?"),
        (2, "export DOC --target olama", "did you mean ollama?"),
        (2, "export DOC --target ollama --quant Q9_0", "did you mean q"),
        (2, "export DOC --target ollama --quant q9", "did you mean q"),
        (2, "export DOC --target merged --quant q4_k_m", "written as f32, f16, bf16, not q4_k_m"),
        (2, "sweep DOC --set gate.entropy_lamda=0,1", "did you mean entropy_lambda?"),
        (2, "sweep DOC --set adapters.facts.lora_rr=1", "did you mean lora_r?"),
        (2, "sweep DOC --set adapters.facts.gate.x=1", "no such key"),
        (2, "prompt DOC x --mix facts:-1", "is negative; --signed allows that"),
        (2, "prompt DOC x --mix=", "the mix has an empty entry"),
        (2, "prompt DOC x --adapter=", "the document declares no adapter ''"),
        (
            2,
            "section DOC add --text hi",
            "line 1 of the section's text: expected the line '### Q'; nothing was written",
        ),
        (3, "parse --mix facts:-1", "dlm-tui: the weight in the mix entry"),
    ],
)
def test_what_was_meant_or_helps_is_named(
    capsys: pytest.CaptureFixture[str], document: Path, code: int, words: str, said: str
) -> None:
    document.write_text(document.read_text().replace("peer-tiny", str(peer_root() / "base")))
    named = [word.replace("DOC", str(document)).replace("FOLDER", str(document.parent)) for word in words.split()]
    base = ["--base", str(peer_root() / "base")] if named[0] == "prompt" else []
    refused(capsys, code, said.replace("FOLDER", str(document.parent)), *named, *base)


def test_an_ollama_that_is_not_there_is_said_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    before = sorted(document.parent.iterdir())
    refused(capsys, 1, "ollama is not on the PATH", "export", str(document), "--target", "ollama", "--ollama-create")
    assert sorted(document.parent.iterdir()) == before


def test_one_is_said_in_the_singular(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "home" / "store" / "x").mkdir(parents=True)
    assert main(["doctor", "--home", str(tmp_path / "home")]) == 0
    assert "(1 store)" in capsys.readouterr().out
    assert main(["new", str(tmp_path / "n.dlm"), "--adapters", "a", "--no-open"]) == 0
    assert "a new document with the adapter a" in capsys.readouterr().err


def test_gate_only_takes_no_adapter(capsys: pytest.CaptureFixture[str], document: Path) -> None:
    refused(capsys, 2, "--gate-only", "train", str(document), "--gate-only", "--adapter", "facts")


@pytest.mark.parametrize(
    ("words", "flag", "owners"),
    [
        ("queue DOC add eval --target vllm", "--target", "export"),
        ("queue DOC add train --folds 3", "--folds", "eval and sweep"),
        ("queue DOC add gate --adapter tone", "--adapter", "train"),
        ("queue DOC list --write-best", "--write-best", "sweep"),
        ("sets DOC run x.csv --set a", "FILE", "import, export and results"),
        ("sets DOC list --replace", "--replace", "import, export and results"),
        ("sets DOC compare --seed 5", "--seed", "run"),
        ("adapter list DOC --version 3", "--version", "use, keep, drop and export"),
        ("adapter list DOC --form gguf", "--form", "export"),
        ("serve DOC --quant q8_0", "--quant", "--backend llama.cpp"),
        ("section DOC list --type prose", "--type", "add"),
        ("section DOC list --adapter tone", "--adapter", "add and retag"),
        ("section DOC list 3", "SECTION", "edit, delete and retag"),
        ("section DOC delete 3 --text x", "--text", "add and edit"),
        ("section DOC delete 3 --type instruction", "--type", "add"),
        ("section DOC edit 3 --adapter tone", "--adapter", "add and retag"),
        ("score DOC --text x.txt --null 5", "--null", "PROMPT and --suite"),
        ("score DOC x --sweep facts --seed 5", "--seed", "PROMPT and --suite"),
        ("score DOC x --sweep facts --lambda 1", "--lambda", "PROMPT and --text"),
        ("queue DOC add train --target peft", "--target", "export"),
        ("queue DOC add train --folds 5", "--folds", "eval and sweep"),
        ("sets DOC list --temperature 0", "--temperature", "run"),
        ("sets DOC list --sort order", "--sort", "run and compare"),
        ("adapter list DOC --form peft", "--form", "export"),
        ("serve DOC --quant f32", "--quant", "--backend llama.cpp"),
        ("serve DOC --backend llama.cpp --dtype float32", "--dtype", "--backend native"),
        ("metrics DOC --run-id 1 --limit 20", "--limit", "the list of runs"),
        ("serve DOC --grid 0.1", "--grid", "--backend llama.cpp"),
        ("serve DOC --backend llama.cpp --dtype bfloat16", "--dtype", "--backend native"),
    ],
)
def test_an_option_of_another_action_is_refused(
    capsys: pytest.CaptureFixture[str], document: Path, words: str, flag: str, owners: str
) -> None:
    given = [str(document) if word == "DOC" else word for word in words.split()]
    refused(capsys, 2, f"{flag} belongs to {owners}, not to ", *given)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("queue DOC list 3", "usage: dlm-tui queue DOC [list]"),
        ("eval DOC --folds=nan", "argument --folds: it is a whole number, not 'nan' (`dlm-tui eval --help` tells"),
        ("eval DOC --folds=٣", "argument --folds: it is a whole number, not '٣'"),
        ("eval DOC --folds=1_0", "argument --folds: it is a whole number, not '1_0'"),
        ("train DOC --rank=٣", "--rank: it is a whole number, not '٣'"),
        ("train DOC --checkpoint-minutes=", "argument --checkpoint-minutes: it is a number, not ''"),
        ("train DOC --checkpoint-minutes=٣", "argument --checkpoint-minutes: it is a number, not '٣'"),
        ("score DOC x --sweep facts --csv --json", "--csv and --json exclude each other"),
        ("sweep DOC --set lora_r=1 --csv --json", "--csv and --json exclude each other"),
        ("metrics DOC --csv --json", "--csv and --json exclude each other"),
        (
            "train DOC --gate-only --checkpoint-steps 3",
            "--gate-only leaves the adapters alone: it writes no checkpoint",
        ),
        ("train DOC --gate-only --checkpoint-minutes 3", "--gate-only leaves the adapters alone: it writes no check"),
        ("train DOC --cluster --checkpoint-minutes 3", "--checkpoint-minutes is for a training here"),
        ("export DOC --compare --out x", "--out is of an export, and --compare without --quant writes none"),
        ("export DOC --compare q4_0,q9", "no quantisation is called 'q9'"),
        ("export DOC --compare --no-drift", "--no-drift is of an export"),
        ("export DOC --compare --no-verify", "--verify is of an export"),
        ("train DOC --gate-only --packing", "--gate-only leaves the adapters alone: it takes no trainer settings"),
        ("metrics DOC --run-id 1 --since 1h", "--since belongs to the list of runs, not to --run-id, which is one run"),
        ("web DOC --port 99999", "--port is between 0 and 65535"),
        ("metrics DOC --quantize nf4", "unrecognized arguments: --quantize nf4"),
    ],
)
def test_options_that_make_no_sense_together(
    capsys: pytest.CaptureFixture[str], document: Path, words: str, said: str
) -> None:
    assert main([str(document) if word == "DOC" else word for word in words.split()]) == 2
    assert said in capsys.readouterr().err
    assert not document.with_name(f"{document.name}.tui.toml").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("queue DOC add eval --folds 1", "--folds is 2 to 1000, not 1"),
        ("queue DOC add sweep --set lora_r=1 --folds 0", "--folds is 2 to 1000, not 0"),
        (f"queue DOC add eval --folds {2**70}", "--folds is 2 to 1000, not "),
        ("eval DOC --folds -1", "--folds is 2 to 1000, not -1"),
        ("sweep DOC --set lora_r=1 --folds 1", "--folds is 2 to 1000, not 1"),
        ("queue DOC add train --checkpoint-steps 0", "--checkpoint-steps is 1 to 2147483647, not 0"),
        (f"queue DOC add train --checkpoint-steps {2**70}", "--checkpoint-steps is 1 to 2147483647, not "),
        ("train DOC --checkpoint-steps -1", "--checkpoint-steps is 1 to 2147483647, not -1"),
        ("queue DOC add sweep --set gate.entropy_lamda=0,1", "did you mean entropy_lambda?"),
        ("queue DOC add export --mix nope", "nope"),
        ("queue DOC add export --mix nope:1", "nope"),
        ("queue DOC add export --mix=", "the mix has an empty entry"),
        ("queue DOC add export --mix=\x1b[31mx", "mix"),
        ("queue DOC add export --out=", "the path is empty"),
        ("export DOC --out=", "the path is empty"),
        ("show DOC --home=", "the path is empty"),
    ],
)
def test_what_a_command_refuses_is_not_put_in_line_either(
    capsys: pytest.CaptureFixture[str], document: Path, words: str, said: str
) -> None:
    assert main([str(document) if word == "DOC" else word for word in words.split()]) == 2
    told = capsys.readouterr()
    assert said in told.err and "\x1b" not in told.err
    assert main(["queue", str(document), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["jobs"] == []


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"[training]\nneftune_alpha = " + b"1" * 5000, "more than 4300 digits (at line 2); shorten it"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = [", "; mend it there"),
        (b'base = "a"\noffload = "\xe4"', "the byte 0xe4 is not UTF-8 (at line 2); save the file as UTF-8"),
        (b"#" * (1 << 21), "it is larger than 1 MiB"),
    ],
)
def test_what_is_wrong_with_a_toml_file_is_said_with_its_name(
    capsys: pytest.CaptureFixture[str], document: Path, written: bytes, said: str
) -> None:
    side_file = document.with_name(document.name + ".tui.toml")
    side_file.write_bytes(written)
    sentence = refused(capsys, 1, said, "train", str(document))
    assert side_file.name in sentence and "Errno" not in sentence
    with pytest.raises(ConfigError) as told:
        load_config(side_file)
    assert said in str(told.value) and str(side_file) in str(told.value)


def test_a_byte_order_mark_begins_a_toml_file(document: Path) -> None:
    side_file = document.with_name(document.name + ".tui.toml")
    side_file.write_bytes(b'\xef\xbb\xbfoffload = "a"\r\n')
    assert read_side_file(side_file).offload == "a"
    set_side_value(side_file, "quantize", "nf4")
    assert (read_side_file(side_file).offload, read_side_file(side_file).quantize) == ("a", "nf4")
    side_file.write_bytes(b'\xef\xbb\xbftheme = "dlm-light"\n')
    assert load_config(side_file).theme == "dlm-light"


def test_a_folder_in_the_place_of_a_toml_file(capsys: pytest.CaptureFixture[str], document: Path) -> None:
    side_file = document.with_name(document.name + ".tui.toml")
    side_file.mkdir()
    refused(
        capsys, 1, f"{side_file} cannot be read: it is a folder, not a file; check the path", "train", str(document)
    )
    with pytest.raises(ConfigError, match=r"cannot be read: it is a folder, not a file; check the path$"):
        load_config(side_file)


def test_a_section_has_the_lines_that_the_list_shows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    document = tmp_path / "old.dlm"
    head = "---\rdlm_id: 01J9ZK4M2N6P8Q0R1S3T5V7W9X\rbase_model: pocket\r---\r"
    document.write_bytes(f"{head}\rhello\r::instruction::\r### Q\rx\r### A\ry\r".encode())
    assert main(["section", str(document), "list"]) == 0
    line = capsys.readouterr().out.splitlines()[1].split()[0]
    assert main(["section", str(document), "delete", line]) == 0
    assert document.read_bytes() == f"{head}\rhello\r".encode()
    capsys.readouterr()
    refused(capsys, 2, "there is no section at line 99", "section", str(document), "delete", "99")
