"""Tests that share a module's fixture run in one process: `tests/conftest.py` names their group, xdist keeps it."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="module")
def shared() -> int:
    return os.getpid()


def test_what_a_module_shares_keeps_its_tests_together(shared: int, request: pytest.FixtureRequest) -> None:
    assert shared == os.getpid()
    assert request.node.get_closest_marker("xdist_group") is not None
    if getattr(request.config.option, "loadgroup", False):  # in a worker of `--dist loadgroup`
        assert request.node.nodeid.endswith("@tests/unit/test_groups.py")


def test_a_test_by_itself_is_in_no_group(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("xdist_group") is None
