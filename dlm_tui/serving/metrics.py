"""What `/metrics` tells, in the Prometheus text format. No torch."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dlm_tui.serving.backend import Load
from dlm_tui.serving.views import Decision

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """Counters of one server; a registry of its own, so that several can live in one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("dlm_requests", "Requests by route, status.", ("route", "status"), registry=registry)
        self._tokens = Counter("dlm_tokens", "Tokens read (prompt) and said (answer).", ("kind",), registry=registry)
        self._first = Histogram(
            "dlm_time_to_first_token_seconds", "From request to first token.", buckets=_SECONDS, registry=registry
        )
        self._duration = Histogram(
            "dlm_request_seconds", "From request to the end of its answer.", buckets=_SECONDS, registry=registry
        )
        self._weights = Counter(
            "dlm_gate_weight",
            "Sum of the gate's weights of answers under them.",
            ("adapter",),
            registry=registry,
        )
        self._routed = Counter(
            "dlm_routed",
            "Answers under the gate's weights, by its mode; what /v1/route tells is none.",
            ("mode",),
            registry=registry,
        )
        self._ood = Counter(
            "dlm_out_of_distribution", "Such answers to prompts unlike the training ones.", registry=registry
        )
        self._entropy = Histogram(
            "dlm_gate_normalised_entropy",
            "Entropy of the gate's weights of an answer over ln N.",
            buckets=_SHARES,
            registry=registry,
        )
        self._running = Gauge("dlm_rows_running", "Answers being decoded.", registry=registry)
        self._waiting = Gauge("dlm_requests_waiting", "Requests in the queue.", registry=registry)
        self._steps = Gauge("dlm_decode_steps", "Decode steps so far.", registry=registry)
        self._reloads = Gauge("dlm_trainings_taken_in", "New trainings taken in while serving.", registry=registry)

    def request(self, route: str, status: int) -> None:
        """Count one finished request."""
        self._requests.labels(route, str(status)).inc()

    def decision(self, decision: Decision) -> None:
        """Count what the gate decided for an answer, as `dlm-tui traffic` does; other views ask no gate."""
        if decision.view != "gated":
            return
        self._routed.labels(decision.mode).inc()
        for name, weight in decision.weights.items():
            self._weights.labels(name).inc(max(weight, 0.0))
        if decision.is_ood:
            self._ood.inc()
        if decision.normalised_entropy is not None:
            self._entropy.observe(decision.normalised_entropy)

    def answer(self, prompt_tokens: int, answer_tokens: int, first: float | None, seconds: float) -> None:
        """Count one answer; `first` is the time to its first token, None when it never came."""
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._tokens.labels("answer").inc(answer_tokens)
        if first is not None:
            self._first.observe(first)
        self._duration.observe(seconds)

    def text(self, load: Load) -> bytes:
        """Everything, with how busy the backend is now."""
        self._running.set(load.running)
        self._waiting.set(load.waiting)
        self._steps.set(load.steps)
        self._reloads.set(load.reloads)
        return generate_latest(self._registry)
