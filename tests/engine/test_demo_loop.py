"""The whole loop on the bundled demo and base, headless: train, route, prompt, show, metrics, export."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import instruction_pairs, load
from dlm_tui.model.generation import generate
from dlm_tui.model.sampling import Sampling
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from tests.benchmarks.demo_recall import measure, town_questions
from tests.demo import Demo
from tests.interop.store_checker import check_store

pytestmark = [pytest.mark.slow]
GREEDY = Sampling(max_tokens=64, temperature=0.0)


@pytest.fixture(scope="module")
def session(demo: Demo) -> Session:
    return run_to_end(Session.open(demo.document, demo.home))


def answers(session: Session, prompts: list[str], mixes: list[dict[str, float]]) -> list[str]:
    """Greedy answers, one mix per prompt, decoded in batches of sixteen."""
    texts: list[str] = []
    for start in range(0, len(prompts), 16):
        ids = [session.base.chat(prompt, session.document.system_prompt) for prompt in prompts[start : start + 16]]
        texts += [row.text for row in run_to_end(generate(session.model, ids, mixes[start : start + 16], GREEDY))]
    return texts


def data(capsys: pytest.CaptureFixture[str], demo: Demo, command: str, *arguments: str) -> Any:
    """The JSON a headless command prints, and nothing else on stdout."""
    assert main([command, str(demo.document), *arguments, "--home", str(demo.home), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def test_the_store_follows_the_formats(demo: Demo) -> None:
    document = load(demo.document)
    check_store(demo.home / "store" / document.dlm_id, list(document.adapter_names))


def test_knowledge_answers_its_own_questions(session: Session) -> None:
    sections = [section for section in session.document.sections if section.adapter == "knowledge"]
    pairs = [pair for section in sections if section.type == "instruction" for pair in instruction_pairs(section)]
    assert len(pairs) >= 12
    got = answers(session, [pair.question for pair in pairs], [{"knowledge": 1.0}] * len(pairs))
    exact = sum(text.strip() == pair.answer.strip() for text, pair in zip(got, pairs, strict=True))
    print(f"knowledge answers {exact} of {len(pairs)} of its own questions exactly")
    assert exact >= 0.8 * len(pairs)


def test_the_mix_keeps_what_the_base_knows_and_the_voices_differ(session: Session) -> None:
    found = measure(session)
    print(found)
    assert len(town_questions(session)) >= 140 and found.town["base"] >= 0.9
    assert found.town["gated"] >= found.town["base"] - 0.05
    for joined in (found.withheld, found.joined):
        assert joined["base"] >= 0.95 and joined["gated"] >= joined["base"] - 0.05
    assert found.own["knowledge"] >= 0.9 and found.own["gated"] >= 0.85
    assert found.paraphrased["knowledge"] >= 0.4
    assert min(found.voice.values()) >= 0.95 and found.differing >= 0.95


def test_solo_answers_differ_from_each_other_and_from_the_base(session: Session) -> None:
    names = list(session.model.names)
    prompt = "Tell me about the harbour this morning."
    mixes: list[dict[str, float]] = [{}, *({name: 1.0} for name in names)]
    got = answers(session, [prompt] * len(mixes), mixes)
    print("\n".join(f"{name}: {text}" for name, text in zip(["base", *names], got, strict=True)))
    assert len(set(got)) == len(got)


def test_the_gate_is_accurate_on_held_out_folds(capsys: pytest.CaptureFixture[str], demo: Demo) -> None:
    report = data(capsys, demo, "eval", "--folds", "5")
    print(f"5-fold accuracy {report['accuracy']:.3f}, log loss {report['log_loss']:.3f} nats, ece {report['ece']:.3f}")
    assert report["accuracy"] >= 0.95
    assert {"accuracy", "log_loss", "ece", "confusion", "mean_weights", "mean_entropy", "verdict", "misrouted"} <= set(
        report
    )


def test_route_prints_weights_that_sum_to_one(capsys: pytest.CaptureFixture[str], demo: Demo) -> None:
    report = data(capsys, demo, "route", "Where does the ferry land?")
    assert report["mode"] == "trained"
    result = report["results"][0]
    assert list(result["weights"]) == report["adapters"]
    assert sum(result["weights"].values()) == pytest.approx(1.0, abs=1e-6)


def test_prompt_is_reproducible_from_its_seed(capsys: pytest.CaptureFixture[str], demo: Demo) -> None:
    options = ["Where does the ferry land?", "--max-tokens", "16", "--temperature", "0.9", "--seed", "7"]
    first, second = data(capsys, demo, "prompt", *options), data(capsys, demo, "prompt", *options)
    assert first == second and first["view"] == "gated" and first["seed"] == 7 and first["text"]
    mixed = data(capsys, demo, "prompt", "Hello", "--mix", "tone:0.7,style:0.3", "--max-tokens", "4")
    assert mixed["weights"] == {"tone": 0.7, "style": 0.3}


def test_show_and_metrics_agree_about_the_gate(capsys: pytest.CaptureFixture[str], demo: Demo) -> None:
    shown, metrics = data(capsys, demo, "show"), data(capsys, demo, "metrics")
    assert shown["gate"]["mode"] == "trained"
    assert shown["adapters"] == {"knowledge": 1, "tone": 1, "style": 1}
    assert metrics["gate_history"][-1]["run_id"] == shown["gate"]["last_run_id"]
    assert {run["status"] for run in metrics["runs"]} == {"ok"}


def test_export_freezes_the_gate(capsys: pytest.CaptureFixture[str], demo: Demo, tmp_path_factory: Any) -> None:
    own = demo.copy(tmp_path_factory.mktemp("export"))
    manifest = data(capsys, own, "export", "--no-verify", "--no-drift")
    assert manifest["gate_mode"] == "static_mean"
    assert manifest["target"] == "peft"
    assert sum(dict(manifest["mix"]).values()) == pytest.approx(1.0, abs=1e-6)


def test_the_trained_demo_in_a_real_llama_cpp(
    capsys: pytest.CaptureFixture[str], demo: Demo, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = demo.copy(tmp_path_factory.mktemp("ollama"))
    manifest = data(capsys, own, "export", "--target", "ollama", "--quant", "f16", "--verify")
    parity, drift = manifest["parity"], manifest["drift"]
    print(f"f16: largest difference {parity['max_abs_logprob_diff']:.1e} nats; frozen KL {drift['kl']:.3f} nats")
    assert parity["greedy_agree"] >= 0.95 and parity["max_abs_logprob_diff"] < 0.1
    assert drift["kl"] > 0 and drift["verdict"]
    assert {"Modelfile"} <= {item["path"] for item in manifest["artifacts"]}
