"""Finished judgements of the gate, as the commands print them and the wire carries them. No torch."""

from __future__ import annotations

from typing import Any

import msgspec


class Report(msgspec.Struct, kw_only=True, frozen=True):
    """Figures by name; the field names are the keys of the JSON that the commands print."""

    def as_json(self) -> dict[str, Any]:
        """The figures as a plain object."""
        return dict(msgspec.to_builtins(self))


class MisroutedPrompt(msgspec.Struct, kw_only=True, frozen=True):
    """A held-out prompt whose top adapter is another one than its section's `adapter`; `weight` is what that got."""

    line: int
    adapter: str
    routed: str
    weight: float
    weights: dict[str, float]
    prompt: str


class OodRates(msgspec.Struct, kw_only=True, frozen=True):
    """Share of the document's own prompts beyond `limit`: as seen in training, and while held out.

    A distance, or 1 where the mark goes by surprise as well; see `dlm_tui.gate.ood`.
    """

    limit: float
    own: float
    held_out: float


class EvaluationReport(Report, kw_only=True, frozen=True):
    """The gate judged by folds: see `evaluate_gate`. Losses and entropies in nats, shares and weights in [0, 1].

    `confusion` and `confused_lines` are {true adapter: {routed adapter: count, or the sections' lines}}; `gate` says
    whose weights `mean_weights` and `mean_entropy` are; `collapsed` names the adapter that takes everything.
    """

    folds: int
    prompts: int
    adapters: list[str]
    samples: dict[str, int]
    accuracy: float
    log_loss: float
    ece: float
    ece_bins: int
    held_out_entropy: float
    confusion: dict[str, dict[str, int]]
    confused_lines: dict[str, dict[str, list[int]]]
    mean_weights: dict[str, float]
    mean_entropy: float
    normalised_entropy: float
    gate: str
    collapsed: str | None
    collapse_floor: float
    cold_start: str | None
    temperature: float | None
    ood: OodRates | None
    verdict: str
    misrouted: list[MisroutedPrompt]


class MixCost(msgspec.Struct, kw_only=True, frozen=True):
    """A frozen mix against the live gate: mean and largest KL at the next token in nats, share of changed answers."""

    mix: dict[str, float]
    kl: float
    kl_max: float
    changed_answers: float | None


class ChangedPrompt(msgspec.Struct, kw_only=True, frozen=True):
    """A prompt that loses by freezing: KL in nats, the live weights, the line of its section if it has one."""

    prompt: str
    line: int | None
    kl: float
    weights: dict[str, float]


class DriftReport(Report, kw_only=True, frozen=True):
    """What freezing the gate costs: see `drift_report`. `kept` is the share of the gate's effect that a mix keeps."""

    prompts: int
    training_prompts: int
    saved_prompts: int
    answers: int
    answer_tokens: int
    adapters: list[str]
    frozen: MixCost
    uniform: MixCost
    best_static: MixCost
    kept: float | None
    verdict: str
    most_changed: list[ChangedPrompt]
