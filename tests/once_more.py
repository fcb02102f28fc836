"""On a shared build machine (CI=true) a failed test is tried once more, at most three in a run, and each is listed.

Everywhere else nothing is tried again: a test that fails once has a cause, in the program or in the test.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

MOST = 3
_PROPERTY = "tried once more"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run the test; again when its own code failed and the run has a try left."""
    if os.environ.get("CI") != "true":
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    failed = next((report for report in reports if report.when == "call" and report.failed), None)
    if failed is not None and _take_a_try(item.config):
        item.user_properties.append((_PROPERTY, failed.longreprtext))
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Every test that was tried again, with why it failed the first time."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    again = {
        report.nodeid: reason
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, reason in report.user_properties
        if name == _PROPERTY
    }
    if again:
        terminalreporter.section(f"tried once more: {len(again)} of at most {MOST} (each needs mending)")
        for nodeid, reason in again.items():
            terminalreporter.write_line(f"{nodeid}\n{reason}\n")


def _take_a_try(config: pytest.Config) -> bool:
    """Whether one of the run's tries is left; the workers of a run share them through files."""
    run = getattr(config, "workerinput", {}).get("testrunuid", str(os.getpid()))
    folder = Path(tempfile.gettempdir()) / f"dlm-tui-tries-{run}"
    folder.mkdir(exist_ok=True)
    for number in range(MOST):
        try:
            (folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False
