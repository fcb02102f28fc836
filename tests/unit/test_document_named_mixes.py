"""Mixes with names beside a document: read back to the last digit, and never mistaken for something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlm_tui.cli.prompt import mix_view
from dlm_tui.document import load
from dlm_tui.document.errors import InvalidMixSpecError
from dlm_tui.document.named_mixes import (
    NamedMixes,
    NamedMixesError,
    check_mix_name,
    is_mix_name,
    mix_of_argument,
    named_mix,
)
from dlm_tui.model.views import custom
from tests.tui.document import write_document


def test_what_is_saved_is_read_back_and_a_person_can_write_it(tmp_path: Path) -> None:
    mixes = NamedMixes(tmp_path / "x.dlm")
    assert mixes.load() == {}
    saved = {"loud": {"tone": 0.1 + 0.2, "style@3": -1.5}, "none-2": {"tone": 0.0}}
    mixes.save(saved)
    assert mixes.path == tmp_path / "x.mixes.json" and mixes.load() == saved
    assert json.loads(mixes.path.read_text())["loud"] == "tone:0.30000000000000004,style@3:-1.5"
    mixes.path.write_text('{"mine": " tone : 1 , style:.5"}')
    assert mixes.load() == {"mine": {"tone": 1.0, "style": 0.5}}


@pytest.mark.parametrize(
    "data", [b"[1]", b'{"one": 1}', b"{", b'{"one": "tone"}', b'{"one": "tone:x"}', b'{"\xff": "a:1"}', b"[" * 200_000]
)
def test_another_file_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    mixes = NamedMixes(tmp_path / "x.dlm")
    mixes.path.write_bytes(data)
    with pytest.raises(NamedMixesError, match=r"x\.mixes\.json does not hold named mixes"):
        mixes.load()


def test_a_name_that_stands_twice_loses_nothing(tmp_path: Path) -> None:
    mixes = NamedMixes(tmp_path / "x.dlm")
    mixes.path.write_text(text := '{"m": "tone:1", "m": "style:1"}')
    with pytest.raises(NamedMixesError, match=r"x\.mixes\.json does not hold named mixes: the name 'm' stands twice"):
        mixes.update(lambda there: there.update(c={"tone": 1.0}))
    assert mixes.path.read_text() == text


def test_a_file_that_cannot_be_read_begins_anew_only_when_that_is_wanted(tmp_path: Path) -> None:
    mixes, asides = NamedMixes(tmp_path / "x.dlm"), list[Path]()
    mixes.path.write_text("{")
    with pytest.raises(NamedMixesError):
        mixes.update(lambda there: there.update(c={"tone": 1.0}))
    with pytest.raises(NamedMixesError, match="none holds no adapter"):
        mixes.update(lambda there: there.update(none={}), asides.append)
    assert mixes.path.read_text() == "{" and list(tmp_path.iterdir()) == [mixes.path] and asides == []
    mixes.update(lambda there: there.update(c={"tone": 1.0}), asides.append)
    assert mixes.load() == {"c": {"tone": 1.0}}
    assert [path.read_text() for path in asides] == ["{"]
    mixes.update(lambda there: there.update(d={"tone": 1.0}), asides.append)
    assert list(mixes.load()) == ["c", "d"] and len(asides) == 1


def test_an_empty_mix_is_not_written_where_no_mix_could_then_be_read(tmp_path: Path) -> None:
    write_document(tmp_path)
    mixes = NamedMixes(tmp_path / "harbour.dlm")
    mixes.save({"loud": {"tone": 1.0}})
    with pytest.raises(NamedMixesError, match="none holds no adapter"):
        mixes.update(lambda there: there.update(none={}))
    assert mixes.load() == {"loud": {"tone": 1.0}}


def test_a_name_means_one_thing_only() -> None:
    for name in ("loud", "2nd", "a_b-c", "x" * 32):
        check_mix_name(name, ["tone"])
        assert is_mix_name(name)
    for name in ("", "tone", "base", "gated", "uniform", "best", "Loud", "a:1", "a,b", "a b", "-a", "a@1", "x" * 33):
        with pytest.raises(NamedMixesError):
            check_mix_name(name, ["tone"])
    assert not any(is_mix_name(spec) for spec in ("tone:1", "tone:0.5,style:1", "tone@3:1", ""))


def test_a_saved_mix_is_a_view_of_the_command_line(tmp_path: Path) -> None:
    document = load(write_document(tmp_path))
    assert document.path is not None
    NamedMixes(document.path).save({"loud": {"tone": -2.0}})
    assert mix_view(document, "loud", signed=False) == custom({"tone": -2.0}, "mix:loud")
    assert mix_view(document, "tone:-2", signed=True) == custom({"tone": -2.0})
    with pytest.raises(InvalidMixSpecError, match="negative"):
        mix_view(document, "tone:-2", signed=False)


def test_a_mix_argument_is_weights_or_a_saved_name(tmp_path: Path) -> None:
    document = load(write_document(tmp_path))
    assert document.path is not None
    names = document.routing_names
    NamedMixes(document.path).save({"loud": {"tone": -2.0}, "old": {"tone@1": 1.0}, "odd": {"nobody": 1.0}})
    assert mix_of_argument(document, " loud ", names) == {"tone": -2.0}
    assert mix_of_argument(document, "old", names) == {"tone@1": 1.0}
    assert mix_of_argument(document, "tone:0.5", names) == {"tone": 0.5}
    with pytest.raises(InvalidMixSpecError, match=r"no mix is called 'quiet' \(saved are loud, old, odd\)"):
        named_mix(document, "quiet")
    with pytest.raises(InvalidMixSpecError, match="'odd' names nobody, which the document does not declare"):
        named_mix(document, "odd")
    NamedMixes(document.path).path.unlink()
    with pytest.raises(InvalidMixSpecError, match="none is saved"):
        mix_of_argument(document, "loud", names)
