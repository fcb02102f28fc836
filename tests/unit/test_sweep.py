"""Sweeps: figures tied to plain references, nothing measured twice, the best written in place."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from dlm_tui.cli.main import main
from dlm_tui.document import load, parse_bytes, read_document_bytes
from dlm_tui.errors import Cancelled, UsageError
from dlm_tui.gate import evaluate_gate
from dlm_tui.model import MixedModel
from dlm_tui.model.base import Base
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.store import MetricsReader, Store
from dlm_tui.training import held_out
from dlm_tui.training.finetune import finetune
from dlm_tui.training.sweep import SweepRequest, sweep_document
from dlm_tui.training.sweep_grid import parse_grid, trials_of
from dlm_tui.training.sweep_report import SweepReport, TrialReport, bars, best_of
from tests.tiny_models import tiny_base
from tests.training_samples import write_document


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "m", "llama")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_document(tmp_path, sections=4, epochs=4)


def request(path: Path, base: Base, *grid: str, **more: Any) -> SweepRequest:
    data = read_document_bytes(path)
    document = parse_bytes(data, path)
    store = Store(path.parent / "home", document.dlm_id)
    return SweepRequest(
        document=document, data=data, store=store, base=base, grid=parse_grid(grid), **{"folds": 2, **more}
    )


def sweep(path: Path, base: Base, *grid: str, **more: Any) -> SweepReport:
    return sweep_document(request(path, base, *grid, **more), lambda step: None)


def test_every_combination_is_a_document(path: Path) -> None:
    data = read_document_bytes(path)
    document = parse_bytes(data, path)
    grid = parse_grid(["learning_rate=1e-4,3e-4", "adapters.facts.lora_r=8", "gate.entropy_lambda=0,0.1,1"])
    trials = trials_of(document, data, grid)
    assert len(trials) == 6
    found = {
        (t.document.adapter_settings("manners").learning_rate, t.document.training.gate.entropy_lambda) for t in trials
    }
    assert found == {(rate, strength) for rate in (1e-4, 3e-4) for strength in (0.0, 0.1, 1.0)}
    assert all(t.document.adapter_settings("facts").lora_r == 8 for t in trials)
    assert all(t.document.adapter_settings("manners").lora_r == 2 for t in trials), "named: only there"
    for wrong in ("learning_rate", "=1", "learning_rate=", "lora_r=1,,2"):
        with pytest.raises(UsageError):
            parse_grid([wrong])
    with pytest.raises(UsageError, match="combinations"):
        trials_of(document, data, parse_grid([f"num_epochs={','.join(map(str, range(1, 1002)))}"]))


def test_a_setting_that_there_is_not_is_the_commands_fault(path: Path) -> None:
    for text in ("foo=1", "learning_rate=-1"):
        with pytest.raises(UsageError, match=rf"--set {text} makes no valid document: training"):
            trials_of(load(path), path.read_bytes(), parse_grid([text]))
    with pytest.raises(UsageError, match="declares no adapter 'fact'; it has facts, manners: did you mean facts"):
        trials_of(load(path), path.read_bytes(), parse_grid(["adapters.fact.lora_r=4"]))


@pytest.mark.parametrize("rate", ["1e308", ".inf"])
def test_a_rate_that_no_weight_can_take_is_refused_before_anything_trains(path: Path, base: Base, rate: str) -> None:
    with pytest.raises(UsageError, match=r"learning_rate (1e\+308|inf) of adapter 'facts' \(sft\) is too large"):
        sweep(path, base, f"learning_rate={rate}")


def test_a_trial_without_a_gate_has_no_figures_of_one(path: Path, base: Base) -> None:
    report = sweep(path, base, "gate.enabled=false,true")
    off, on = report.trials
    assert (off.log_loss, off.accuracy) == (None, None) and on.log_loss is not None and report.best == 1
    assert report.notes == ["gate: a trial that turns it off has no figures of it"]


def test_the_loss_is_that_of_peft_in_float64_on_rows_it_has_not_seen(path: Path, base: Base, tmp_path: Path) -> None:
    document = load(path)
    works = [work for work in held_out.fold_works(document, base, 2) if work.name == "facts"]
    assert len(works) == 2
    for work in works:
        seen = {tuple(row) for row in work.work.rows.train}
        assert seen.isdisjoint(tuple(row.ids) for row in work.judged)
    everything = {tuple(row.ids) for work in works for row in work.judged}
    assert len(everything) == 5, "four tagged sections and the prose, each held out once"
    measured = held_out.train_and_judge(base, works[0], lambda step: None)

    result = finetune(base, works[0].work.plan, works[0].work.adapter, works[0].work.rows, lambda step: None)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(result.tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(result.config))
    model: Any = PeftModel.from_pretrained(base.model, str(folder)).double().eval()
    nll = base_nll = kl = 0.0
    try:
        with torch.no_grad():
            for row in works[0].judged:
                ids = torch.tensor([row.ids])
                own = torch.log_softmax(model(input_ids=ids).logits[0], -1)
                with model.disable_adapter():
                    plain = torch.log_softmax(model(input_ids=ids).logits[0], -1)
                wanted = torch.arange(len(row.ids) - 1)
                nll -= float(own[wanted, ids[0, 1:]].sum())
                base_nll -= float(plain[wanted, ids[0, 1:]].sum())
                at = row.asked - 1
                kl += float((own[at].exp() * (own[at] - plain[at])).sum())
    finally:
        model.unload()
        base.model.float()
    assert measured.nll == pytest.approx(nll, rel=1e-5)
    assert measured.base_nll == pytest.approx(base_nll, rel=1e-5)
    assert measured.kl == pytest.approx(kl, rel=1e-3, abs=1e-6)
    assert measured.tokens == sum(len(row.ids) - 1 for row in works[0].judged)


def test_a_sweep_is_judged_by_all_folds_and_keeps_what_it_found(path: Path, base: Base) -> None:
    report = sweep(path, base, "learning_rate=0.00001,0.02", "gate.entropy_lambda=0,0.5")
    assert [trial.settings["learning_rate"] for trial in report.trials] == ["0.00001"] * 2 + ["0.02"] * 2
    assert report.works == report.fresh == 2 * 2 * 2, "two rates, two adapters, two folds; the gate changes nothing"
    slow, fast = report.trials[0], report.trials[2]
    assert slow.loss is not None and fast.loss is not None and slow.base_loss is not None
    assert fast.loss < slow.loss and slow.loss == pytest.approx(slow.base_loss, abs=0.01)
    assert report.trials[0].loss == report.trials[1].loss and report.best == 2
    assert fast.effect is not None and slow.effect is not None and fast.effect > slow.effect >= 0
    for trial in report.trials:
        wanted = request(path, base, *(f"{name}={value}" for name, value in trial.settings.items()))
        changed = trials_of(wanted.document, wanted.data, wanted.grid)[0].document
        judged = run_to_end(evaluate_gate(changed, wanted.store, MixedModel(base, {}), folds=2))
        assert (trial.accuracy, trial.log_loss) == (judged.accuracy, judged.log_loss)
    reader = MetricsReader(request(path, base, "lora_r=1").store)
    assert reader.latest_sweep() == report.as_json()
    assert reader.runs(1)[0]["phase"] == "sweep" and reader.runs(1)[0]["status"] == "ok"


def test_a_cancelled_sweep_goes_on_with_what_is_missing(path: Path, base: Base) -> None:
    grid = ("learning_rate=0.001,0.02",)
    other = path.parent / "other"
    other.mkdir()
    whole = sweep(write_document(other, sections=4, epochs=4), base, *grid)

    def stop(step: Progress) -> None:
        if step.stage == "trial" and step.done >= 3:
            raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        sweep_document(request(path, base, *grid), stop)
    again = sweep(path, base, *grid)
    assert (whole.works, whole.fresh) == (8, 8)
    assert (again.works, again.fresh) == (8, 5)
    assert again.trials == whole.trials
    wider = sweep(path, base, "learning_rate=0.001,0.02,0.05")
    assert (wider.works, wider.fresh) == (12, 4), "what another sweep measured is not measured again"
    statuses = [row["status"] for row in MetricsReader(request(path, base, "lora_r=1").store).runs(3)]
    assert statuses == ["ok", "ok", "cancelled"]


def test_settings_of_the_gate_train_no_adapter_and_embed_once(
    path: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlm_tui.gate import embedding

    embedded: list[int] = []
    real = embedding.embed_prompts

    def counting(backbone: Any, given: Any, prompts: Any, **more: Any) -> Any:
        embedded.append(len(prompts))
        return (yield from real(backbone, given, prompts, **more))

    monkeypatch.setattr(embedding, "embed_prompts", counting)
    report = sweep(path, base, "gate.entropy_lambda=0,0.01,0.5", "gate.lr=0.001,0.01")
    assert (report.works, report.by) == (0, "log_loss")
    assert embedded == [8]
    losses = [trial.log_loss for trial in report.trials]
    assert report.best == losses.index(min(losses))  # type: ignore[type-var]
    assert all(trial.loss is None and trial.effect is None for trial in report.trials)


def test_a_diverged_trial_has_no_figures_and_is_said(path: Path, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    report = sweep(path, base, "learning_rate=1e30,0.01")
    assert report.trials[0].loss is None and report.best == 1
    assert any("finite" in text or "became" in text for text in report.notes)
    assert sweep(path, base, "learning_rate=1e30,0.01").fresh == 0


def test_the_best_is_written_in_place_and_the_log_says_why(path: Path, base: Base) -> None:
    before = path.read_text()
    report = sweep(path, base, "learning_rate=0.00001,0.02", write=True)
    assert report.written == {"adapters.facts.learning_rate": "0.02", "adapters.manners.learning_rate": "0.02"}
    assert path.read_text() == before.replace("learning_rate: 0.01", "learning_rate: 0.02")
    logs = sorted((request(path, base, "lora_r=1").store.logs_dir).glob(f"train-{report.run_id:06d}-*.jsonl"))
    last = json.loads(logs[-1].read_text().splitlines()[-1])
    assert last["type"] == "document_changed" and last["settings"] == report.written
    assert "learning_rate 0.02: held-out loss" in last["reason"] and "the lowest of 2 trials" in last["reason"]


def test_where_all_trials_are_alike_there_is_no_best(
    path: Path, base: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    before = path.read_bytes()
    command = ["sweep", str(path), "--home", str(path.parent / "home"), "--base", str(base.source.path), "--folds", "2"]
    command += ["--set", "gate.lr=0.01,0.01000", "--write-best"]  # one value, written in two ways
    assert main(command) == 0
    output = capsys.readouterr()
    *_, reason = output.out.splitlines()
    assert reason.startswith("no difference between the trials: gate log loss") and "best" not in output.out
    assert "nothing was written into the document" in output.err
    assert path.read_bytes() == before
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["best"], told["written"]) == (None, None)


def test_the_command_prints_a_table_csv_and_json(path: Path, base: Base, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", str(path), "--home", str(path.parent / "home"), "--base", str(base.source.path), "--folds", "2"]
    command += ["--set", "training.lora_r=2,4"]
    assert main(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:3] == ["trial", "lora_r", "loss"] and out[1].split()[:2] == ["1", "2"]
    assert sum("█" in line for line in out) == 2 and sum("best" in line for line in out) == 2
    assert main([*command, "--csv"]) == 0
    streams = capsys.readouterr()
    assert "0 of 8 trainings were new" in streams.err
    rows = list(csv.DictReader(io.StringIO(streams.out)))
    assert [row["lora_r"] for row in rows] == ["2", "4"] and sum(int(row["best"]) for row in rows) == 1
    assert main([*command, "--json", "--by", "effect", "--write-best"]) == 0
    told = json.loads(capsys.readouterr().out)
    best = told["trials"][told["best"]]
    assert best["effect"] == max(trial["effect"] for trial in told["trials"])
    assert load(path).adapter_settings("facts").lora_r == int(best["settings"]["lora_r"])
    assert main([*command[:-2], "--set", "lora_r=0"]) == 2
    assert main(command[:-2]) == 2


@pytest.mark.slow
def test_a_killed_sweep_is_not_done_again(path: Path, base: Base) -> None:
    command = [sys.executable, "-m", "dlm_tui", "sweep", str(path), "--home", str(path.parent / "home"), "--folds", "2"]
    command += ["--base", str(base.source.path), "--set", "learning_rate=0.001,0.01,0.02,0.05", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    database = request(path, base, "lora_r=1").store.metrics_path
    assert child.stderr is not None
    for line in child.stderr:
        if "trying settings" in line and kept(database) >= 2:
            break
    child.kill()
    child.wait()
    before = kept(database)
    assert 2 <= before < 16
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(again.stdout)
    assert (told["works"], told["fresh"]) == (16, 16 - before)
    assert kept(database) == 17, "and the gate once"


def kept(database: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM tui_sweep_results").fetchone()[0])


def test_the_best_and_its_bar() -> None:
    trials = [
        TrialReport(settings={}, loss=loss, accuracy=rate) for loss, rate in ((2.0, 0.5), (None, 0.9), (1.0, 0.9))
    ]
    assert (best_of(trials, "loss"), best_of(trials, "accuracy"), best_of(trials, "effect")) == (2, 1, None)
    alike = [TrialReport(settings={}, loss=1.0), TrialReport(settings={}, loss=1.0)]
    assert (best_of(alike, "loss"), best_of(alike[:1], "loss")) == (None, 0), "alike is no best; one alone is"
    assert [len(bar) for bar in bars(trials, "loss", 20)] == [20, 0, 2]
    assert bars([], "loss", 20) == []
