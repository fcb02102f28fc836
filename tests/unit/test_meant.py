"""A name that was mistyped: every place that takes one says which one may have been meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document.named_mixes import NamedMixes
from dlm_tui.document.prompt_sets import PromptSets
from dlm_tui.errors import UsageError
from dlm_tui.meant import meant, nearest
from dlm_tui.model.views import custom, resolve_view
from dlm_tui.serving.views import Models, UnknownModel
from tests.tui.document import write_document


def test_the_nearest_name_whatever_the_case() -> None:
    assert nearest("Tonne", ["knowledge", "tone"]) == "tone"
    assert meant("knowlege ", ["knowledge", "tone"]) == ": did you mean knowledge?"
    assert meant("zebra", ["knowledge", "tone"]) == "" and meant("", ["tone"]) == "" and meant("x", []) == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "DOC", "--adapter", "tonne"), "tone"),
        (("adapter", "list", "DOC", "stile"), "style"),
        (("section", "DOC", "add", "--type", "prose", "--adapter", "tonne", "--text", "x"), "tone"),
        (("check", "DOC", "--set", "smok"), "smoke"),
        (("parse", "--mix", "tonne:0.5", "--declared", "tone,style"), "tone"),
    ],
    ids=lambda part: part[0] if isinstance(part, tuple) else part,
)
def test_on_the_command_line(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_document(tmp_path)
    PromptSets(path).save({"smoke": ["Hello?"]})
    given = [str(path) if word == "DOC" else word for word in words]
    home = [] if words[0] == "parse" else ["--home", str(tmp_path / "home")]
    assert main([*given, *home]) != 0
    out, err = capsys.readouterr()
    assert f"did you mean {said}?" in out + err, (out, err)


def test_of_a_view_and_of_a_mix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'tonne' .*: did you mean tone\?$"):
        resolve_view(custom({"tonne": 1.0}), ["tone", "style"])
    mixes = NamedMixes(tmp_path / "doc.dlm")
    mixes.save({"quiet": {"tone": 0.5}})
    served = Models(("tone",), mixes.load)
    with pytest.raises(UnknownModel, match=r"did you mean quiet\?$"):
        served.view("mix:quite")
    with pytest.raises(UnknownModel, match=r"did you mean uniform\?$"):
        served.view("unifrom")
