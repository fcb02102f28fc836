"""What moved between any two gates, and any two versions of an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.errors import UsageError
from dlm_tui.gate import Gate, GateNetwork, load_gate, save_gate
from dlm_tui.model import save_peft_adapter
from dlm_tui.model.base import Base
from dlm_tui.model.chat import Message
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from dlm_tui.store import GateConfig, Store, commit_version, new_version, update_manifest
from dlm_tui.store.adapter_history import version_history
from dlm_tui.store.former_gates import KEPT, gate_history, prune_gates
from tests.tiny_models import random_adapter, tiny_base
from tests.training_samples import write_document

NAMES = ("facts", "manners")


def put_gate(store: Store, base: Base, run: int) -> None:
    """A gate with random weights of its own, as training run `run` leaves it."""
    torch.manual_seed(run)
    config = GateConfig(NAMES, 0.01, 4, base.hidden_size, "trained")
    network = GateNetwork(base.hidden_size, 4, 2).requires_grad_(False)
    identity = base.identity
    record = {"run_id": run, "base_id": identity.id, "weights_sha256": identity.weights_sha256}
    save_gate(store, Gate(NAMES, config, network, record))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A document with two versions of each adapter and three gates."""
    base = tiny_base(tmp_path / "base", "llama")
    path = write_document(tmp_path, sections=3)
    path.write_text(path.read_text().replace("base_model: peer-tiny", "base_model: hf:test/llama"))
    (tmp_path / "sample.prompts.json").write_text(json.dumps({"mine": ["What does boat 7 carry?"]}))
    store = Store(tmp_path / "home", load(path).dlm_id).create()
    for seed in (1, 2):
        for name in NAMES:
            version = new_version(store, name)
            save_peft_adapter(random_adapter(base, name, seed=seed, size=0.1 * seed), version.path, base.identity.id)
            commit_version(store, version)
    for run in (3, 5, 8):
        put_gate(store, base, run)
    return path


def opened(path: Path) -> Session:
    return run_to_end(Session.open(path, path.parent / "home", path.parent / "base"))


QUESTIONS = {f"What does boat {n} carry?": f"It carries {n + 2} crates of salt." for n in range(3)}


def plain_gain(session: Session, name: str, text: str) -> float:
    """Mean over the answer's tokens of log p under one adapter minus log p under the base, by the reference forward."""
    model = session.model_for([{name: 1.0}])
    turns: list[Message] = [{"role": "user", "content": text}, {"role": "assistant", "content": QUESTIONS[text]}]
    ids, asked = session.base.conversation(turns)
    tokens, sides = torch.tensor([ids]), []
    for mix in ({name: 1.0}, {}):
        hidden = model.reference.forward(tokens, None, model.coefficients(mix)[None])[0, asked - 1 : -1]
        logprobs = model.reference.logits(hidden).double().log_softmax(-1)
        sides.append(logprobs[range(len(ids) - asked), tokens[0, asked:]])
    return float((sides[0] - sides[1]).mean())


def test_any_two_gates(path: Path) -> None:
    session = opened(path)
    assert [(facts.run, facts.in_force) for facts in gate_history(session.store)] == [(8, True), (5, False), (3, False)]
    found = run_to_end(session.compare("gate@3", "gate@5"))
    assert [one.saved for one in found.moved] == [True] + [False] * 6 and not found.answers
    torch.manual_seed(3)
    plain = GateNetwork(session.base.hidden_size, 4, 2)
    for one in found.moved:
        with torch.no_grad():
            wanted = plain(run_to_end(session.router.embed(one.text)))
        assert list(one.before.values()) == pytest.approx(wanted.tolist(), abs=1e-6)
    back = run_to_end(session.compare("gate@5", "gate@3"))
    assert [(one.after, one.before) for one in back.moved] == [(one.before, one.after) for one in found.moved]
    newest = run_to_end(session.compare("gate@5", "gate"))
    assert newest.moved[0].after == run_to_end(session.router.route(newest.moved[0].text)).weights
    with pytest.raises(UsageError, match="no gate@4; there are: gate@8, gate@5, gate@3"):
        run_to_end(session.compare("gate@4", "gate"))


def test_any_two_versions_of_an_adapter(path: Path) -> None:
    session = opened(path)
    found = run_to_end(session.compare("facts@1", "facts"))
    assert [one.saved for one in found.answers] == [True] + [False] * 3 and not found.moved
    assert found.answers[0].before_gain is None and found.answers[1].before_gain is not None
    assert "facts@1 on 3 of its own answers" in found.summary
    for one in found.answers[1:]:
        assert one.before_gain == pytest.approx(plain_gain(session, "facts@1", one.text), abs=1e-4)
        assert one.after_gain == pytest.approx(plain_gain(session, "facts", one.text), abs=1e-4)
    with pytest.raises(UsageError, match="not versions of one thing"):
        run_to_end(session.compare("facts@1", "manners@1"))
    with pytest.raises(UsageError, match="no version 9"):
        run_to_end(session.compare("facts@9", "facts"))


def test_the_command_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--home", str(path.parent / "home"), "--base", str(path.parent / "base")]
    update_manifest(opened(path).store, lambda manifest: None, base_model="pocket")
    assert main(["adapter", "list", str(path), *more]) == 0
    assert "gate@8  *" in capsys.readouterr().out
    assert main(["adapter", "compare", str(path), "gate@3", "gate", "--json", *more]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["before"], told["after"], len(told["moved"])) == ("gate@3", "gate", 7)
    assert main(["adapter", "compare", str(path), "facts@1", "facts@2", *more]) == 0
    out = capsys.readouterr()
    assert "effect" in out.out and "of its own answers" in out.err
    assert main(["adapter", "compare", str(path), "gate@3", *more]) == 2
    assert main(["adapter", "prune", str(path), "--dry-run", *more]) == 0
    assert "gate@3" in capsys.readouterr().out and len(gate_history(opened(path).store)) == 3
    (size,) = [
        facts.size for facts in version_history(opened(path).store, ["manners"])["manners"] if facts.version == 1
    ]
    left = {"versions": [{"name": "manners", "version": 1, "bytes": size}], "gates": [3]}
    first = ["facts", "--version", "1"]
    for verb, words, wanted in (
        ("keep", first, {"name": "facts", "version": 1, "kept": True}),
        ("keep", [*first, "--no"], {"name": "facts", "version": 1, "kept": False}),
        ("drop", first, {"name": "facts", "version": 1}),
        ("prune", ["--dry-run"], {**left, "dry_run": True}),
        ("prune", [], {**left, "dry_run": False}),
    ):
        assert main(["adapter", verb, str(path), *words, "--json", *more]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told.pop("bytes", 1) > 0 and told == wanted
    assert [facts.run for facts in gate_history(opened(path).store)] == [8, 5]


def test_few_gates_are_kept_and_a_damaged_one_is_left_out(path: Path) -> None:
    session = opened(path)
    store = session.store
    for run in range(10, 10 + KEPT + 3):
        put_gate(store, session.base, run)
    history = gate_history(store)
    assert len(history) == KEPT + 1 and history[0].run == 10 + KEPT + 2
    (store.root / "tui_gates" / f"run{history[1].run:06d}" / "gate_config.json").write_text("{")
    assert len(gate_history(store)) == KEPT
    prune_gates(store)
    assert load_gate(store) is not None, "the one in force is not touched"
