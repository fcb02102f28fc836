"""What freezing the gate to one mix costs, compared with asking it for every prompt."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from dlm_tui.errors import DlmTuiError
from dlm_tui.gate.embedding import cached_embeddings
from dlm_tui.gate.gate import Gate, load_gate
from dlm_tui.gate.messages import frozen_text, kept_share
from dlm_tui.gate.nexttoken import Batch, best_mix, frozen_divergence, live_logprobs, prompt_batches
from dlm_tui.gate.probes import trained_probes
from dlm_tui.gate.report import ChangedPrompt, DriftReport, MixCost
from dlm_tui.gate.static import mean_gate_weights
from dlm_tui.progress import Progress, map_steps, part_of

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.model import MixedModel
    from dlm_tui.store import Store

_T = TypeVar("_T")

MOST_PROMPTS = 128
MOST_ANSWERS = 48
MOST_SEARCHED = 32
ANSWER_TOKENS = 24
_ANSWER_ROWS = 16
_SHOWN = 200


@dataclass(frozen=True)
class _Prompt:
    text: str
    line: int | None
    ids: list[int]


def drift_report(
    document: Document,
    store: Store,
    model: MixedModel,
    gate: Gate | None = None,
    *,
    prompts: Sequence[str] = (),
    frozen: Mapping[str, float] | None = None,
    answers: bool = True,
) -> Generator[Progress, None, DriftReport]:
    """Compare live routing with `frozen` (default: the static mean), the uniform mix and the best frozen mix.

    Over the training prompts (at most 128, evenly chosen) and the saved `prompts`. Each of `frozen`, `uniform` and
    `best_static` has `mix`, `kl` = mean KL(live ‖ mix) at the next token in nats, `kl_max`, and `changed_answers` = the
    share of greedy answers (at most 48 prompts, 24 tokens) that differ from the live ones, None without `answers`.
    `kept` = 1 − kl(frozen) / kl(uniform). Raises DlmTuiError without a trained gate in force or with adapters missing.
    """
    live_gate = gate if gate is not None else load_gate(store, model.base.identity, model.base.hidden_size)
    names = _check(document, model, live_gate)
    assert live_gate is not None
    chosen, trained, embeddings, static = yield from _prompts(document, store, model, live_gate, prompts)
    weights = _columns(live_gate.weights(embeddings), live_gate.names, model.names)
    batches = prompt_batches([prompt.ids for prompt in chosen])
    live = yield from live_logprobs(model.backbone, batches, weights)

    mixes = {
        "frozen": model.coefficients(static if frozen is None else frozen).cpu(),
        "uniform": model.coefficients(dict.fromkeys(names, 1.0 / len(names))).cpu(),
    }
    divergences: dict[str, Tensor] = {}
    for turn, (name, mix) in enumerate(mixes.items()):
        work = frozen_divergence(model.backbone, batches, live, mix, len(chosen))
        divergences[name] = yield from part_of(work, "frozen", turn, len(mixes))
    mixes["best_static"] = yield from _search(model, batches, live, mixes)
    work = frozen_divergence(model.backbone, batches, live, mixes["best_static"], len(chosen))
    divergences["best_static"] = yield from part_of(work, "best static", 0, 1)
    for name in ("frozen", "uniform"):
        if _on_simplex(mixes[name]) and divergences[name].mean() < divergences["best_static"].mean():
            mixes["best_static"], divergences["best_static"] = mixes[name], divergences[name]

    changed = (yield from _changed(model, chosen, weights, mixes)) if answers else dict.fromkeys(mixes, None)
    costs = {
        name: MixCost(
            mix=dict(zip(model.names, mix.tolist(), strict=True)),
            kl=float(divergences[name].mean()),
            kl_max=float(divergences[name].max()),
            changed_answers=changed[name],
        )
        for name, mix in mixes.items()
    }
    at_frozen, at_uniform = costs["frozen"].kl, costs["uniform"].kl
    kept = kept_share(at_frozen, at_uniform)
    return DriftReport(
        prompts=len(chosen),
        training_prompts=trained,
        saved_prompts=len(chosen) - trained,
        answers=min(len(chosen), MOST_ANSWERS) if answers else 0,
        answer_tokens=ANSWER_TOKENS,
        adapters=list(names),
        **costs,
        kept=kept,
        verdict=frozen_text(kept, at_frozen, at_uniform, costs["best_static"].kl),
        most_changed=_most_changed(chosen, divergences["frozen"], weights, model.names),
    )


def _check(document: Document, model: MixedModel, gate: Gate | None) -> tuple[str, ...]:
    if gate is None or gate.network is None:
        raise DlmTuiError("There is no trained gate in force, so freezing it costs nothing: train the document first.")
    names = document.adapter_names
    if set(gate.names) != set(names):
        raise DlmTuiError("The stored gate is for other adapters than the document declares: train the gate again.")
    missing = [name for name in names if name not in model.names]
    if missing:
        raise DlmTuiError(f"No trained version of {', '.join(missing)} is in the store: train the document first.")
    return names


def _prompts(
    document: Document, store: Store, model: MixedModel, gate: Gate, saved: Sequence[str]
) -> Generator[Progress, None, tuple[list[_Prompt], int, Tensor, dict[str, float]]]:
    """The compared prompts, how many are training ones, their embeddings, and the mean weights of all training ones."""
    probes = trained_probes(document)
    if not probes:
        raise DlmTuiError("The document has no prompts for its adapters, so there is nothing to compare.")
    lines: dict[str, tuple[int | None, int]] = {}
    for index, probe in enumerate(probes):
        lines.setdefault(probe.prompt, (probe.line, index))
    trained = _evenly(list(lines), MOST_PROMPTS)
    extra = [prompt for prompt in dict.fromkeys(saved) if prompt and prompt not in lines][:MOST_PROMPTS]
    embeddings, _ = yield from cached_embeddings(model, store, [*(probe.prompt for probe in probes), *extra])
    static = dict(mean_gate_weights(gate, gate.config, list(embeddings[: len(probes)])))
    rows = [*(embeddings[lines[prompt][1]] for prompt in trained), *embeddings[len(probes) :]]
    room = max(1, model.base.context_length - ANSWER_TOKENS)
    chosen = []
    for prompt in [*trained, *extra]:
        ids = model.base.chat(prompt, document.system_prompt)[-room:]
        chosen.append(_Prompt(prompt, lines.get(prompt, (None, 0))[0], ids))
    return chosen, len(trained), torch.stack(rows), static


def _changed(
    model: MixedModel, prompts: Sequence[_Prompt], weights: Tensor, mixes: Mapping[str, Tensor]
) -> Generator[Progress, None, dict[str, float | None]]:
    """The share of greedy answers under each mix that differ from the live ones."""
    places = _evenly(list(range(len(prompts))), MOST_ANSWERS)
    places.sort(key=lambda place: len(prompts[place].ids))
    total = len(places) * (len(mixes) + 1)
    live = yield from _answers(model, prompts, places, [weights[place] for place in places], 0, total)
    shares: dict[str, float | None] = {}
    done = len(places)
    for name, mix in mixes.items():
        texts = yield from _answers(model, prompts, places, [mix] * len(places), done, total)
        done += len(places)
        shares[name] = sum(one != other for one, other in zip(live, texts, strict=True)) / len(places)
    return shares


def _answers(
    model: MixedModel, prompts: Sequence[_Prompt], places: Sequence[int], rows: Sequence[Tensor], done: int, total: int
) -> Generator[Progress, None, list[list[int]]]:
    from dlm_tui.model.generation import GenerationEvent, generate
    from dlm_tui.model.sampling import Sampling

    def counter(tokens: int) -> Callable[[Progress | GenerationEvent], Progress]:
        def counted(step: Progress | GenerationEvent) -> Progress:
            nonlocal tokens
            tokens += isinstance(step, GenerationEvent)
            return Progress("answers", tokens, total * ANSWER_TOKENS)

        return counted

    texts: list[list[int]] = []
    sampling = Sampling(max_tokens=ANSWER_TOKENS, temperature=0.0)
    for first in range(0, len(places), _ANSWER_ROWS):
        batch = places[first : first + _ANSWER_ROWS]
        work = generate(model, [prompts[place].ids for place in batch], rows[first : first + _ANSWER_ROWS], sampling)
        answers = yield from map_steps(work, counter((done + len(texts)) * ANSWER_TOKENS))
        texts += [answer.token_ids for answer in answers]
        yield Progress("answers", (done + len(texts)) * ANSWER_TOKENS, total * ANSWER_TOKENS)
    return texts


def _most_changed(
    prompts: Sequence[_Prompt], divergences: Tensor, weights: Tensor, names: Sequence[str]
) -> list[ChangedPrompt]:
    order = divergences.argsort(descending=True, stable=True)[:5].tolist()
    return [
        ChangedPrompt(
            prompt=prompts[place].text[:_SHOWN],
            line=prompts[place].line,
            kl=float(divergences[place]),
            weights=dict(zip(names, weights[place].tolist(), strict=True)),
        )
        for place in order
    ]


def _search(
    model: MixedModel, batches: Sequence[Batch], live: Sequence[Tensor], mixes: Mapping[str, Tensor]
) -> Generator[Progress, None, Tensor]:
    """The best frozen mix on about 32 prompts: descent from the best of the given mixes and the single adapters."""
    stride = max(1, -(-sum(len(batch.places) for batch in batches) // MOST_SEARCHED))
    places = [torch.arange(0, len(batch.places), stride) for batch in batches]
    part = [Batch(batch.places[at], batch.ids[at], batch.last[at]) for batch, at in zip(batches, places, strict=True)]
    targets = [rows[at.to(rows.device)] for rows, at in zip(live, places, strict=True)]
    size = sum(len(batch.places) for batch in batches)
    starts = [mix for mix in mixes.values() if _on_simplex(mix)] + list(torch.eye(len(model.names)))
    costs = []
    for turn, start in enumerate(starts):
        work = frozen_divergence(model.backbone, part, targets, start, size)
        divergences = yield from part_of(work, "search", turn, len(starts))
        costs.append(float(divergences.sum()))
    return (yield from best_mix(model.reference, part, targets, starts[costs.index(min(costs))]))


def _on_simplex(mix: Tensor) -> bool:
    """Whether a mix [N] has no negative coefficient and sums to 1."""
    return bool((mix >= 0).all()) and abs(float(mix.sum()) - 1.0) < 1e-3


def _columns(weights: Tensor, names: Sequence[str], order: Sequence[str]) -> Tensor:
    """Gate weights [n, N] with their columns in the mixer's order; other adapters of the mixer get 0."""
    result = torch.zeros(len(weights), len(order))
    for column, name in enumerate(order):
        if name in names:
            result[:, column] = weights[:, list(names).index(name)]
    return result


def _evenly(items: list[_T], most: int) -> list[_T]:
    """At most `most` items, evenly spread over the list."""
    if len(items) <= most:
        return items
    return [items[index * len(items) // most] for index in range(most)]
