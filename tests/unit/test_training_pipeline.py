"""Training: reproducible, isolated, cancellable, recorded."""

from __future__ import annotations

import hashlib
import json
import math
import stat
from pathlib import Path

import pytest

from dlm_tui.app.run_curves import read_runs
from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.errors import Cancelled, DlmTuiError, UsageError
from dlm_tui.model import Base, load_base, resolve_base
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.store import (
    AdapterKind,
    KindChoices,
    MetricsReader,
    Store,
    StoreError,
    adapter_versions,
    current_version,
    read_gate_config,
    read_manifest,
)
from dlm_tui.store.adapter_history import use_versions
from dlm_tui.training import TrainRequest, train_document
from dlm_tui.training.phases import Diverged
from tests.interop.peer_fixture import peer_root
from tests.interop.store_checker import check_store
from tests.tiny_models import tiny_base
from tests.training_samples import sample, write_document

PREFERENCE = """
::preference#manners::
### Prompt
Say good night.
### Chosen
Good night, dear friend, sleep well.
### Rejected
Go away.
"""


@pytest.fixture(scope="module")
def base() -> Base:
    return run_to_end(load_base(resolve_base("peer-tiny", peer_root() / "base")))


def quiet(_: Progress) -> None:
    """Nobody watches."""


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_two_runs_write_identical_files_and_a_store_that_follows_the_formats(base: Base, tmp_path: Path) -> None:
    document = sample(tmp_path)
    stores = [Store(tmp_path / home, document.dlm_id) for home in ("one", "two")]
    for store in stores:
        outcome = train_document(TrainRequest(document=document, store=store, base=base), quiet)
        assert outcome.gate is not None and outcome.gate.mode == "trained", outcome.gate_error
    for name in ("facts", "manners"):
        versions = [current_version(store, name) for store in stores]
        assert versions[0] and versions[1]
        assert digests(versions[0].path) == digests(versions[1].path)
    gates = [(store.gate_dir / "gate.safetensors").read_bytes() for store in stores]
    assert gates[0] == gates[1]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in stores[0].adapters_dir.rglob("*") if path.is_file()}
    assert len(modes) == 1, "whoever shares the store can read all of a version or nothing"
    check_store(stores[0].root, ["facts", "manners"])
    manifest = read_manifest(stores[0])
    assert manifest is not None
    assert [(run.run_id, run.adapter_name) for run in manifest.training_runs] == [(1, "facts"), (2, "manners")]
    assert set(manifest.content_hashes) == {section.section_id for section in document.sections}
    for run in manifest.training_runs:
        assert run.ended_at is not None and run.started_at <= run.ended_at


def test_an_adapter_does_not_depend_on_the_others(base: Base, tmp_path: Path) -> None:
    document = sample(tmp_path)
    together, alone = Store(tmp_path / "a", document.dlm_id), Store(tmp_path / "b", document.dlm_id)
    train_document(TrainRequest(document=document, store=together, base=base), quiet)
    train_document(TrainRequest(document=document, store=alone, base=base, adapters=["manners"]), quiet)
    first, second = current_version(together, "manners"), current_version(alone, "manners")
    assert first and second and digests(first.path) == digests(second.path)
    assert current_version(alone, "facts") is None


