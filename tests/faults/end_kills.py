"""Kills a small training at every STRIDE-th file-system step from its commit on, and asks what is left for the truth.

`python -m tests.faults.end_kills FOLDER STRIDE` prints a JSON object: which state was found how often. Raises
AssertionError at the first sentence that is not so. Its adapters are trained once, and each kill goes on from there in
a fork, every time in a home of its own beside the document.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.cli.show_report import show_report
from dlm_tui.document import load
from dlm_tui.errors import UsageError
from dlm_tui.progress import Progress
from dlm_tui.store import Store, read_manifest
from dlm_tui.store.adapter_history import version_history
from dlm_tui.store.examine import examine
from dlm_tui.store.former_gates import run_of_gate
from dlm_tui.store.gate_files import WEIGHTS_NAME
from dlm_tui.training import TrainRequest, train_document
from tests.faults.version_kills import KILLED, die_at, died
from tests.tiny_models import tiny_base
from tests.training_samples import write_document

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.model.base import Base

NAMES = ("facts", "manners")
UNFINISHED, OWES_GATE, OWES_EFFECTS, WHOLE = "unfinished", "owes its gate", "owes its effects", "whole"


@dataclass(frozen=True)
class Found:
    """What a killed training left, read from what is there and from nothing that judges it."""

    in_force: dict[str, int]
    runs: list[int]
    gate_run: int | None
    measured: set[str]
    gate: bytes = field(repr=False)

    @property
    def state(self) -> str:
        """How far the second training has come."""
        if len(self.runs) == len(NAMES):
            return UNFINISHED
        if self.gate_run != self.runs[-1]:
            return OWES_GATE
        return WHOLE if self.measured == set(NAMES) else OWES_EFFECTS


def training(base: Base, home: Path, *, resume: bool = False, at_commit: Callable[[], None] | None = None) -> None:
    """Train, or go on; `at_commit` is called when all adapters are trained and none is in force."""

    def report(step: Progress) -> None:
        if step.stage == "commit" and at_commit is not None:
            at_commit()

    document, store = _document(home)
    train_document(TrainRequest(document=document, store=store, base=base, resume=resume), report)


def look(home: Path) -> Found:
    """The facts of a store that nothing is changing any more."""
    _, store = _document(home)
    manifest = read_manifest(store)
    assert manifest is not None
    facts = (one for versions in version_history(store, NAMES).values() for one in versions)
    measured = {one.name for one in facts if one.in_force and one.effect is not None}
    return Found(
        in_force=dict(manifest.adapter_versions),
        runs=sorted(run.run_id for run in manifest.training_runs),
        gate_run=run_of_gate(store),
        gate=(store.gate_dir / WEIGHTS_NAME).read_bytes(),
        measured=measured,
    )


def truth(home: Path) -> Found:
    """What doctor, show and the list of versions say, each as the first to look, is so."""
    said = {}
    for asked in ("doctor", "show", "list"):
        again = home.with_name(f"{home.name}-{asked}")
        shutil.copytree(home, again)
        said[asked] = _ASKED[asked](again)
        shutil.rmtree(again)
    _doctor(home)
    found = look(home)
    notes, gate, listed = said["doctor"], said["show"], said["list"]
    for state, words in _DOCTOR.items():
        assert (words in notes) == (state == found.state), (found.state, notes)
    assert "damage" not in notes, notes
    if found.state == OWES_GATE:
        assert gate.startswith("stale: The gate is older than the adapters"), gate
    else:
        number = 1 if found.state == UNFINISHED else 2
        assert gate.startswith(f"trained: The gate was trained in training {number} on"), (found.state, gate)
    assert listed == found.in_force, (found.state, listed)
    return found


def _doctor(home: Path) -> str:
    document, store = _document(home)
    return "\n".join(
        f"{one.severity}: {one.text}"
        for one in examine(store, NAMES, document.base_model)
        if "waits to be finished" not in one.text
    )


def _show(home: Path) -> str:
    document, store = _document(home)
    report = show_report(store.home, document)
    run = run_of_gate(store)
    assert report["gate_state"]["last_run_id"] == run, "the weights that are shown are those of the gate in force"
    return f"{report['gate_state']['mode']}: {report['gate_state']['reason']}"


def _list(home: Path) -> dict[str, int]:
    _, store = _document(home)
    history = version_history(store, NAMES)
    return {name: one.version for name, facts in history.items() for one in facts if one.in_force}


_ASKED: dict[str, Callable[[Path], object]] = {"doctor": _doctor, "show": _show, "list": _list}
_DOCTOR = {
    UNFINISHED: "note: A training was interrupted (facts, manners)",
    OWES_GATE: "note: The gate of the last training is not trained",
    OWES_EFFECTS: "note: The effect of the last training is not measured",
}


def gone_on(base: Base, home: Path, found: Found) -> None:
    """`--resume` does what is left and nothing twice, and says so where nothing is."""
    document, store = _document(home)
    try:
        training(base, home, resume=True)
    except UsageError as error:
        assert found.state == WHOLE and "no interrupted training" in str(error), (found.state, error)
    else:
        assert found.state != WHOLE
    now = look(home)
    assert now.state == WHOLE and len(now.runs) == 2 * len(NAMES), now
    if found.state != UNFINISHED:
        assert (now.in_force, now.runs) == (found.in_force, found.runs), "nothing was trained again"
        assert all(len(facts) == 2 for facts in version_history(store, NAMES).values())
    if found.state in (OWES_EFFECTS, WHOLE):
        assert now.gate == found.gate
    findings = [one.text for one in examine(store, NAMES, document.base_model)]
    assert not [text for text in findings if "--resume" in text or "gate" in text], findings


def main(folder: Path, stride: int) -> dict[str, int]:
    """Every kill, and what was found."""
    base = tiny_base(folder / "base", "llama")
    template = folder / "template"
    write_document(folder, sections=4, epochs=1)
    training(base, template)
    assert died(lambda: training(base, template, at_commit=lambda: os._exit(KILLED)))
    states = Counter[str]()
    step, killed = 1 - stride, True
    while killed:
        step += stride
        there = folder / f"at-{step}"
        shutil.copytree(template, there)
        killed = died(lambda there=there, step=step: training(base, there, resume=True, at_commit=lambda: die_at(step)))
        try:
            found = truth(there)
            gone_on(base, there, found)
        except BaseException:
            print(f"killed at step {step}", file=sys.stderr)
            raise
        states[found.state] += 1
        shutil.rmtree(there)
    return dict(states)


def _document(home: Path) -> tuple[Document, Store]:
    document = load(home.parent / "sample.dlm")
    return document, Store(home, document.dlm_id)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
