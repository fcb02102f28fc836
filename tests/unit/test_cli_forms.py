"""Command forms that people know: other names of options, the other tool's commands, prompts a line each."""

from __future__ import annotations

import argparse
import importlib
import io
import json
from pathlib import Path

import pytest

from dlm_tui.cli import foreign
from dlm_tui.cli.main import COMMANDS, main
from tests.interop.peer_fixture import copy_peer


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = copy_peer(tmp_path_factory.mktemp("forms") / "peer", base=True)
    return [str(root / "routed.dlm"), "--home", str(root / "home"), "--base", str(root / "base")]


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), newline=""))


@pytest.mark.parametrize("name", sorted(foreign.COMMANDS))
def test_a_command_of_the_other_tool_names_what_to_use(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name not in COMMANDS, "this command exists by now: take it off the list"
    assert main([name, "notes.dlm"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"dlm-tui: there is no command '{name}' here: ") and err.count("\n") == 1


@pytest.mark.parametrize(("word", "meant"), [("trian", "train"), ("exprot", "export"), ("docter", "doctor")])
def test_a_word_that_is_nearly_a_command_is_asked_about(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 2
    assert f"did you mean `dlm-tui {meant}`?" in capsys.readouterr().err


def test_a_document_of_such_a_name_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").write_text("")
    assert main(["cache"]) == 2
    assert "needs a terminal" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "flag"), [(command, flag) for command, flags in foreign.FLAGS.items() for flag in flags]
)
def test_a_flag_of_the_other_tool_names_what_to_use(
    command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"dlm_tui.cli.{command}").add_arguments(parser)
    assert flag not in parser._option_string_actions, "this flag exists by now: take it off the list"
    for argument in (flag, f"{flag}=x"):
        assert main([command, "notes.dlm", argument]) == 2
        assert capsys.readouterr().err.startswith(f"dlm-tui: `{command}` has no {flag} here: ")


def test_what_stands_behind_two_dashes_is_no_flag(routed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompt", *routed, "--max-tokens", "1", "--json", "--", "--temp"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "--temp"


def test_a_selection_needs_pissa(routed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *routed, "--selection", "wanda"]) == 2
    assert "--parameterization pissa" in capsys.readouterr().err


def test_adapter_mix_is_mix(routed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixes = []
    for option in ("--mix", "--adapter-mix"):
        assert main(["prompt", *routed, "Hello.", "--max-tokens", "2", "--json", option, "tone:0.5"]) == 0
        mixes.append(json.loads(capsys.readouterr().out)["weights"])
    assert mixes[0] == mixes[1] and mixes[0]["tone"] == 0.5
    out = ["--out", str(tmp_path / "out"), "--no-drift", "--no-verify", "--json", "--adapter-mix", "tone:0.5"]
    assert main(["export", *routed, *out]) == 0
    assert ["tone", 0.5] in json.loads(capsys.readouterr().out)["mix"]


def test_repl_answers_every_line_with_its_own_weights(
    routed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "Say hello to a friend.\n\nWhat is the tide?\n/exit\nnever asked\n")
    assert main(["repl", *routed, "--max-tokens", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    turns = [json.loads(line) for line in out.splitlines()]
    assert [turn["prompt"] for turn in turns] == ["Say hello to a friend.", "What is the tide?"]
    assert turns[0]["view"] == "gated" and turns[0]["weights"] != turns[1]["weights"]
    assert err.count("[gated]") == 2
    type_in(monkeypatch, "Hello.\n")
    assert main(["repl", *routed, "--max-tokens", "3", "--gate", "off"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n") and "[uniform]" in err
    assert main(["repl", *routed, "--adapter", "tone", "--mix", "tone:1"]) == 2


def test_score_tells_what_few_nulls_are_worth(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--help"]) == 0
    assert "few nulls claim few σ" in " ".join(capsys.readouterr().out.split())


def test_an_export_says_what_freezing_cost(
    routed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *routed, "--no-verify", "--out", str(tmp_path / "out"), "--json"]) == 0
    out, err = capsys.readouterr()
    drift = json.loads(out)["drift"]
    assert f"{drift['changed_answers']:.0%} of {drift['answers']} greedy answers change" in err
    assert "measuring what freezing costs: asking the live gate …" in err.splitlines()
    assert drift["verdict"] in err and "of what the gate does is kept" in err


def test_parse_tells_people_what_it_read_on_stdout_and_what_is_wrong_on_stderr(
    routed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.dlm").write_text("no frontmatter")
    assert main(["parse", routed[0], str(tmp_path / "bad.dlm")]) == 3
    out, err = capsys.readouterr()
    assert out.startswith(f"{routed[0]}: valid, ") and out.count("\n") == 1
    assert "bad.dlm" in err and "valid, " not in err
    assert main(["parse", "--mix", "facts:0.5"]) == 0
    assert capsys.readouterr() == ("facts:0.5: facts 0.5\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ["show", "DOC", "--home=~nobody-here/x"],
        ["show", "DOC", "--base=~nobody-here/x"],
        ["export", "DOC", "--out=~nobody-here/x"],
        ["pack", "DOC", "--out=~nobody-here/x"],
        ["unpack", "x.pack", "--out=~nobody-here/x"],
        ["queue", "DOC", "add", "export", "--out=~nobody-here/x"],
        ["train", "DOC", "--calibration=~nobody-here/x"],
        ["score", "DOC", "--text=~nobody-here/x"],
        ["sets", "DOC", "import", "~nobody-here/x.csv", "--set", "a"],
    ],
)
def test_the_folder_of_a_user_who_is_not_there_is_refused(
    words: list[str], routed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([routed[0] if word == "DOC" else word for word in words]) == 2
    assert "there is no user 'nobody-here'; a folder of that name is ./~nobody-here" in capsys.readouterr().err


def test_a_tilde_that_the_shell_left_is_the_home_folder(
    routed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["pack", *routed[:3], "--out=~/kept.pack"]) == 0
    assert (tmp_path / "kept.pack").is_file()


def test_a_pack_makes_its_folder_and_names_what_stands_in_the_way(
    routed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", *routed[:3], f"--out={tmp_path}/new/folder/kept.pack"]) == 0
    assert (tmp_path / "new" / "folder" / "kept.pack").is_file()
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    assert main(["pack", *routed[:3], f"--out={tmp_path}/file/kept.pack"]) == 1
    assert f"the pack cannot be written: {tmp_path}/file: " in capsys.readouterr().err