def test_training_leaves_the_base_as_it_was(base: Base, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    document = sample(tmp_path)
    train_document(TrainRequest(document=document, store=Store(tmp_path, document.dlm_id), base=base), quiet)
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(value.equal(after[name]) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_cancelling_leaves_the_previous_adapters_and_marks_the_run(base: Base, tmp_path: Path) -> None:
    document = sample(tmp_path)
    store = Store(tmp_path, document.dlm_id)
    request = TrainRequest(document=document, store=store, base=base)
    train_document(request, quiet)
    before = adapter_versions(store, ["facts", "manners"])

    def stop_in_the_second(step: Progress) -> None:
        if step.scope == "manners":
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        train_document(request, stop_in_the_second)
    assert adapter_versions(store, ["facts", "manners"]) == before
    statuses = {run["run_id"]: run["status"] for run in MetricsReader(store).runs(limit=10)}
    assert statuses == {1: "ok", 2: "ok", 3: "cancelled", 4: "cancelled"}
    folders = [path.name for path in (store.adapter_dir("facts") / "versions").iterdir()]
    assert folders == ["v0001"]
    train_document(request, quiet)
    manifest = read_manifest(store)
    assert manifest is not None
    assert [run.run_id for run in manifest.training_runs] == [1, 2, 5, 6], "ids of cancelled runs are not used again"


def test_a_diverging_adapter_is_rejected_and_nothing_moves(base: Base, tmp_path: Path) -> None:
    document = sample(tmp_path, facts="learning_rate: 1.0e+30")
    store = Store(tmp_path, document.dlm_id)
    with pytest.raises(Diverged, match=r"; lower the learning rate$"):
        train_document(TrainRequest(document=document, store=store, base=base), quiet)
    assert current_version(store, "facts") is None
    assert [path.name for path in (store.adapter_dir("facts") / "versions").iterdir()] == ["v0001-rejected"]
    assert [run["status"] for run in MetricsReader(store).runs(limit=5)] == ["failed"]


def test_a_base_that_is_damaged_is_named_before_anything_is_learned(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "m")
    for parameter in base.model.parameters():
        parameter.data[...] = math.nan
    document = sample(tmp_path)
    with pytest.raises(Diverged, match=r"loss became nan at step 1; .*damaged: fetch the base again$"):
        train_document(TrainRequest(document=document, store=Store(tmp_path, document.dlm_id), base=base), quiet)


def test_preferences_train_after_the_answers(base: Base, tmp_path: Path) -> None:
    plain, liked = sample(tmp_path / "plain"), sample(tmp_path / "liked", extra=PREFERENCE)
    phases: list[tuple[str, str | None]] = []

    def watch(step: Progress) -> None:
        if step.loss is not None and (step.stage, step.scope) not in phases:
            phases.append((step.stage, step.scope))

    stores = [Store(tmp_path / home, plain.dlm_id) for home in ("one", "two")]
    train_document(TrainRequest(document=plain, store=stores[0], base=base, adapters=["manners"]), quiet)
    train_document(TrainRequest(document=liked, store=stores[1], base=base, adapters=["manners"]), watch)
    assert phases[:2] == [("sft", "manners"), ("dpo", "manners")]
    weights = [current_version(store, "manners") for store in stores]
    assert weights[0] and weights[1]
    name = "adapter_model.safetensors"
    assert digests(weights[0].path)[name] != digests(weights[1].path)[name], "the preference phase changed the weights"


def test_every_loss_carries_its_kind(base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_document(tmp_path, extra=PREFERENCE, epochs=1)
    store = Store(tmp_path / "home", load(path).dlm_id)

    def call(command: str, *words: str) -> tuple[str, str]:
        assert main([command, *words, "--home", str(tmp_path / "home")]) == 0
        output = capsys.readouterr()
        return output.out, output.err

    out, err = call("train", str(path), "--base", str(base.source.path), "--json")
    report = json.loads(out)
    facts, manners = report["adapters"]["facts"], report["adapters"]["manners"]
    assert (facts["train_loss_kind"], facts["train_loss_unit"]) == ("sft", "nats per token")
    assert (manners["train_loss_kind"], manners["train_loss_unit"]) == ("dpo", "nats per pair")
    assert [loss["kind"] for loss in manners["train_losses"]] == ["sft", "dpo"]
    answers, pairs = (loss["value"] for loss in manners["train_losses"])
    assert manners["train_loss"] == pairs and report["gate"]["loss_unit"] == "nats per prompt"
    words = f", loss {answers:.3f} nats per token, dpo loss {pairs:.3f} nats per pair, "
    assert words in next(line for line in err.splitlines() if line.startswith("manners: version"))
    assert "preferences of manners" in err and "dpo loss" in err and "gate training" in err

    steps = manners["steps"]
    kinds = ["sft"] * (steps - 1) + ["dpo"]
    (log,) = store.logs_dir.glob(f"train-{manners['run_id']:06d}-*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["loss_kind"] for line in lines if line["type"] == "step"] == kinds
    manifest = read_manifest(store)
    assert manifest is not None
    assert [run.final_train_loss_kind for run in manifest.training_runs] == ["sft", "dpo"]
    check_store(store.root, ["facts", "manners"])

    reader = MetricsReader(store)
    assert [row["loss_kind"] for row in reader.steps(manners["run_id"])] == kinds
    (curves,) = (run.curves for run in read_runs(store) if run.run_id == manners["run_id"])
    assert [x for x, _ in curves["dpo"]] == [float(steps)] and len(curves["loss"]) == steps - 1
    told = json.loads(call("metrics", str(path), "--json")[0])["loss_kinds"]
    assert told == {"1": {"sft": 1}, "2": {"sft": 1, "dpo": steps}}
    assert "sft+dpo" in call("metrics", str(path))[0]
    assert [row["run_id"] for row in json.loads(call("metrics", str(path), "--json", "--phase", "dpo")[0])["runs"]] == [
        2
    ]
    one = call("metrics", str(path), "--run-id", "2")[0]
    assert (
        one.startswith("run 2: sft+dpo, ok")
        and f"dpo loss {pairs:.6g} nats per pair" in one
        and "nats per token" in one
        and "loss_kinds" not in one
    )

    listed = call("adapter", "list", str(path), "manners")[0]
    assert f"  loss {answers:.3f} nats/token  dpo {pairs:.3f} nats/pair  " in listed
    (version,) = json.loads(call("adapter", "list", str(path), "manners", "--json")[0])["manners"]
    assert version["train_losses"] == manners["train_losses"] and version["train_loss"] == pairs
    assert (version["train_loss_kind"], version["train_loss_unit"]) == ("dpo", "nats per pair")


def test_what_cannot_be_trained_is_refused_in_a_sentence(base: Base, tmp_path: Path) -> None:
    document = sample(tmp_path)
    store = Store(tmp_path, document.dlm_id)
    with pytest.raises(UsageError, match="no adapter 'nobody'"):
        train_document(TrainRequest(document=document, store=store, base=base, adapters=["nobody"]), quiet)
    document = sample(tmp_path, facts="adapter: dora")
    with pytest.raises(DlmTuiError, match="DoRA"):
        train_document(TrainRequest(document=document, store=store, base=base), quiet)
    media = sample(tmp_path / "media", extra='\n::image path="boat.png" alt="a boat"::\n')
    with pytest.raises(DlmTuiError, match="image"):
        train_document(TrainRequest(document=media, store=Store(tmp_path / "m", media.dlm_id), base=base), quiet)


def test_only_one_run_per_store_at_a_time(base: Base, tmp_path: Path) -> None:
    document = sample(tmp_path)
    store = Store(tmp_path, document.dlm_id)
    request = TrainRequest(document=document, store=store, base=base)
    refused: list[str] = []

    def again(step: Progress) -> None:
        if step.scope == "facts" and not refused:
            with pytest.raises(DlmTuiError, match="another run") as error:
                train_document(request, quiet)
            refused.append(str(error.value))

    train_document(request, again)
    assert len(refused) == 1


def test_a_store_of_another_base_is_refused(base: Base, tmp_path: Path) -> None:
    document = sample(tmp_path)
    store = Store(tmp_path, document.dlm_id)
    train_document(TrainRequest(document=document, store=store, base=base), quiet)
    text = document.path.read_text().replace("base_model: peer-tiny", "base_model: other-base")
    document.path.write_text(text)
    from dlm_tui.document import load

    with pytest.raises(DlmTuiError, match="made for base 'peer-tiny'"):
        train_document(TrainRequest(document=load(document.path), store=store, base=base), quiet)


def test_gate_only_leaves_the_adapters(base: Base, tmp_path: Path) -> None:
    document = sample(tmp_path)
    store = Store(tmp_path, document.dlm_id)
    outcome = train_document(TrainRequest(document=document, store=store, base=base, gate_only=True), quiet)
    assert outcome.adapters == {} and outcome.gate is not None
    assert adapter_versions(store, ["facts", "manners"]) == {}
    config = read_gate_config(store)
    assert config is not None and config.mode == "trained"


def test_the_stored_config_is_what_peft_reads(base: Base, tmp_path: Path) -> None:
    from peft import PeftConfig

    document = sample(tmp_path)
    store = Store(tmp_path, document.dlm_id)
    train_document(TrainRequest(document=document, store=store, base=base, adapters=["facts"]), quiet)
    version = current_version(store, "facts")
    assert version is not None
    config = PeftConfig.from_pretrained(str(version.path))
    assert (config.r, config.lora_alpha, config.use_dora) == (4, 16, False)
    raw = json.loads((version.path / "adapter_config.json").read_text())
    assert raw["target_modules"] == sorted(raw["target_modules"])


@pytest.mark.parametrize("selection", ["s_only", "wanda", "cho_rej_min_std"])
def test_a_pissa_adapter_is_stored_as_an_ordinary_lora(base: Base, tmp_path: Path, selection: str) -> None:
    from dlm_tui.model import load_peft_adapter

    document = sample(tmp_path, extra=PREFERENCE, epochs=8)
    store = Store(tmp_path, document.dlm_id)
    request = TrainRequest(
        document=document,
        store=store,
        base=base,
        adapters=["manners"],
        choices=KindChoices(every=AdapterKind(parameterization="pissa", selection=selection)),
    )
    losses: list[float] = []
    train_document(request, lambda step: losses.append(step.loss) if step.stage == "sft" and step.loss else None)
    assert sum(losses[-4:]) < sum(losses[:4])
    version = current_version(store, "manners")
    assert version is not None
    adapter = load_peft_adapter(version.path, "manners", base)
    assert adapter.rank == 2 and len(adapter.modules) == 4 * base.model.config.num_hidden_layers
    extras = MetricsReader(store).run_extras(1)
    assert extras["parameterization"] == "pissa" and selection in str(extras)


def test_a_score_that_needs_preferences_says_so(base: Base, tmp_path: Path) -> None:
    document = sample(tmp_path)
    request = TrainRequest(
        document=document,
        store=Store(tmp_path, document.dlm_id),
        base=base,
        adapters=["manners"],
        choices=KindChoices(every=AdapterKind(parameterization="pissa", selection="cho_rej_min_std")),
    )
    with pytest.raises(UsageError, match="'manners' has no preference pairs"):
        train_document(request, quiet)


def test_an_interrupt_counts_as_cancelled(base: Base, tmp_path: Path) -> None:
    document = sample(tmp_path)
    store = Store(tmp_path, document.dlm_id)

    def interrupt(step: Progress) -> None:
        if step.scope == "facts":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_document(TrainRequest(document=document, store=store, base=base), interrupt)
    assert [run["status"] for run in MetricsReader(store).runs()] == ["cancelled"]


def test_adapters_come_into_force_together_or_not_at_all(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlm_tui.training import commit

    document = sample(tmp_path)
    store = Store(tmp_path, document.dlm_id)
    request = TrainRequest(document=document, store=store, base=base)
    train_document(request, quiet)
    before = adapter_versions(store, ["facts", "manners"])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(commit, "stage_manifest", full)
    with pytest.raises(commit.NotInForce, match=r"kept, but not in force: .*; no space is left") as caught:
        train_document(request, quiet)
    assert adapter_versions(store, ["facts", "manners"]) == before
    statuses = {run["run_id"]: run["status"] for run in MetricsReader(store).runs()}
    assert (statuses[3], statuses[4]) == ("failed", "failed")
    # What was trained is not thrown away, not even by later trainings, and can be put in force by hand.
    assert "adapter use DOC facts --version 2" in str(caught.value)
    monkeypatch.undo()
    train_document(request, quiet)
    assert adapter_versions(store, ["facts"])["facts"].version == 3
    assert use_versions(store, {"facts": 2}) == {"facts": (3, 2)}
    assert adapter_versions(store, ["facts"])["facts"].version == 2


@pytest.mark.parametrize("left", [b"who knows", b"1\nanother-host.example\n9.0\n"])
def test_what_will_stand_in_the_way_is_said_before_the_work_begins(base: Base, tmp_path: Path, left: bytes) -> None:
    document = sample(tmp_path)
    store = Store(tmp_path, document.dlm_id).create()
    store.lock_path.write_bytes(left)
    steps: list[Progress] = []
    with pytest.raises(StoreError, match="cannot be judged"):
        train_document(TrainRequest(document=document, store=store, base=base), steps.append)
    assert steps == []


def test_a_lock_that_says_no_at_the_end_loses_no_training(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlm_tui.training import commit

    document = sample(tmp_path)
    store = Store(tmp_path, document.dlm_id)
    monkeypatch.setattr(commit, "_LOCK_SECONDS", 0.2)

    def foreign_lock(step: Progress) -> None:
        if step.stage == "commit":
            store.lock_path.write_bytes(b"1\nanother-host.example\n9.0\n")

    with pytest.raises(commit.NotInForce, match="cannot be judged"):
        train_document(TrainRequest(document=document, store=store, base=base), foreign_lock)
    store.lock_path.unlink()
    for name in ("facts", "manners"):
        assert use_versions(store, {name: 1}) == {name: (None, 1)}
    assert set(adapter_versions(store, ["facts", "manners"])) == {"facts", "manners"}
