"""Modelfiles and scripts: what a document or a tokenizer says stays text."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_tui.export.modelfile import (
    CONVERSATION,
    Parameters,
    comment,
    go_template,
    held,
    modelfile,
    stop_words,
)
from dlm_tui.export.modelfile_reader import read_modelfile
from dlm_tui.export.scripts import llama_server_script, shell, vllm_script, vllm_words

PARAMETERS = Parameters(temperature=0.7, top_p=0.9, num_ctx=512, stops=())


@given(st.text(alphabet=st.sampled_from('"ab \n\r\t\u00a0\u2028\ufeff#\\{}'), max_size=40))
def test_no_text_ends_its_value_early(text: str) -> None:
    lines = read_modelfile(modelfile([text], "m.gguf", PARAMETERS, template=f"T{text}T", system=f"S{text}S"))
    assert [name for name, _ in lines] == ["from", "template", "parameter", "parameter", "parameter", "system"]
    assert lines[1] == ("template", held(f"T{text}T"))
    assert lines[-1] == ("system", held(f"S{text}S"))
    assert held(text) == text or '"""' in text or set(text) & set("\u00a0\u2028\ufeff")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("system be kind ", "be kind"),
        ("SYSTEM  'be kind'", "'be kind'"),
        ('System "be\nkind"', "be\nkind"),
        ('SYSTEM """be "kind\n" """', 'be "kind\n" '),
        ("SYSTEM \nPARAMETER seed 1", ""),
        ("SYSTEM be\u200bk\u00adind\x07", "bekind"),
    ],
)
def test_a_value_is_read_as_by_ollama(line: str, value: str) -> None:
    assert read_modelfile(f"FROM ./m.gguf\n{line}\n")[1] == ("system", value)


def test_names_of_parameters_and_roles_stand_before_their_values() -> None:
    text = 'FROM x\rPARAMETER stop """a\nb"""\rparameter\ttop_k  5\rMESSAGE user "a: b"\r'
    assert read_modelfile(text)[1:] == [("parameter", "stop a\nb"), ("parameter", "top_k 5"), ("message", "user: a: b")]


@pytest.mark.parametrize("line", ["", "SYSTEM", 'SYSTEM "be', "FROM x\nMESSAGE nobody a", "FROM x\nPARAMETER\nstop a"])
def test_what_ollama_refuses_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"blank|end of file|role|FROM"):
        read_modelfile(line)


def test_what_cannot_be_seen_is_written_as_what_ollama_keeps() -> None:
    assert held("a\u00a0b\u2009c\u2028d\x85e\u200bf\ufeff") == "a b c\nd\nef"
    assert held('""\u200b"') == '"" "'
    assert held("Grüße — 你好 👍\n\t…") == "Grüße — 你好 👍\n\t…"


def test_a_system_prompt_cannot_name_another_model() -> None:
    prompt = 'use """ \nFROM ./other.gguf\n# bye'
    assert read_modelfile(f'SYSTEM """{prompt}"""\n')[1] == ("from", "./other.gguf")  # what the reader would see
    written = read_modelfile(modelfile([], "m.gguf", PARAMETERS, system=prompt))
    assert [value for name, value in written if name == "from"] == ["./m.gguf"]


@given(st.text(max_size=60))
def test_a_comment_is_one_line(text: str) -> None:
    line = comment(text)
    assert line.startswith("# ")
    assert line.isprintable()
    assert len(line.splitlines()) == 1


def test_the_parts_stand_in_order() -> None:
    parameters = Parameters(temperature=0.7, top_p=0.9, num_ctx=512, stops=("<|im_end|>", "</s>"))
    text = modelfile(["by us"], "model.f16.gguf", parameters, template="T", system="be\nkind")
    assert text == (
        '# by us\n\nFROM ./model.f16.gguf\n\nTEMPLATE """T"""\n\nPARAMETER stop "<|im_end|>"\nPARAMETER stop "</s>"\n'
        'PARAMETER temperature 0.7\nPARAMETER top_p 0.9\nPARAMETER num_ctx 512\n\nSYSTEM """be\nkind"""\n'
    )
    legacy = modelfile([], "base.f16.gguf", parameters, adapter="adapter.gguf", system="")
    assert "FROM ./base.f16.gguf\nADAPTER ./adapter.gguf\n" in legacy
    assert "SYSTEM" not in legacy


