"""Adapters may be called like views; the views of the two never share a name."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import pytest

from dlm_tui.cli.score_reports import _chosen
from dlm_tui.errors import UsageError
from dlm_tui.model.views import (
    BASE,
    GATED,
    RESERVED,
    STATIC,
    UNIFORM,
    adapter_of,
    named_view,
    named_views,
    resolve_view,
    solo,
)

NAMES = ["base", "gated", "facts"]


def chosen(views: str | None) -> list[tuple[str, str, str | None]]:
    session = SimpleNamespace(model=SimpleNamespace(names=tuple(NAMES)), document=SimpleNamespace(gate_enabled=True))
    found = _chosen(argparse.Namespace(views=views, mix=[]), session)
    return [(view.name, view.kind, view.adapter) for view in found]


def test_a_solo_view_says_when_its_name_means_another_view() -> None:
    assert solo("facts").name == "facts"
    for name in RESERVED:
        assert solo(name).name == f"adapter:{name}"
        assert adapter_of(name) is None
        assert adapter_of(solo(name).name) == name
        assert named_view(solo(name).name) == solo(name)
    assert len({view.name for view in (BASE, GATED, UNIFORM, STATIC, *map(solo, RESERVED))}) == 4 + len(RESERVED)
    assert named_view("base") is BASE and named_view("adapter:facts") == named_view("facts") == solo("facts")
    assert resolve_view(solo("base"), NAMES) == {"base": 1.0}


def test_score_shows_adapter_and_view_side_by_side() -> None:
    assert chosen(None) == [
        ("gated", "gated", None),
        ("adapter:base", "solo", "base"),
        ("adapter:gated", "solo", "gated"),
        ("facts", "solo", "facts"),
    ]
    assert chosen("base,adapter:base, gated,adapter:gated,adapter:facts") == [
        ("base", "base", None),
        ("adapter:base", "solo", "base"),
        ("gated", "gated", None),
        ("adapter:gated", "solo", "gated"),
        ("facts", "solo", "facts"),
    ]
    with pytest.raises(UsageError, match=r"no view 'nobody' \(known: base, gated, uniform, static, adapter:base"):
        chosen("nobody")


def test_the_static_mix_has_the_name_of_the_server_too() -> None:
    assert named_view("static_mean") is named_view("static") is STATIC


@pytest.mark.parametrize(
    ("views", "problem"),
    [
        (" , ", r"no view is named in ' , ': give base, gated"),
        ("static,facts,static_mean", r"the view 'static' is named twice"),
        ("facts,adapter:facts", r"the view 'facts' is named twice"),
        ("factz", r"no view 'factz' .*did you mean facts\?"),
        ("nobody@2", r"no view 'nobody@2'"),
    ],
)
def test_a_list_of_views_is_read_by_one_rule(views: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        named_views(views, NAMES)
    assert [view.name for view in named_views("base, facts@2,", NAMES)] == ["base", "facts@2"]
