"""What the gate did with real traffic: shares, entropy and unlike prompts over time, and what is worth labelling."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from datetime import datetime

import msgspec

from dlm_tui.store.layout import Store
from dlm_tui.store.metrics_reader import MetricsReader
from dlm_tui.store.traffic import TrafficRow, traffic_rows

SPANS = 12
WORTH = 20


class TrafficSpan(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the time looked at: requests in it, and of the routed ones the mean weights, the mean entropy divided
    by ln N, and the share of prompts unlike the training ones; None where nothing was routed."""

    begins: str
    requests: int
    routed: int
    weights: dict[str, float]
    normalised_entropy: float | None
    ood_share: float | None


class WorthLabelling(msgspec.Struct, frozen=True, kw_only=True):
    """A kept prompt that the gate was unsure about: its newest weights and how often it came."""

    prompt: str
    times: int
    weights: dict[str, float]
    normalised_entropy: float | None
    ood_score: float | None
    is_ood: bool


class TrafficReport(msgspec.Struct, frozen=True, kw_only=True):
    """Entropies in nats, and divided by ln N. `training_entropy` is the mean over the training prompts after the last
    gate training: what `entropy` would be if the traffic were like them. Times in seconds."""

    requests: int
    routed: int
    views: dict[str, int]
    unfinished: int
    prompt_tokens: int
    answer_tokens: int
    weights: dict[str, float]
    entropy: float | None
    normalised_entropy: float | None
    training_entropy: float | None
    ood_share: float | None
    first_token_p50: float | None
    first_token_p99: float | None
    spans: list[TrafficSpan]
    worth_labelling: list[WorthLabelling]


def traffic_report(store: Store, since: str | None = None) -> TrafficReport:
    """The report over all kept traffic, or that at or after `since` (UTC text). Raises MetricsError."""
    rows = traffic_rows(store, since=since)
    routed = [row for row in rows if row.view == "gated"]
    history = MetricsReader(store).gate_history(1)
    views: dict[str, int] = {}
    for row in rows:
        views[row.view] = views.get(row.view, 0) + 1
    waits = sorted(row.first_token for row in rows if row.first_token is not None)
    return TrafficReport(
        requests=len(rows),
        routed=len(routed),
        views=dict(sorted(views.items(), key=lambda item: -item[1])),
        unfinished=sum(row.finish != "ok" for row in rows),
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        answer_tokens=sum(row.answer_tokens for row in rows),
        weights=mean_weights(routed),
        entropy=_mean([row.entropy for row in routed]),
        normalised_entropy=_mean([row.normalised_entropy for row in routed]),
        training_entropy=history[-1].prompt_entropy if history else None,
        ood_share=_ood_share(routed),
        first_token_p50=_quantile(waits, 0.5),
        first_token_p99=_quantile(waits, 0.99),
        spans=_spans(rows),
        worth_labelling=worth_labelling(routed),
    )


def mean_weights(rows: Sequence[TrafficRow]) -> dict[str, float]:
    """Adapter → its mean weight over the rows; one that a row does not have counts 0 there."""
    names = dict.fromkeys(name for row in rows for name in row.weights)
    return {name: math.fsum(row.weights.get(name, 0.0) for row in rows) / len(rows) for name in names}


def worth_labelling(rows: Sequence[TrafficRow], limit: int = WORTH) -> list[WorthLabelling]:
    """Kept prompts the gate is least sure about: first those unlike the training prompts, then by entropy."""
    newest: dict[str, TrafficRow] = {}
    times: dict[str, int] = {}
    for row in rows:
        if row.prompt:
            newest[row.prompt] = row
            times[row.prompt] = times.get(row.prompt, 0) + 1
    ranked = sorted(newest.values(), key=lambda row: (not row.is_ood, -(row.normalised_entropy or 0.0)))
    return [
        WorthLabelling(
            prompt=row.prompt or "",
            times=times[row.prompt or ""],
            weights=row.weights,
            normalised_entropy=row.normalised_entropy,
            ood_score=row.ood_score,
            is_ood=row.is_ood,
        )
        for row in ranked[:limit]
    ]


def _spans(rows: Sequence[TrafficRow]) -> list[TrafficSpan]:
    """The time from the first row to the last in equal parts of a second or more; the empty ones too, so that pauses
    are seen."""
    if not rows:
        return []
    moments = [datetime.fromisoformat(row.at) for row in rows]
    begin, whole = moments[0], max(moments) - moments[0]
    count = min(max(int(whole.total_seconds()), 1), SPANS)
    length = whole / count
    parts: list[list[TrafficRow]] = [[] for _ in range(count)]
    for moment, row in zip(moments, rows, strict=True):
        place = int((moment - begin) / length) if length else 0
        parts[min(max(place, 0), len(parts) - 1)].append(row)
    return [_span((begin + length * place).strftime("%Y-%m-%dT%H:%M:%SZ"), part) for place, part in enumerate(parts)]


def _span(begins: str, rows: Sequence[TrafficRow]) -> TrafficSpan:
    routed = [row for row in rows if row.view == "gated"]
    return TrafficSpan(
        begins=begins,
        requests=len(rows),
        routed=len(routed),
        weights=mean_weights(routed),
        normalised_entropy=_mean([row.normalised_entropy for row in routed]),
        ood_share=_ood_share(routed),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None


def _ood_share(rows: Sequence[TrafficRow]) -> float | None:
    """None where the gate has no calibration to judge by."""
    judged = [row.is_ood for row in rows if row.ood_score is not None]
    return sum(judged) / len(judged) if judged else None


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None
