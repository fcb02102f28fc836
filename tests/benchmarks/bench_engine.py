"""What the wire costs: an empty request to the engine child and back, and a keystroke through all of it."""

from __future__ import annotations

import asyncio
import json
import statistics
import time

from dlm_tui.engine.client import EngineClient
from dlm_tui.engine.protocol import Event, GetStatus, Open, Route, Routed
from tests.benchmarks.harness import Row, scratch
from tests.interop.peer_fixture import copy_peer


def rows(quick: bool) -> list[Row]:
    """Round trips of one child with the peer's routed document open, p50 and p99 in milliseconds."""
    empty, keystrokes, apart = asyncio.run(_measure(200 if quick else 2000, 60 if quick else 240))
    same = f"; weights differ from the dlm tool's by {apart:.1e}"
    return [
        _row("engine round trip, empty request", empty),
        _row("engine round trip, one more character of a prompt → weights (0.8 M parameters)", keystrokes, same),
    ]


async def _measure(requests: int, characters: int) -> tuple[list[float], list[float], float]:
    client = EngineClient(threads=1)
    await client.start()
    try:
        # a copy, as an engine keeps embeddings in the store of what it opens
        root = copy_peer(scratch() / "peer", base=True)
        await client.ask(Open(document=str(root / "routed.dlm"), home=str(root / "home"), base=str(root / "base")))
        for _ in range(50):
            await client.ask(GetStatus())
        empty = [(await _timed(client, GetStatus()))[0] for _ in range(requests)]
        typed: list[float] = []
        apart = 0.0
        for row in json.loads((root / "expected_gate.json").read_text())["rows"]:
            for end in range(1, len(row["prompt"]) + 1):
                taken, routed = await _timed(client, Route(prompt=row["prompt"][:end]))
                typed.append(taken)
            assert isinstance(routed, Routed)
            apart = max(apart, *(abs(routed.weights[name] - weight) for name, weight in row["weights"].items()))
            if len(typed) >= characters:
                break
    finally:
        await client.close()
    if apart > 1e-5:
        raise AssertionError(f"weights differ by {apart}")
    return empty, typed, apart


async def _timed(client: EngineClient, request: GetStatus | Route) -> tuple[float, Event]:
    start = time.perf_counter()
    answer = await client.ask(request)
    return time.perf_counter() - start, answer


def _row(name: str, samples: list[float], same: str = "") -> Row:
    cuts = statistics.quantiles(samples, n=100)
    return Row(
        name=name,
        ours=statistics.median(samples) * 1e3,
        baseline=cuts[98] * 1e3,
        baseline_name="its own p99",
        ratio=None,
        goal="report p50, p99",
        met=None,
        exact=f"p50 and p99 of {len(samples)} requests{same}",
    )
