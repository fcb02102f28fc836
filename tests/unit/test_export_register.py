"""A job hands a finished export to Ollama: what it prints is logged, and a failure does not undo the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from dlm_tui.engine.job_worker import _register
from dlm_tui.engine.protocol import Event, ExportReport, Log
from dlm_tui.errors import Cancelled


class Job:
    """What `_register` needs of a job."""

    def __init__(self, cancelled: bool = False) -> None:
        self.sent: list[Event] = []
        self.cancelled = cancelled

    def check(self) -> None:
        if self.cancelled:
            raise Cancelled("cancelled")

    def send(self, event: Event) -> None:
        self.sent.append(event)


def registered(job: Job, folder: Path, name: str) -> ExportReport:
    """The report of an export that is handed to Ollama."""
    report = ExportReport(folder=str(folder), next_command="")
    _register(cast("Any", job), report, folder, name)
    return report


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = folder / "ollama"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_registering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, 'echo "$1 $2 $3 $4"')
    job = Job()
    report = registered(job, tmp_path, "dlm-x:v0001")
    assert report.registered == "dlm-x:v0001" and report.register_error is None
    assert [event.text for event in job.sent if isinstance(event, Log)] == ["create dlm-x:v0001 -f Modelfile"]


def test_failing_and_stopped_registering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "echo no; exit 3")
    assert "code 3" in str(registered(Job(), tmp_path, "x").register_error)
    install(tmp_path, monkeypatch, "echo on; exec sleep 60")
    stopped = registered(Job(cancelled=True), tmp_path, "x")
    assert "the export itself is complete" in str(stopped.register_error) and stopped.registered is None
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert "not on the PATH" in str(registered(Job(), tmp_path, "x").register_error)