def test_stop_words_have_no_repeats_and_nothing_that_breaks_out() -> None:
    words = stop_words("chatml", ["<|im_end|>", 'a"b', "line\nfeed", "", "<|extra|>"])
    assert words == ("<|im_end|>", "<|endoftext|>", "<|im_start|>", "<|extra|>")
    assert stop_words("unknown", []) == ()


def test_a_template_is_written_only_where_it_was_seen_to_be_the_same() -> None:
    shape = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in CONVERSATION)
    assert go_template(shape + "<|im_start|>assistant\n") is not None
    assert go_template("<|im_start|>system\nBe kind.<|im_end|>\n" + shape + "<|im_start|>assistant\n") is None
    assert go_template(None) is None
    prompt = "<|im_start|>assistant\n"
    own_turn, in_the_first = (
        shape.replace("<", "<|im_start|>system\nzero<|im_end|>\n<", 1),
        shape.replace(" one", "zero\n\n one"),
    )
    assert go_template(shape + prompt, own_turn + prompt) == go_template(shape + prompt)
    assert go_template(shape + prompt, in_the_first + prompt) is None


def test_a_base_without_a_template_is_asked_by_ollama_as_here() -> None:
    written = go_template("<s> one\n\ntwo</s>three \n", front="<s>", end="</s>")
    assert written == (
        '{{- range .Messages }}{{ .Content }}{{ if eq .Role "assistant" }}</s>'
        '{{ else if eq .Role "system" }}\n\n{{ else }}\n{{ end }}{{ end }}'
    )
    assert go_template("<s> one\n\ntwo</s>three ", front="<s>", end="</s>") is None


def run_script(binaries: Path, folder: Path, program: str, script: str, *arguments: str) -> tuple[str, list[str]]:
    """Run a script with a stand-in for its program; returns the working folder and the words it was given."""
    binaries.mkdir()
    stand_in = binaries / program
    stand_in.write_text('#!/bin/bash\npwd\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    path = folder / "start.sh"
    path.write_text(script)
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", path, *arguments], cwd="/", env=environment, capture_output=True, text=True, check=True
    )
    where, *words = done.stdout.splitlines()
    return where, words


@pytest.mark.parametrize(
    "name", ["plain", "with blank", "quote'and\"more", "$(touch hurt)", "-dash; rm x", "ünï,co:de"]
)
def test_scripts_run_from_any_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    script = llama_server_script("base.f16.gguf", [("mix.gguf", 1.0), ("adapter.tone.gguf", 0.0)], 512)
    where, words = run_script(tmp_path / "bin", folder, "llama-server", script, "--verbose", "a b")
    assert Path(where).samefile(folder)
    assert words[:4] == ["-m", "base.f16.gguf", "--lora-scaled", "mix.gguf:1.0,adapter.tone.gguf:0.0"]
    assert words[-4:] == ["--port", "8080", "--verbose", "a b"]
    assert sorted(path.name for path in folder.iterdir()) == ["start.sh"]


def test_a_search_path_for_folders_leads_nowhere_else(tmp_path: Path) -> None:
    for folder in (tmp_path / "here" / "out", tmp_path / "other" / "out"):
        folder.mkdir(parents=True)
    (path := tmp_path / "here" / "out" / "start.sh").write_text(llama_server_script("base.gguf", [], 512))
    path.chmod(0o755)
    variables = {"CDPATH": str(tmp_path / "other"), "LLAMA_SERVER": "/bin/pwd", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "-c", 'set -- "$(sed s/exec.*/pwd/ "$0")"; printf "%s" "$1" > out/where.sh; bash out/where.sh', path],
        cwd=tmp_path / "here", env=variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).samefile(tmp_path / "here" / "out")


def test_the_vllm_script_quotes_the_base(tmp_path: Path) -> None:
    hostile = "/models/$(touch hurt) 'x'"
    words = vllm_words(hostile, None, "adapters/mixed", 16, 256, "mixed", base_served="dlm-1")
    _, given_ = run_script(tmp_path / "bin", tmp_path, "vllm", vllm_script(words))
    assert given_[:2] == ["serve", hostile]
    assert given_[given_.index("--max-lora-rank") + 1] == "16"
    assert "mixed=adapters/mixed" in given_
    assert not (tmp_path / "hurt").exists()


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20), min_size=1))
def test_shell_words_come_back(words: list[str]) -> None:
    assert shlex.split(shell(words)) == words
