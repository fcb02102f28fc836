"""Live routing, corpus embedding and gate training, against what the `dlm` tool does for the same result."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlm_tui.assets import asset
from dlm_tui.document import Document, load, parse_bytes
from dlm_tui.gate.cache import EmbeddingCache
from dlm_tui.gate.calibration import Scores, scores, stratified_folds
from dlm_tui.gate.embedding import embed_prompts
from dlm_tui.gate.evaluation import held_out_logits
from dlm_tui.gate.gate import Gate
from dlm_tui.gate.label import label_prompt
from dlm_tui.gate.network import seeded_network
from dlm_tui.gate.probes import trained_probes
from dlm_tui.gate.router import PromptRouter
from dlm_tui.gate.training import cached_embeddings, train_document_gate
from dlm_tui.model import MixedModel, load_base, resolve_base
from dlm_tui.progress import run_to_end
from dlm_tui.store import GateConfig, Store
from tests.benchmarks.gate_reference import held_out, reference_embedding, reference_gate
from tests.benchmarks.harness import (
    PLAIN_READ,
    Row,
    Timing,
    at_most,
    faster,
    layer_weights,
    paired,
    plain_read,
    reported,
    scratch,
    seconds,
    smol_base,
)

NAMES = ("a", "b", "c")
FLOOR = "append one token, distance from the floor: the layers' weights read once"
FULL = "full re-embed with output_hidden_states and the LM head"
WORDS = "The harbour master counts the boats when the tide turns and the bell rings twice over the wet roofs. "
TOKENS = {512: 25.0, 256: 12.0, 64: 4.0}


def rows(quick: bool) -> list[Row]:
    """All rows; `quick` takes fewer rounds and a smaller corpus."""
    rounds = 5 if quick else 15
    model = MixedModel(smol_base(), {})
    found = [_append(model, length, goal, rounds) for length, goal in TOKENS.items()]
    found += [_delete(model, rounds), _floor(model, rounds)]
    found += _corpus(model, 60 if quick else 600)
    found += [*_marks(rounds), _lookups(rounds), _label(), *_quality()]
    return found


def _gate(size: int) -> Gate:
    network = seeded_network(size, 64, len(NAMES), 3).requires_grad_(False)
    return Gate(NAMES, GateConfig(NAMES, 0.01, 64, size, "trained"), network)


def _prompt(model: MixedModel, tokens: int) -> tuple[str, str]:
    """A prompt of `tokens` − 1 tokens and the same with one more token."""
    ids = model.base.encode_raw(WORDS * 60, tokens)
    texts: list[str] = [
        model.base.tokenizer.decode(ids[:count], skip_special_tokens=True) for count in (tokens - 1, tokens)
    ]
    counts = [len(model.base.encode_raw(text)) for text in texts]
    if counts != [tokens - 1, tokens]:
        raise AssertionError(f"the prompts have {counts} tokens")
    return texts[0], texts[1]


def _full(model: MixedModel, gate: Gate, prompt: str) -> Tensor:
    return gate.weights(reference_embedding(model.base.model, model.base.tokenizer, prompt))


def _difference(model: MixedModel, router: PromptRouter, prompt: str) -> str:
    assert router.gate is not None
    ours = torch.tensor(list(run_to_end(router.route(prompt)).weights.values()))
    apart = float((ours - _full(model, router.gate, prompt)).abs().max())
    if apart > 1e-5:
        raise AssertionError(f"weights differ by {apart}")
    return f"weights differ by {apart:.1e}"


def appending(model: MixedModel, tokens: int) -> tuple[PromptRouter, str, Any]:
    """A router, the longer prompt, and a function that appends its last token, over and over."""
    router = PromptRouter(model.backbone, model.base, _gate(model.base.hidden_size))
    _, long = _prompt(model, tokens)
    run_to_end(router.route(long))

    def back() -> None:
        router._memory.cache.crop(tokens - 1)
        router._memory.ids = router._memory.ids[: tokens - 1]

    def append() -> None:
        back()
        run_to_end(router.route(long))

    return router, long, append


def _append(model: MixedModel, tokens: int, goal: float, rounds: int) -> Row:
    router, long, append = appending(model, tokens)
    assert router.gate is not None
    gate = router.gate
    timing = paired(append, lambda: _full(model, gate, long), rounds=rounds, repeat=3)
    name = f"append one token to a {tokens}-token prompt → weights, float32"
    return faster(name, timing, FULL, goal, _difference(model, router, long))


def _delete(model: MixedModel, rounds: int) -> Row:
    router, _, _ = appending(model, 512)
    short, long = _prompt(model, 512)
    gate = router.gate
    assert gate is not None
    exact = _difference(model, router, short)

    def delete() -> None:
        run_to_end(router.route(short))

    run_to_end(router.route(long))
    timing = paired(delete, lambda: _full(model, gate, short), rounds=rounds, repeat=5)
    return faster("delete at the end of 512 tokens", timing, FULL, 1000.0, exact)


def _floor(model: MixedModel, rounds: int) -> Row:
    router, long, append = appending(model, 512)
    read = plain_read(layer_weights(model.base))
    timing = paired(append, read, rounds=rounds, repeat=3)
    return at_most(FLOOR, timing, PLAIN_READ, 1.3, _difference(model, router, long))


def _corpus(model: MixedModel, count: int) -> list[Row]:
    """Embedding a corpus in three paired rounds, and training again after one of its sections changed."""
    document = _document(count)
    prompts = [probe.prompt for probe in trained_probes(document)]
    base = model.base
    # the widths of the questions repeat, so every third has the same mixture of lengths
    thirds = [prompts[start::3] for start in range(3)]
    pairs: list[tuple[float, float]] = []
    singly: dict[str, Tensor] = {}
    apart = 0.0
    for number, part in enumerate(thirds):

        def together(part: list[str] = part) -> Tensor:
            return run_to_end(embed_prompts(model.backbone, base, part, hidden_size=base.hidden_size))

        def one_by_one(part: list[str] = part) -> Tensor:
            return torch.stack([reference_embedding(base.model, base.tokenizer, prompt) for prompt in part])

        if number % 2:
            slow, plain = _timed(one_by_one)
            quick, fresh = _timed(together)
        else:
            quick, fresh = _timed(together)
            slow, plain = _timed(one_by_one)
        pairs.append((quick, slow))
        singly |= dict(zip(part, plain, strict=True))
        apart = max(apart, float((fresh - plain).abs().max()))
    if apart > 1e-5:
        raise AssertionError(f"embeddings differ by {apart}")
    timing = Timing(*(statistics.median(times) for times in (*zip(*pairs, strict=True), [b / a for a, b in pairs])), 3)
    name = f"embed {count} training prompts, three rounds of {len(thirds[0])}"
    embed = faster(name, timing, "one by one, as the dlm tool does", 2.0, f"embeddings differ by {apart:.1e}")
    whole = sum(slow for _, slow in pairs)
    rows = torch.stack([singly[prompt] for prompt in prompts])
    return [embed, _retrain(model, document, rows, whole)]


def _retrain(model: MixedModel, document: Document, singly: Tensor, embedding_seconds: float) -> Row:
    """One of the sections has changed; ours must end where training on everything from nothing ends."""
    store = Store(scratch() / "corpus", document.dlm_id)
    run_to_end(train_document_gate(document, store, model))
    count = len(trained_probes(document))
    changed = _document(count, "A changed question about the weather?")
    again, outcome = _timed(lambda: run_to_end(train_document_gate(changed, store, model)))
    labels = torch.tensor([probe.label for probe in trained_probes(changed)])
    gate_seconds, _ = _timed(lambda: reference_gate(singly, labels, len(NAMES)))
    whole = embedding_seconds + gate_seconds
    entire = run_to_end(train_document_gate(changed, Store(scratch() / "corpus-anew", document.dlm_id), model))
    assert outcome.gate is not None
    assert entire.gate is not None
    apart = max(float((outcome.gate.weights(row) - entire.gate.weights(row)).abs().max()) for row in singly[::17])
    if apart > 1e-4 or (outcome.embedded, entire.embedded) != (1, count):
        raise AssertionError(f"weights differ by {apart}; embedded {outcome.embedded} and {entire.embedded}")
    return faster(
        f"retrain the gate after one of {count} sections changed",
        Timing(again, whole, whole / again, 1),
        "all prompts one by one and the gate again, as the dlm tool does",
        50.0,
        f"{outcome.embedded} prompt embedded; weights differ from training from nothing by {apart:.1e}",
    )


def _timed(work: Any) -> tuple[float, Any]:
    kept: list[Any] = []
    taken = seconds(lambda: kept.append(work()))
    return taken, kept[0]


def _document(count: int, first: str | None = None) -> Document:
    """`count` instruction sections for three adapters, questions of 5 to 40 words."""
    words = WORDS.split()
    adapters = "".join(f"    {name}: {{}}\n" for name in NAMES)
    sections = []
    for number in range(count):
        question = " ".join(words[(number * 7 + word) % len(words)] for word in range(5 + number % 36))
        question = first if number == 0 and first else f"{question} {number}?"
        sections.append(f"::instruction#{NAMES[number % 3]}::\n### Q\n{question}\n### A\nYes.\n")
    head = (
        "---\ndlm_id: 01KBENCHBENCHBENCHBENCHBEN\ndlm_version: 15\nbase_model: hf:bench/smol\ntraining:\n"
        f"  adapters:\n{adapters}  gate:\n    enabled: true\n---\n\n"
    )
    return parse_bytes((head + "\n".join(sections)).encode())


def _lookups(rounds: int) -> Row:
    """6,000 kept embeddings found by their text, the file read afresh each time."""
    prompts = [f"{WORDS} {number}" for number in range(6000)]
    folder = scratch() / "lookups"
    EmbeddingCache(folder, "bench", 576).add(prompts, torch.randn(6000, 576))

    def find() -> None:
        found = EmbeddingCache(folder, "bench", 576).find(prompts)
        assert all(row is not None for row in found)

    timing = paired(find, lambda: [hash(prompt) for prompt in prompts], rounds=rounds)
    return reported("find 6,000 kept embeddings, file read afresh", timing, "hash the texts in Python", "all found")


def _demo() -> tuple[MixedModel, Document]:
    model = MixedModel(run_to_end(load_base(resolve_base("pocket"), device="cpu")), {})
    return model, load(asset("demo") / "harbour.dlm")


def _label() -> Row:
    """From the key press to the new weights on the demo, after the first cold embedding."""
    model, document = _demo()
    path: Path = scratch() / "harbour.dlm"
    path.write_bytes((asset("demo") / "harbour.dlm").read_bytes())
    store = Store(scratch() / "label", document.dlm_id)
    run_to_end(train_document_gate(document, store, model))
    document = load(path)
    work = label_prompt(path, document, store, model, "Where do the gulls sleep?", "tone", saved=["Hello there."])
    taken, outcome = _timed(lambda: run_to_end(work))
    rose = (outcome.before or {})["tone"], outcome.after["tone"]
    if rose[1] <= rose[0]:
        raise AssertionError(f"the label's weight went from {rose[0]} to {rose[1]}")
    return Row(
        "label a prompt on the demo → new weights",
        taken * 1e3,
        None,
        "–",
        None,
        "≤ 3,000 ms",
        taken <= 3.0,
        f"its weight went from {rose[0]:.3f} to {rose[1]:.3f}",
    )


def _marks(rounds: int) -> list[Row]:
    """What the surprise of a prompt costs beside its weights: at every key, and when the mark is settled."""
    model, document = _demo()
    gate = run_to_end(train_document_gate(document, Store(scratch() / "marks", document.dlm_id), model)).gate
    assert gate is not None and gate.ood_score is not None and gate.ood_score.surprised is not None
    plain = replace(gate, ood_score=replace(gate.ood_score, surprised=None))
    ends = (" boats", " bells")

    def typing(asked: Gate, settled: bool) -> Any:
        router = PromptRouter(model.backbone, model.base, asked)

        def twenty_words() -> None:
            for number in range(20):
                run_to_end(router.route(WORDS + ends[number % 2], settled=settled))

        return twenty_words

    name, baseline = "20 words on the demo, each over the last", "a mark by distance alone"
    quick, whole = (paired(typing(gate, now), typing(plain, now), rounds=rounds) for now in (False, True))
    return [
        at_most(f"{name}: weights while typing", quick, baseline, 1.1, "the output layer is not asked"),
        reported(f"{name}: mark settled by surprise", whole, baseline, "the output layer is asked for new tokens"),
    ]


def _quality() -> list[Row]:
    """5-fold figures on the demo, mean of three seeds, against the loop on raw inputs."""
    model, document = _demo()
    probes = trained_probes(document)
    store = Store(scratch() / "quality", document.dlm_id)
    embeddings, _ = run_to_end(cached_embeddings(model, store, [probe.prompt for probe in probes]))
    labels = torch.tensor([probe.label for probe in probes])
    ours: list[Scores] = []
    plain: list[Scores] = []
    for seed in (9, 1, 2):
        ours.append(scores(run_to_end(held_out_logits(document, embeddings, probes, 5, seed)), labels))
        assigned = stratified_folds(labels.tolist(), 5, seed)
        logits = held_out(
            lambda x, y, seed=seed: reference_gate(x, y, len(document.adapter_names), seed=seed),
            embeddings,
            labels,
            assigned,
        )
        plain.append(scores(logits, labels))
    result = []
    for name, unit in (("accuracy", "share"), ("log_loss", "nats")):
        mine, other = (sum(getattr(s, name) for s in found) / len(found) for found in (ours, plain))
        met = mine >= other if name == "accuracy" else mine < other
        goal = "≥ baseline" if name == "accuracy" else "< baseline"
        result.append(
            Row(
                f"held-out {name.replace('_', ' ')} of the gate on the demo, 5 folds, 3 seeds",
                mine,
                other,
                "the same loop on inputs that are not standardised",
                mine / other,
                goal,
                met,
                f"{len(probes)} prompts, same folds, seeds and settings",
                unit,
            )
        )
    return result
