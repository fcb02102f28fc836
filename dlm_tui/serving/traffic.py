"""Keeping book of what is served, beside the serving: rows go to the store in bundles, from a thread of their own."""

from __future__ import annotations

import queue
import threading

from dlm_tui.errors import DlmTuiError
from dlm_tui.output import say
from dlm_tui.serving.api import Served
from dlm_tui.store import Store
from dlm_tui.store.traffic import TrafficRow, TrafficWriter, traffic_time

INTERVAL_SECONDS = 0.5
MOST_WAITING = 10_000


class TrafficLog:
    """A recorder over the metrics store. What cannot be written is dropped and counted; serving goes on."""

    def __init__(self, store: Store, keep_prompts: int = 0) -> None:
        self._writer = TrafficWriter(store, keep_prompts)
        self._waiting: queue.Queue[TrafficRow | None] = queue.Queue(MOST_WAITING)
        self._keep = keep_prompts
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._thread.start()

    def record(self, served: Served) -> None:
        """Add one request; returns at once."""
        decision = served.decision
        row = TrafficRow(
            at=traffic_time(served.at),
            route=served.route,
            view=decision.view,
            mode=decision.mode,
            weights=decision.weights,
            entropy=decision.entropy,
            normalised_entropy=decision.normalised_entropy,
            ood_score=decision.ood_score,
            is_ood=decision.is_ood,
            prompt_tokens=served.prompt_tokens,
            answer_tokens=served.answer_tokens,
            first_token=served.first_token,
            seconds=served.seconds,
            finish=served.finish,
            prompt=served.prompt if self._keep else None,
        )
        try:
            self._waiting.put_nowait(row)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what waits and end the thread."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            rows: list[TrafficRow] = []
            row = self._waiting.get()
            while row is not None:
                rows.append(row)
                try:
                    # the first row of a bundle waits for others, the last ones for nobody
                    row = self._waiting.get(timeout=INTERVAL_SECONDS)
                except queue.Empty:
                    break
            ended = row is None
            if rows:
                self._write(rows)
        self._writer.close()

    def _write(self, rows: list[TrafficRow]) -> None:
        try:
            self._writer.add(rows)
        except (DlmTuiError, OSError) as error:
            if not self.dropped:
                say(f"the traffic is not recorded: {error}")
            self.dropped += len(rows)
