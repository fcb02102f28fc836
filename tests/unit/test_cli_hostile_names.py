"""Names that would act on a terminal, or in a shell when a command that a message tells is pasted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from tests.training_samples import write_document

NAME = "$(id) \x1b[31m; a.dlm"
SHOWN = NAME.replace("\x1b", "\\x1b")


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the folder that the test is in, so that its name is all there is of its path."""
    monkeypatch.chdir(tmp_path)
    return write_document(tmp_path, sections=2).rename(tmp_path / NAME).relative_to(tmp_path)


def harmless(told: str) -> None:
    """No escape sequence is in it, and a name in a command is one word of it."""
    assert "\x1b" not in told
    for command in re.findall(r"`(dlm-tui [^`]*)`", told):
        assert "$(id)" not in command or any(SHOWN in word for word in shlex.split(command)), command


COMMANDS = [
    ["queue", NAME],
    ["queue", NAME, "add", "eval"],
    ["queue", NAME, "pause"],
    ["queue", NAME, "cancel", "7"],
    ["show", NAME],
    ["show", "none-" + NAME],
    ["doctor", NAME],
    ["sets", NAME],
    ["sets", NAME, "run", "--set", NAME],
    ["section", NAME],
    ["section", NAME, "add", "--type", "prose", "--text", "a"],
    ["metrics", NAME],
    ["adapter", "list", NAME],
    ["adapter", "use", NAME, "facts", "--version", "9"],
    ["parse", NAME],
    ["train", NAME, "--adapter", "none"],
    ["train", NAME, "--resume"],
    ["pack", NAME],
    ["unpack", NAME],
    ["new", "n-" + NAME, "--no-open"],
    ["new", NAME, "--no-open"],
    ["demo", NAME + "-d", "--no-open"],
    ["verify", NAME],
    [NAME],
    [NAME + ".pack"],
    ["show", "--home", NAME, NAME],
    ["show", NAME, NAME],
    ["queue", NAME, NAME],
    ["queue", NAME, "--" + NAME],
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words).replace(NAME, "NAME"))
def test_no_command_tells_a_name_as_it_is(document: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path(NAME + ".pack").write_bytes(b"no pack")
    if words[0] == "queue":
        main(["queue", NAME, "add", "eval", "--home", "home"])
    main([*words, *(() if "--home" in words else ("--home", "home"))])
    out, err = capsys.readouterr()
    harmless(out)
    harmless(err)


@pytest.mark.parametrize(("action", "follows"), [([], "run"), (["pause"], "resume")])
def test_the_line_tells_a_command_that_can_be_pasted(
    document: Path, action: list[str], follows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = document.rename("$(id) a.dlm").name
    main(["queue", name, "add", "eval", "--home", "home"])
    capsys.readouterr()
    assert main(["queue", name, *action, "--home", "home"]) == 0
    (command,) = re.findall(r"`([^`]*)`", capsys.readouterr().out)
    assert shlex.split(command) == ["dlm-tui", "queue", name, follows, "--home", "home"]


def test_new_tells_commands_that_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "$(id) a.dlm", "--no-open"]) == 0
    opened, trained = re.findall(r"`([^`]*)`", capsys.readouterr().err)[-2:]
    assert shlex.split(opened) == ["dlm-tui", "$(id) a.dlm"]
    assert shlex.split(trained) == ["dlm-tui", "train", "$(id) a.dlm"]
    assert main(["demo", "$(id) d", "--no-open"]) == 0
    (command,) = re.findall(r"`([^`]*)`", capsys.readouterr().err)
    assert shlex.split(command) == ["dlm-tui", "$(id) d/harbour.dlm"]
